//! Tests of how nodes prove themselves.

use futures::FutureExt as _;

use super::*;

const OLD: &str = "old-secret-old-secret-old-secret";
const NEW: &str = "new-secret-new-secret-new-secret";
const REQUEST: (&str, &str) = ("POST", "/peer/line");

fn node(url: &str, secrets: &str) -> Credentials {
    Credentials::new(url, Some(Secrets::parse(secrets).unwrap()), false)
}

/// Who `called` takes `caller` for, after they went through all steps.
fn meet(caller: &Credentials, called: &Credentials) -> Option<Caller> {
    let greeting = caller.greet().unwrap();
    let (challenge, nonce, proof) = called.challenge(greeting.clone()).unwrap()?;
    let proof = caller.respond(&greeting, &called.0.own_url, (&nonce, &proof), REQUEST)?;
    called.admit(Some(challenge), Some(&proof), REQUEST)
}

#[test]
fn nodes_with_a_common_secret_know_each_other() {
    let admitted = meet(&node("a", OLD), &node("b", OLD)).unwrap();
    assert!(admitted.may_speak_for("a") && !admitted.may_speak_for("b"), "{admitted:?}");
    for (caller, called) in [(OLD, NEW), (NEW, OLD)] {
        assert_eq!(meet(&node("a", caller), &node("b", called)), None);
    }
    assert_eq!(meet(&Credentials::new("a", None, true), &node("b", OLD)), None);
}

#[test]
fn secrets_are_exchanged_in_three_steps() {
    let steps = [OLD.to_owned(), format!("{OLD}\n{NEW}"), format!("{NEW}\n{OLD}"), NEW.to_owned()];
    for (index, step) in steps.iter().enumerate() {
        for other in &steps[index..(index + 2).min(steps.len())] {
            let (one, another) = (node("a", step), node("b", other));
            assert!(meet(&one, &another).is_some() && meet(&another, &one).is_some(), "step {index}");
        }
    }
}

/// A caller and a called node in the middle of their exchange, with the nonce and the proof of the latter.
fn half_way() -> (Credentials, Credentials, Greeting, Challenge, (String, String)) {
    let (caller, called) = (node("a", OLD), node("b", OLD));
    let greeting = caller.greet().unwrap();
    let (challenge, nonce, proof) = called.challenge(greeting.clone()).unwrap().unwrap();
    (caller, called, greeting, challenge, (nonce, proof))
}

#[test]
fn a_proof_is_good_for_one_request_at_one_node() {
    let (caller, called, greeting, challenge, (nonce, proof)) = half_way();
    let own = caller.respond(&greeting, "b", (&nonce, &proof), REQUEST).unwrap();
    // Of another request, by another challenge, of another node, or without a challenge.
    let other = || called.challenge(greeting.clone()).unwrap().unwrap().0;
    assert_eq!(called.admit(Some(other()), Some(&own), REQUEST), None);
    for request in [("GET", REQUEST.1), (REQUEST.0, "/peer/snapshot")] {
        let Challenge { greeting, called_nonce } = &challenge;
        let again = Challenge { greeting: greeting.clone(), called_nonce: *called_nonce };
        assert_eq!(called.admit(Some(again), Some(&own), request), None);
    }
    assert_eq!(node("c", OLD).admit(Some(challenge), Some(&own), REQUEST), None);
    assert_eq!(called.admit(None, Some(&own), REQUEST), None);
    assert_eq!(called.admit(Some(other()), None, REQUEST), None);
    for malformed in ["", "?", "AAAA", &own[1..], &format!("{own}A")] {
        assert_eq!(called.admit(Some(other()), Some(malformed), REQUEST), None, "{malformed}");
    }
}

