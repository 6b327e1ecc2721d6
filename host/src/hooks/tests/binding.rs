//! What is a hook, and what is refused as none.

use super::*;

#[test]
fn a_wrong_binding_is_told_field_value_and_what_is_allowed() {
    for (json, field) in [
        (r#"{"plugin":"UPPER"}"#, "plugin"),
        (r#"{"plugin":"p","digest":"abc"}"#, "digest"),
        (r#"{"plugin":"p","operations":[]}"#, "operations"),
        (r#"{"plugin":"p","operations":["put","put"]}"#, "operations"),
        (r#"{"plugin":"p","output_bytes":4095}"#, "output_bytes"),
        (r#"{"plugin":"p","deadline_ms":0}"#, "deadline_ms"),
        (r#"{"plugin":"p","deadline_ms":10001}"#, "deadline_ms"),
        (r#"{"plugin":"p","memory_bytes":1}"#, "memory_bytes"),
        (r#"{"plugin":"p","priority":1}"#, "hook"),
        (r#"{"plugin":"p","mode":"maybe"}"#, "hook"),
        (r#"{}"#, "hook"),
        (r#"{"plugin":"p","plugin":"q"}"#, "hook"),
        (r#"{"plugin":"p","config":{"a":1,"a":2}}"#, "hook"),
        (r#"{"plugin":"p","config":[{"a":{"b":1,"\u0062":2}}]}"#, "hook"),
        (r#"{"plugin":"p","config":"\ud800"}"#, "hook"),
    ] {
        match Binding::parse(json.as_bytes()) {
            Err(Error::BindingInvalid { field: found, .. }) => assert_eq!(found, field, "{json}"),
            other => panic!("{json}: {other:?}"),
        }
    }
}

#[test]
fn a_stored_binding_reads_back_as_it_was() {
    let hook = hook(&runtime(), "h", &Wat::validator(OK), r#"{"prefix":"a/","config":{"x":1}}"#);
    let stored = serde_json::to_vec(hook.binding()).unwrap();
    assert_eq!(&Binding::parse(&stored).unwrap(), hook.binding());
    assert_eq!(hook.binding().digest.as_deref(), Some(hook.plugin().digest()));
}

/// What was stored before the rule for JSON held for hooks.
#[test]
fn a_stored_binding_may_have_a_member_twice() {
    let stored: Binding = serde_json::from_str(r#"{"plugin":"p","config":{"a":1,"a":2}}"#).unwrap();
    assert_eq!(stored.config, serde_json::json!({"a": 2}));
}

#[test]
fn a_hook_for_another_digest_is_refused() {
    let runtime = runtime();
    let plugin = runtime.compile("p", &Wat::validator(OK).bytes(), &CompileOptions::default()).unwrap();
    let other = format!(r#"{{"digest":"{}"}}"#, "0".repeat(64));
    assert!(matches!(runtime.load("h", binding(&other), &plugin), Err(Error::PluginMissing { .. })));
}

#[test]
fn a_configuration_is_refused_in_the_plugins_own_words() {
    let runtime = runtime();
    let mut wat = Wat::validator(OK).with_configure("(i32.const 2048)");
    wat.data = r#"(data (i32.const 2048) "\01\00\00\00\34\08\00\00\02\00\00\00\36\08\00\00\03\00\00\00")
                  (data (i32.const 2100) "/abad")"#
        .to_owned();
    let plugin = runtime.compile("p", &wat.bytes(), &CompileOptions::default()).unwrap();
    let error = runtime.bind("h", binding("{}"), &plugin).unwrap_err();
    let Failure::ConfigRefused { path, message } = failure(error) else { panic!() };
    assert_eq!((path.as_str(), message.as_str()), ("/a", "bad"));
    // What one node accepted, another loads without asking again.
    assert!(runtime.load("h", binding("{}"), &plugin).is_ok());
}
