//! What is a plugin, and what is refused as none.

use super::*;

#[test]
fn roles_and_imports_are_read_from_the_component() {
    let engine = engine();
    let validator = compile(&engine, &Wat::validator(OK).bytes()).unwrap();
    assert_eq!(validator.roles(), ["validator"]);
    assert_eq!(validator.imports(), ["store.exists"]);
    assert_eq!(validator.digest(), digest(&Wat::validator(OK).bytes()));
    let both = Wat { validate: Some(OK.to_owned()), ..Wat::replacing(0, "1") };
    let both = compile(&engine, &both.bytes()).unwrap();
    assert_eq!(both.roles(), ["transformer", "validator"]);
}

#[test]
fn what_is_not_a_component_is_told_apart() {
    let engine = engine();
    let valid = Wat::validator(OK).bytes();
    let module = wat::parse_str("(module)").unwrap();
    for (bytes, says) in [
        (&b""[..], "empty"),
        (b"GIF89a", "does not start like WebAssembly"),
        (b"(component)", "text"),
        (&module, "core module"),
        (&valid[..valid.len() / 2], "failed to parse"),
    ] {
        match compile(&engine, bytes) {
            Err(Error::NotAComponent(detail)) => assert!(detail.contains(says), "{detail}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn damaged_components_are_errors_and_never_panics() {
    let engine = engine();
    let valid = Wat::rejecting(0).bytes();
    for position in (8..valid.len()).step_by(23) {
        let mut damaged = valid.clone();
        damaged[position] ^= 0x5a;
        // Some damage leaves a valid component; what matters is that every answer is an answer.
        let _ = compile(&engine, &damaged);
    }
}

#[test]
fn a_component_over_the_size_limit_is_not_even_looked_at() {
    let bytes = vec![0; crate::limits::PLUGIN_BYTES_MAX + 1];
    assert!(matches!(compile(&engine(), &bytes), Err(Error::TooLarge(_))));
}

#[test]
fn components_for_other_worlds_are_refused_by_name() {
    let engine = engine();
    let mismatch = |text: &str| match compile(&engine, &wat::parse_str(text).unwrap()) {
        Err(Error::WorldMismatch(mismatch)) => mismatch,
        other => panic!("{other:?}"),
    };
    assert_eq!(mismatch("(component)"), Mismatch::NoRole);
    let import = r#"(component (import "acme:net/socket@1.0.0" (instance)))"#;
    assert_eq!(mismatch(import), Mismatch::Import("acme:net/socket@1.0.0".to_owned()));
    let function = r#"(component (import "brink:hooks/store@0.1.0" (instance (export "put" (func)))))"#;
    assert_eq!(mismatch(function), Mismatch::Import("brink:hooks/store@0.1.0#put".to_owned()));
    let text = Wat::validator(OK).text();
    let newer = mismatch(&text.replace("validator@0.1.0", "validator@0.9.0"));
    assert_eq!(newer, Mismatch::Version("0.9.0".to_owned()));
    let unconfigured = text.replace("brink:hooks/configuration@0.1.0", "other:thing/configuration@0.1.0");
    assert_eq!(mismatch(&unconfigured), Mismatch::NoConfiguration);
    let retyped = text.replace("\"content-type\"", "\"content-kind\"");
    assert!(matches!(mismatch(&retyped), Mismatch::Signature(_)));
    let renamed = text.replace("(export \"validate\" (func $f)", "(export \"check\" (func $f)");
    assert!(matches!(mismatch(&renamed), Mismatch::Signature(_)));
}

#[test]
fn a_plugin_that_starts_with_too_much_memory_is_refused() {
    let result = compile(&engine(), &Wat::validator(OK).with_memory("1025").bytes());
    let Err(Error::WorldMismatch(Mismatch::Resources { what, limit, .. })) = result else {
        panic!("{result:?}");
    };
    assert_eq!((what, limit), ("bytes of memory", 64 << 20));
}