#[test]
fn a_stranger_learns_nothing_that_proves_it() {
    let (caller, called, greeting, challenge, (nonce, proof)) = half_way();
    // The proof of the called node, turned back on it.
    assert_eq!(called.admit(Some(challenge), Some(&proof), ("", "")), None);
    // A proof that a node gave to somebody else, who passes it on: it names the node it came from, and whom it was for.
    assert_eq!(caller.respond(&greeting, "c", (&nonce, &proof), REQUEST), None);
    assert_eq!(caller.respond(&caller.greet().unwrap(), "b", (&nonce, &proof), REQUEST), None);
    assert_eq!(node("c", OLD).respond(&Greeting { url: "c".into(), ..greeting }, "b", (&nonce, &proof), REQUEST), None);
}

#[test]
fn a_node_that_is_open_serves_anyone_whatever_they_prove() {
    let open = Credentials::new("b", Some(Secrets::parse(OLD).unwrap()), true);
    assert_eq!(open.admit(None, None, REQUEST), Some(Caller::Anyone));
    assert!(Caller::Anyone.may_speak_for("any"));
    let other = open.challenge(node("a", NEW).greet().unwrap()).unwrap().unwrap().0;
    assert_eq!(open.admit(Some(other), Some("wrong"), REQUEST), Some(Caller::Anyone));
    assert!(matches!(meet(&node("a", OLD), &open), Some(Caller::Node { .. })));
}

#[test]
fn what_was_proved_by_a_secret_ends_with_it() {
    let called = node("b", &format!("{OLD}\n{NEW}"));
    let admitted = meet(&node("a", OLD), &called).unwrap();
    let before = called.proves_by();
    called.replace(Secrets::parse(&format!("{NEW}\n{OLD}")).unwrap());
    assert_ne!(called.proves_by(), before);
    assert_eq!(called.withdrawn(admitted.secret()).now_or_never(), None);
    called.replace(Secrets::parse(NEW).unwrap());
    assert_eq!(called.withdrawn(admitted.secret()).now_or_never(), Some(()));
}

#[test]
fn a_called_node_is_known_by_the_secret_that_it_proved() {
    let (caller, called) = (node("a", &format!("{NEW}\n{OLD}")), node("b", OLD));
    let greeting = caller.greet().unwrap();
    let (_, nonce, proof) = called.challenge(greeting.clone()).unwrap().unwrap();
    let secret = caller.recognize(&greeting, "b", (&nonce, &proof));
    assert_eq!(secret, called.proves_by());
    assert_eq!(caller.withdrawn(secret).now_or_never(), None);
    caller.replace(Secrets::parse(NEW).unwrap());
    assert_eq!(caller.withdrawn(secret).now_or_never(), Some(()));
    assert_eq!(caller.withdrawn(None).now_or_never(), None);
}

#[test]
fn a_greeting_is_bounded() {
    let nonce = node("a", OLD).greet().unwrap().nonce();
    assert!(Greeting::of_headers(&nonce, &"u".repeat(MEMBER_URL_BYTES_MAX)).is_some());
    assert!(Greeting::of_headers(&nonce, &"u".repeat(MEMBER_URL_BYTES_MAX + 1)).is_none());
}

#[test]
fn secrets_are_one_or_two_lines_of_enough_characters() {
    let secret = Secrets::generate().unwrap();
    assert!(secret.len() >= SECRET_CHARS_MIN && secret != Secrets::generate().unwrap());
    for text in [secret.clone(), format!("{secret}\n"), format!("\r\n {OLD}\r\n\n{secret}")] {
        assert!(Secrets::parse(&text).is_ok(), "{text}");
    }
    for (text, error) in [
        ("", SecretsError::Empty),
        (" \n\n", SecretsError::Empty),
        (&format!("{OLD}\n{NEW}\n{secret}"), SecretsError::TooMany),
        (&OLD[1..], SecretsError::Malformed),
        (&format!("{OLD} {NEW}"), SecretsError::Malformed),
        (&"x".repeat(SECRET_CHARS_MAX + 1), SecretsError::Malformed),
        (&format!("{OLD}\u{e9}"), SecretsError::Malformed),
    ] {
        assert_eq!(Secrets::parse(text).err(), Some(error), "{text}");
    }
    assert!(!format!("{:?}", Secrets::parse(OLD).unwrap()).contains(OLD));
}
