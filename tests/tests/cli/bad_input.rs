//! Invalid input is refused with one line that names the value and what is allowed, and leaves no files behind.

use std::net::TcpListener;

use brink_tests::{Cluster, brink, brink_with};

/// Runs `serve`, which must end with code 2 and one line that contains every text in `said`.
fn assert_refused(env: &[(&str, &str)], args: &[&str], said: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let mut all = vec!["serve", "--listen", "127.0.0.1:0", "--data-dir", data_dir.to_str().unwrap()];
    // A flag in `args` replaces the default one.
    for pair in args.chunks(2) {
        match all.iter().position(|known| *known == pair[0]) {
            Some(known) => all[known + 1] = pair[1],
            None => all.extend(pair),
        }
    }
    let run = brink_with(env, &all).expect(2);
    assert_eq!(run.err.lines().count(), 1, "{}", run.err);
    for text in said {
        assert!(run.err.contains(text), "{text:?} is not in: {}", run.err);
    }
    assert!(!data_dir.exists(), "the data directory was created");
}

#[test]
fn an_unknown_flag_is_named() {
    let run = brink("", &["serve", "--lisen", "127.0.0.1:1"]).expect(2);
    assert!(run.err.contains("--lisen") && run.err.contains("--listen"), "{}", run.err);
}

#[test]
fn a_malformed_address_is_named() {
    assert_refused(&[], &["--listen", "localhost"], &["--listen", "localhost", "127.0.0.1:8000"]);
}

#[test]
fn an_address_that_others_can_reach_needs_a_flag() {
    assert_refused(&[], &["--listen", "0.0.0.0:0"], &["0.0.0.0:0", "--anonymous"]);
    assert_refused(&[("BRINK_ANONYMOUS", "")], &["--listen", "0.0.0.0:0"], &["0.0.0.0:0", "--anonymous"]);
}

#[test]
fn an_unknown_right_is_named_with_those_that_are_known() {
    let known = "read, write, deploy, metrics, admin, peers, plain";
    assert_refused(&[], &["--anonymous", "read,all"], &["--anonymous", "\"all\"", known]);
    assert_refused(&[("BRINK_ANONYMOUS", "Read")], &[], &["--anonymous", "\"Read\"", known]);
}

#[test]
fn a_host_with_a_port_and_half_an_origin_are_named() {
    assert_refused(&[], &["--allow-host", "kv:80"], &["--allow-host", "kv:80", "without a port"]);
    assert_refused(&[("BRINK_ALLOW_HOST", "kv,*")], &[], &["--allow-host", "*", "without a port"]);
    assert_refused(&[], &["--allow-origin", "app.example.org"], &["--allow-origin", "app.example.org", "https://"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_refused(&[], &["--listen", &address], &["--listen", &address, "in use"]);
}

#[test]
fn an_unusable_data_directory_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().join("data");
    assert_refused(&[], &["--data-dir", path.to_str().unwrap()], &["--data-dir", path.to_str().unwrap()]);
}

#[test]
fn a_data_directory_in_use_by_another_node_is_named() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::start(1).await;
        let data_dir = cluster.nodes[0].data_dir();
        let run = brink("", &["serve", "--listen", "127.0.0.1:0", "--data-dir", data_dir.to_str().unwrap()]).expect(2);
        assert!(run.err.contains(data_dir.to_str().unwrap()), "{}", run.err);
    });
}

/// A node with two URLs.
const TWICE: &str = r#"[{"url":"http://node2:8000/kv-store/v1","url":"http://node3:8000/kv-store/v1"}]"#;

#[test]
fn malformed_replica_nodes_are_quoted_with_what_is_allowed() {
    for wrong in ["[", "node2", r#"{"url":"http://node2:8000/kv-store/v1"}"#, r#"["http://node2:8000"]"#, "[1]", TWICE]
    {
        assert_refused(&[("REPLICA_NODES", wrong)], &[], &["REPLICA_NODES", "http://node2:8000/kv-store/v1"]);
    }
}

#[test]
fn the_nodes_own_url_in_replica_nodes_is_named() {
    let url = "http://127.0.0.1:7999/kv-store/v1";
    let nodes = format!(r#"[{{"url":"{url}"}}]"#);
    assert_refused(&[("REPLICA_NODES", &nodes)], &["--advertise-url", url], &["REPLICA_NODES", url, "own"]);
}

#[test]
fn an_unknown_setting_in_the_file_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "lisen = \"127.0.0.1:1\"\n").unwrap();
    let path = file.path().to_str().unwrap();
    assert_refused(&[], &["--config", path], &[path, "lisen", "listen"]);
    assert_refused(&[], &["--config", "/nonexistent.toml"], &["/nonexistent.toml"]);
}

#[test]
fn an_invalid_value_of_a_setting_is_named() {
    assert_refused(&[], &["--log-format", "xml"], &["--log-format", "xml", "json"]);
    assert_refused(&[], &["--snapshot-entries", "1"], &["--snapshot-entries", "1", "10"]);
    assert_refused(&[("BRINK_LOG", "a=b=c")], &[], &["a=b=c"]);
    assert_refused(
        &[],
        &["--advertise-url", "https://n:1/kv-store/v1"],
        &["--advertise-url", "https://n:1", "http://"],
    );
}

#[test]
fn client_commands_check_their_arguments_before_they_send_a_request() {
    let nowhere = "http://127.0.0.1:1/kv-store/v1";
    assert!(brink(nowhere, &["kv", "put", "a", "not json"]).expect(2).err.contains("--content-type"));
    assert!(brink(nowhere, &["kv", "put", "a"]).expect(2).err.contains("VALUE"));
    assert!(brink("ftp://h", &["kv", "get", "a"]).expect(2).err.contains("ftp://h"));
    assert!(brink(nowhere, &["bench", "--clients", "0"]).expect(2).err.contains("--clients"));
    assert!(
        brink(nowhere, &["plugin", "deploy", "p", "/nonexistent.wasm"]).expect(2).err.contains("/nonexistent.wasm")
    );
    assert!(
        brink(nowhere, &["plugin", "bind", "h", "--plugin", "p", "--config", "{"]).expect(2).err.contains("--config")
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), r#"{"a": {"b": 1, "b": 2}}"#).unwrap();
    let path = file.path().to_str().unwrap();
    for config in [r#"{"a": 1, "a": 2}"#, &format!("@{path}")] {
        let refused = brink(nowhere, &["plugin", "bind", "h", "--plugin", "p", "--config", config]).expect(2);
        assert!(refused.err.contains("--config") && refused.err.contains("is there twice"), "{}", refused.err);
    }
    std::fs::write(file.path(), "{\"key\":\"a\",\"value\":1}\n{\"key\":\"a\",\"value\":{\"b\":1,\"b\":2}}\n").unwrap();
    let refused = brink(nowhere, &["kv", "import", path]).expect(2);
    assert!(refused.err.contains("line 2") && refused.err.contains("is there twice"), "{}", refused.err);
    let unreachable = brink(nowhere, &["kv", "get", "a"]).expect(1);
    assert!(unreachable.err.contains(nowhere), "{}", unreachable.err);
}
