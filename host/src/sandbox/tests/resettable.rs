//! Which components cannot be made resettable, and why.

use super::super::instance::resettable::resettable;
use super::*;

#[test]
fn a_component_with_state_that_cannot_be_reached_cannot_be_reset() {
    let module = |text: &str| format!("(component (core module $m {text}) (core instance (instantiate $m)))");
    let cases = [
        (module(r#"(memory (export "m") 1) (func $f) (start $f)"#), "runs code"),
        (module("(memory 1)"), "without exports"),
        (module(r#"(memory (export "brink-memory-0") 1)"#), "names that begin with"),
        (module(r#"(global (mut i32) (i32.const 0)) (func (export "f"))"#), "no memory"),
        (module(r#"(memory (export "a") 1) (memory (export "b") 1)"#), "more than one"),
        (module(r#"(memory (export "m") 1 1 shared)"#), "unusual"),
        (module(r#"(memory (export "m") i64 1)"#), "unusual"),
        (module(r#"(memory (export "m") 1) (global (mut funcref) (ref.null func))"#), "unusual"),
        (
            r#"(component (core module $m (memory (export "m") 1)) (core instance (instantiate $m)) (core instance (instantiate $m)))"#
                .to_owned(),
            "twice",
        ),
        (
            r#"(component (type $r (resource (rep i32))) (core func (canon resource.new $r))
                (core module $m (memory (export "m") 1)) (core instance (instantiate $m)))"#
                .to_owned(),
            "built-in",
        ),
        (
            r#"(component (component (type $r (resource (rep i32))) (core func (canon resource.new $r)))
                (core module $m (memory (export "m") 1)) (core instance (instantiate $m)))"#
                .to_owned(),
            "built-in",
        ),
        (
            r#"(component (component (core module $n (global (export "g") (mut i32) (i32.const 0))) (core instance (instantiate $n)))
                (core module $m (memory (export "m") 1)) (core instance (instantiate $m)))"#
                .to_owned(),
            "nested",
        ),
        (
            r#"(component (import "n" (core module $n)) (core instance (instantiate $n))
                (core module $m (memory (export "m") 1)) (core instance (instantiate $m)))"#
                .to_owned(),
            "elsewhere",
        ),
    ];
    for (text, reason) in cases {
        let error = resettable(&wat::parse_str(&text).unwrap()).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
    // Its parts are no different from these.
    let fine = resettable(&suspicious().bytes()).unwrap();
    assert!(resettable(&fine).is_err(), "two restorers would restore what the other saves");
}
