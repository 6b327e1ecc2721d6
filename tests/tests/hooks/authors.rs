//! The way of a plugin's author in each language: `brink plugin new`, build, test, deploy, bind.

use std::path::Path;

use brink_tests::{Cluster, brink, brink_compiling, plugin_wasm};
use serde_json::json;

/// Runs an author's commands, from an empty directory to a refused write.
async fn check_the_authors_commands(language: &str) {
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

    brink_compiling(url, &["plugin", "deploy", &name, component]).expect(0);
    let config = r#"{"required": ["name", "email"]}"#;
    let bind = ["plugin", "bind", &name, "--plugin", &name, "--prefix", "users/", "--config", config];
    // A generous deadline: this test does not measure time.
    brink_compiling(url, &[&bind[..], &["--deadline-ms", "5000"]].concat()).expect(0);
    let refused = node.put("users/ben", &json!({"name": "Ben"})).await.expect(422);
    assert_eq!(refused.json["violations"][0]["path"], "/email", "{refused:?}");
    node.put("users/ann", &json!({"name": "Ann", "email": "ann@example.org"})).await.expect(201);
    let bad = brink(url, &["plugin", "bind", "other", "--plugin", &name, "--config", r#"{"required": []}"#]).expect(4);
    assert!(bad.err.contains("/required"), "{bad:?}");
}

#[tokio::test]
async fn a_new_rust_plugin_builds_passes_its_cases_and_judges() {
    check_the_authors_commands("rust").await;
}

#[tokio::test]
async fn a_new_javascript_plugin_builds_passes_its_cases_and_judges() {
    check_the_authors_commands("js").await;
}

#[tokio::test]
async fn a_new_python_plugin_builds_passes_its_cases_and_judges() {
    check_the_authors_commands("python").await;
}

#[tokio::test]
async fn a_failed_case_shows_the_expected_and_the_actual_value() {
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
