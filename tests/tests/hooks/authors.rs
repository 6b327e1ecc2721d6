//! From an idea to a rule in force: what `brink plugin new` makes builds, passes its cases and judges, in each language.

use std::path::Path;

use brink_tests::{Cluster, brink, plugin_wasm};
use serde_json::json;

/// What an author types, from a clean directory to a write that is refused.
async fn an_author_gets_from_an_idea_to_a_rule(language: &str) {
    let cluster = Cluster::start(1).await;
    let node = cluster.client(0);
    let url = node.url.as_str();
    let dir = tempfile::tempdir().unwrap();
    let (name, project) = (format!("my-{language}"), dir.path().join("project"));
    let project = project.to_str().unwrap();

    brink(url, &["plugin", "new", &name, "--lang", language, "--dir", project]).expect(0);
    let early = brink(url, &["plugin", "test", project]).expect(2);
    assert!(early.err.contains("brink plugin build"), "{early:?}");
    brink(url, &["plugin", "build", project]).expect(0);
    let component = Path::new(project).join(format!("build/{name}.wasm"));
    let component = component.to_str().unwrap();

    let tested = brink(url, &["plugin", "test", project]).expect(0);
    assert!(tested.out.ends_with("5 cases, 0 failed\n"), "{tested:?}");
    let inspected = brink(url, &["plugin", "inspect", project]).expect(0);
    assert!(inspected.out.contains("validator: it cannot change values"), "{inspected:?}");
    let run =
        brink(url, &["plugin", "run", project, "--key", "k", "--json", "{}", "--config", r#"{"required": ["a"]}"#]);
    assert!(run.expect(4).err.contains("/a: "));

    brink(url, &["plugin", "deploy", &name, component]).expect(0);
    let config = r#"{"required": ["name", "email"]}"#;
    brink(url, &["plugin", "bind", &name, "--plugin", &name, "--prefix", "users/", "--config", config]).expect(0);
    let refused = node.put("users/ben", &json!({"name": "Ben"})).await.expect(422);
    assert_eq!(refused.json["violations"][0]["path"], "/email", "{refused:?}");
    node.put("users/ann", &json!({"name": "Ann", "email": "ann@example.org"})).await.expect(201);
    let bad = brink(url, &["plugin", "bind", "other", "--plugin", &name, "--config", r#"{"required": []}"#]).expect(4);
    assert!(bad.err.contains("/required"), "{bad:?}");
}

#[tokio::test]
async fn an_author_gets_from_an_idea_to_a_rule_in_rust() {
    an_author_gets_from_an_idea_to_a_rule("rust").await;
}

#[tokio::test]
async fn an_author_gets_from_an_idea_to_a_rule_in_javascript() {
    an_author_gets_from_an_idea_to_a_rule("js").await;
}

#[tokio::test]
async fn an_author_gets_from_an_idea_to_a_rule_in_python() {
    an_author_gets_from_an_idea_to_a_rule("python").await;
}

#[tokio::test]
async fn a_failed_case_shows_what_was_expected_and_what_was_found() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = dir.path().join("normalize.wasm");
    std::fs::write(&wasm, plugin_wasm("normalize")).unwrap();
    let cases = dir.path().join("cases.toml");
    let text = r#"
        config = '{"trim": ["/name"]}'
        [[case]]
        name = "names are trimmed"
        key = "a"
        json = '{"name": " Ann "}'
        expect = "accept"
        becomes = '{"name": "Ann"}'
        [[case]]
        name = "this is wrong"
        key = "b"
        json = '{"name": " Ben "}'
        expect = "accept"
        becomes = '{"name": " Ben "}'
    "#;
    std::fs::write(&cases, text).unwrap();
    let (wasm, cases) = (wasm.to_str().unwrap(), cases.to_str().unwrap());
    let run = brink("", &["plugin", "test", wasm, "--cases", cases]).expect(1);
    assert!(run.out.contains("ok    names are trimmed") && run.out.contains("FAIL  this is wrong"), "{run:?}");
    assert!(run.out.contains("-     \"name\": \" Ben \"") && run.out.contains("+     \"name\": \"Ben\""), "{run:?}");
    assert!(run.out.contains("2 cases, 1 failed"), "{run:?}");
}
