//! What others wrote is shown as text, and orders nothing of a terminal.

use brink_tests::{Cluster, brink, brink_on_terminal};

/// A key that clears the screen, shows a second entry, and turns the text after it.
const KEY: &str = "x/\u{1b}[2J\nfake 1\u{9b}2J\u{202e}";

/// The same as it is shown.
const SHOWN_KEY: &str = r"x/\u{1b}[2J\nfake 1\u{9b}2J\u{202e}";

/// A value that renames the window.
const VALUE: &str = "a\tb\n\u{1b}]0;title\u{7}";

/// The same as a terminal shows it.
const SHOWN_VALUE: &str = "a\tb\r\n\\u{1b}]0;title\\u{7}";

/// Whether a terminal would obey something in an output.
fn has_orders(out: &str) -> bool {
    out.contains(|char: char| char.is_control() && !matches!(char, '\n' | '\r' | '\t') || char == '\u{202e}')
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_sentences_and_errors_show_control_characters() {
    let cluster = Cluster::start(1).await;
    let url = cluster.nodes[0].url.as_str();
    let written = brink(url, &["kv", "put", KEY, "1"]).expect(0).out;
    assert_eq!(written, format!("{SHOWN_KEY} version 1, revision 1\n"));
    let table = brink(url, &["kv", "list", "--prefix", "x/"]).expect(0).out;
    assert!(table.lines().count() == 2 && table.contains(SHOWN_KEY) && !has_orders(&table), "{table:?}");
    // The columns are as wide as what is shown.
    let columns: Vec<_> =
        table.lines().map(|line| line.find(if line.starts_with("KEY") { "VERSION" } else { " 1 " })).collect();
    assert_eq!(columns[0], columns[1].map(|at| at + 1), "{table}");
    let usage = brink(url, &["plugin", "deploy", "p", "/no\u{1b}[2J"]).expect(2).err;
    assert!(usage.contains(r"/no\u{1b}[2J") && !has_orders(&usage), "{usage:?}");
    let refused = brink(url, &["plugin", "unbind", KEY]);
    assert!(refused.code > 2 && refused.err.lines().count() == 1 && !has_orders(&refused.err), "{refused:?}");

    // For programs, everything is as it was written.
    let json = brink(url, &["kv", "list", "--prefix", "x/", "-o", "json"]).expect(0).out;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["key"], KEY);
    assert!(json.contains('\u{9b}'), "{json:?}");
    let on_terminal = brink_on_terminal(url, &["kv", "list", "--prefix", "x/", "-o", "json"]);
    assert!(!has_orders(&on_terminal), "{on_terminal:?}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&on_terminal).unwrap()["key"], KEY);
    let exported = brink_on_terminal(url, &["kv", "export", "--prefix", "x/"]);
    assert!(!has_orders(&exported), "{exported:?}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&exported).unwrap()["key"], KEY);
    brink(url, &["kv", "del", KEY]).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_unchanged_in_a_pipe_and_shown_on_a_terminal() {
    let cluster = Cluster::start(1).await;
    let url = cluster.nodes[0].url.as_str();
    brink(url, &["kv", "put", "note", VALUE, "--content-type", "text/plain"]).expect(0);
    assert_eq!(brink(url, &["kv", "get", "note"]).expect(0).out, VALUE);
    assert_eq!(brink_on_terminal(url, &["kv", "get", "note"]), SHOWN_VALUE);
    assert_eq!(brink_on_terminal(url, &["kv", "get", "note", "--raw"]), VALUE.replace('\n', "\r\n"));

    brink(url, &["kv", "put", "json", "{\"a\": \"\u{9b}2J\"}"]).expect(0);
    assert_eq!(brink(url, &["kv", "get", "json"]).expect(0).out, "{\"a\":\"\u{9b}2J\"}\n");
    assert_eq!(brink_on_terminal(url, &["kv", "get", "json"]), "{\"a\":\"\\u009b2J\"}\r\n");
    let whole = brink_on_terminal(url, &["kv", "get", "json", "-o", "json"]);
    assert!(whole.contains(r"\u009b2J") && !has_orders(&whole), "{whole:?}");
}
