//! Tests of the parts of requests: parameters, keys, conditions and types.

use super::*;
use crate::api::access::Rights;

#[test]
fn unknown_and_repeated_parameters_are_refused() {
    assert!(parameters::<Consistency>("consistensy=local").is_err());
    assert!(parameters::<Consistency>("consistency=local&consistency=local").is_err());
    assert!(parameters::<()>("").is_ok());
    assert!(parameters::<()>("consistency=local").is_err());
    let mut values = Values(vec![("limit".into(), "1".into()), ("reverse".into(), "".into())]);
    assert_eq!(values.text("limit").unwrap(), "1");
    assert!(values.flag("reverse").unwrap());
}

struct Text(Option<String>);

impl Parameters for Text {
    const NAMES: &'static [&'static str] = &["text", "é"];

    fn from_values(values: &mut Values<'_>) -> Result<Self, Problem> {
        Ok(Self(values.text("text")))
    }
}

#[test]
fn a_parameter_is_decoded_or_refused_by_its_name() {
    let text = |query: &str| parameters::<Text>(query).map(|Text(text)| text);
    for (query, expected) in [
        ("", None),
        ("&&", None),
        ("%C3%A9=1", None),
        ("text", Some("")),
        ("text=", Some("")),
        ("&text=a&", Some("a")),
        ("te%78t=a%20b+c%2Bd", Some("a b c+d")),
        ("text=a=b;c", Some("a=b;c")),
        ("text=%C3%A9é", Some("éé")),
        ("text=%25ff", Some("%ff")),
        ("text=%00", Some("\0")),
    ] {
        assert_eq!(text(query).unwrap().as_deref(), expected, "{query}");
    }
    for wrong in ["%ff", "a%ffb", "%ed%a0%80", "%c3", "%C3%28", "+%ff", "%f8%88%80%80%80"] {
        let refused = format!("{:?}", text(&format!("text={wrong}")).unwrap_err());
        assert!(refused.contains(r#"the parameter \"text\" is not UTF-8"#), "{refused}");
    }
    for wrong in ["%", "a%4", "%zz", "%%41", "%+1", "%é"] {
        let refused = format!("{:?}", text(&format!("text={wrong}")).unwrap_err());
        assert!(refused.contains(r#"the parameter \"text\" has a %"#), "{refused}");
    }
    for wrong in ["%ff=1", "te%xt"] {
        assert!(text(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_a_form_encodes_is_decoded_as_it_was() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..10_000 {
        let text: String = (0..random.usize(..8)).map(|_| random.char('\0'..='\u{2ff}')).collect();
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("text", &text).finish();
        assert_eq!(parameters::<Text>(&query).unwrap().0.unwrap(), text, "{query}");
    }
}

#[test]
fn consistency_is_strong_or_local_or_absent() {
    assert_eq!(parameters::<Consistency>("").unwrap(), Consistency::Prompt);
    assert_eq!(parameters::<Consistency>("consistency=strong").unwrap(), Consistency::Strong);
    assert_eq!(parameters::<Consistency>("consistency=local").unwrap(), Consistency::Local);
    assert!(parameters::<Consistency>("consistency=eventual").is_err());
}

#[test]
fn a_key_is_what_the_path_says_without_one_trailing_slash() {
    let key = |path: &str| key(&format!("{BASE_PATH}/kv/{path}").parse().unwrap());
    for (path, expected) in [("a/", "a"), ("a/b", "a/b"), ("a%2Fb%20c%2F/", "a/b c/"), ("%C3%A9", "é")] {
        assert_eq!(key(path).unwrap(), expected);
    }
    for wrong in ["%FF", "%ED%A0%80", "a%", "%4", "%zz", "%+1", "%C3%28", "/"] {
        assert!(key(wrong).is_err(), "{wrong}");
    }
    assert_eq!(key("%25zz").unwrap(), "%zz");
    assert_eq!(key("a+b").unwrap(), "a+b");
    assert!(key(&"k".repeat(1024)).is_ok());
    assert!(key(&"k".repeat(1025)).is_err());
}

fn headers(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
}

#[test]
fn entity_tags_are_revisions() {
    let fact = |name, value| preconditions(&headers(name, value), "k").map(|mut all| all.remove(0).fact);
    let revision = |revision| Fact::Revision { key: "k".into(), revision };
    assert_eq!(fact("if-match", "\"7\"").unwrap(), revision(Some(7)));
    assert_eq!(fact("if-match", "*").unwrap(), Fact::Exists { key: "k".into() });
    assert_eq!(fact("if-none-match", "*").unwrap(), revision(None));
    assert_eq!(fact("if-match", "\"7-raw\"").unwrap(), revision(Some(7)));
    assert!(fact("if-match", "7").is_err());
    assert!(fact("if-match", "\"7-row\"").is_err());
    assert!(fact("if-match", "\"-raw\"").is_err());
    assert!(fact("if-none-match", "\"7\"").is_err());
    assert!(preconditions(&HeaderMap::new(), "k").unwrap().is_empty());
    assert!(has_already(&headers("if-none-match", "\"6\", W/\"7\""), 7, Form::Json));
    assert!(has_already(&headers("if-none-match", "*"), 7, Form::Json));
    assert!(!has_already(&headers("if-none-match", "\"6\""), 7, Form::Json));
    assert!(!has_already(&HeaderMap::new(), 7, Form::Json));
}

#[test]
fn the_forms_of_an_entry_have_different_entity_tags() {
    assert_eq!((&*etag(7, Form::Json), &*etag(7, Form::Raw)), ("\"7\"", "\"7-raw\""));
    for (named, json, raw) in [
        ("\"7\"", true, false),
        ("\"7-raw\"", false, true),
        ("W/\"7-raw\", \"7\"", true, true),
        ("*", true, true),
        ("\"6-raw\", \"6\"", false, false),
    ] {
        let headers = headers("if-none-match", named);
        let has = (has_already(&headers, 7, Form::Json), has_already(&headers, 7, Form::Raw));
        assert_eq!(has, (json, raw), "{named}");
    }
    let accepted = |accept| accepted(&headers("accept", accept), &Value::of_type("image/png", vec![0].into()));
    for raw in ["application/octet-stream", "text/html, Image/PNG; q=0.5"] {
        assert_eq!(accepted(raw), Form::Raw, "{raw}");
    }
    for json in ["application/json", "*/*", "image/*", ""] {
        assert_eq!(accepted(json), Form::Json, "{json}");
    }
}

#[test]
fn a_post_says_that_it_is_json_and_no_body_is_compressed() {
    let is_taken = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let builder = Request::builder().method(method).uri(format!("{BASE_PATH}{path}"));
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        check_body_type(&builder.body(()).unwrap().into_parts().0).is_ok()
    };
    let lines = "application/x-ndjson";
    for (path, content_type, taken) in [
        ("/kv/batch/", "application/json", true),
        ("/kv/batch", "Application/JSON; charset=utf-8", true),
        ("/kv/batch/", lines, false),
        ("/hooks/stream/rollback/", lines, false),
        ("/kv/stream", "application/json", true),
        ("/kv/stream/", lines, true),
        ("/kv/stream/", "", false),
        ("/cluster/members/", "text/plain", false),
        ("/cluster/members/", "text/plain; application/json", false),
        ("/cluster/members/", "application/x-www-form-urlencoded", false),
        ("/cluster/members/", "multipart/form-data; boundary=a", false),
    ] {
        assert_eq!(is_taken("POST", path, &[("content-type", content_type)]), taken, "{path} {content_type}");
    }
    assert!(!is_taken("POST", "/hooks/a/rollback/", &[]));
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        assert!(is_taken(method, "/kv/a/", &[]), "{method}");
    }
    let json = ("content-type", "application/json");
    for (encodings, taken) in [
        (&[("content-encoding", "identity")][..], true),
        (&[("content-encoding", "Identity")], true),
        (&[("content-encoding", "gzip")], false),
        (&[("content-encoding", "")], false),
        (&[("content-encoding", "identity"), ("content-encoding", "br")], false),
    ] {
        for method in ["PUT", "POST"] {
            assert_eq!(is_taken(method, "/kv/batch/", &[encodings, &[json]].concat()), taken, "{encodings:?}");
        }
    }
}

#[test]
fn a_header_that_is_no_list_is_there_once() {
    let twice = |name: &'static str, values: [&'static str; 2]| {
        let name = HeaderName::from_static(name);
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), value.parse().unwrap());
        }
        headers
    };
    assert!(preconditions(&twice("if-match", ["\"7\"", "\"8\""]), "k").is_err());
    assert!(preconditions(&twice("if-none-match", ["*", "*"]), "k").is_err());
    assert!(author(&twice("brink-user", ["ann", "ben"])).is_err());
    assert!(idempotency_key(&twice("idempotency-key", ["a", "a"])).is_err());
    assert!(has_already(&twice("if-none-match", ["\"6\"", "\"7\""]), 7, Form::Json));
    assert!(prefers_minimal(&twice("prefer", ["wait=1", "return=minimal"])));
}

#[test]
fn an_author_is_printable() {
    let by = |name| author(&headers("brink-user", name)).map(|author| author.by.unwrap());
    assert_eq!(by("Ann B. <ann@example.org>").unwrap(), "Ann B. <ann@example.org>");
    for wrong in ["", "a\tb", "é"] {
        assert!(by(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_malformed_object_is_refused_with_its_shape() {
    let refused = json::<Vec<u8>>(b"[", "[<numbers>]").unwrap_err();
    assert!(format!("{refused:?}").contains("the body must be [<numbers>]: EOF"), "{refused:?}");
}

#[test]
fn a_key_is_decoded_before_it_is_compared_with_a_grant() {
    let grant = Grant::new(Rights::WRITE, Some(["users/é".to_owned()].into()));
    let key_in = |path: &str| key_for(&grant, &format!("{BASE_PATH}/kv/{path}").parse().unwrap());
    for path in ["users/%C3%A9", "users%2f%c3%a9/", "%75sers/%C3%A9/"] {
        assert_eq!(key_in(path).unwrap(), "users/é", "{path}");
    }
    for path in ["users", "users/e", "users%252f%C3%A9", "a", "a/../users/%C3%A9", "/users/%C3%A9"] {
        let refused = key_in(path).unwrap_err().render("");
        assert_eq!(refused.status(), 403, "{path}");
    }
    assert_eq!(key_in("users/%ff").unwrap_err().render("").status(), 400);
}
