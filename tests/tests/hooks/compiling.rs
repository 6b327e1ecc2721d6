//! Compiling happens in a process of its own, which is bounded, and ends with whoever waits for it.

use std::collections::BTreeMap;
use std::io::{Seek as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use brink_tests::{Bomb, Client, Cluster, brink, eventually, leb128, plugin_wasm};
use rustix::process::Signal;
use serde_json::json;

use crate::repeated;

/// A component that compiles for far longer than any test waits.
const LONG: Bomb = Bomb { functions: 8, locals: 300, loops: 300, tables: 1 };

/// One whose shape alone says that it cannot be compiled.
const ABSURD: Bomb = Bomb { functions: 1, locals: 2_000, loops: 2_000, tables: 5 };

/// Time limit for a compiler to begin or to end. Only a guard: it would compile for far longer.
const SOON: Duration = Duration::from_secs(60);

/// Time limit of a refusal.
const REFUSAL_LIMIT: Duration = Duration::from_secs(30);

/// The compilers that a process has started, by their process ids.
fn compilers(parent: u32) -> Vec<u32> {
    let processes = Path::new("/proc").read_dir().unwrap().flatten();
    let ids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    let is_compiler = |id: &u32| {
        let read = |file| std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        // The name, in parentheses, may contain anything. After it come the state and the parent.
        let of_parent = read("stat")
            .rsplit_once(") ")
            .is_some_and(|(_, fields)| fields.split(' ').nth(1) == Some(&parent.to_string()));
        of_parent && read("cmdline").contains("compile-component")
    };
    ids.filter(is_compiler).collect()
}

fn is_running(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // A process that has ended may wait for somebody to ask for its exit code.
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

async fn compiler_of(node: u32) -> u32 {
    eventually(SOON, "a compiler runs", || async { compilers(node).first().copied() }).await
}

async fn ended(compiler: u32) {
    eventually(SOON, "the compiler has ended", || async { (!is_running(compiler)).then_some(()) }).await;
}

/// Uploads a component in the background.
fn upload(client: &Client, component: Vec<u8>) -> tokio::task::JoinHandle<Option<u16>> {
    let client = client.clone();
    let headers = [("content-type", "application/wasm")];
    tokio::spawn(async move {
        client.try_send("PUT", "/plugins/long/", &headers, component).await.ok().map(|answer| answer.status)
    })
}

/// The compiled code of a node, with the times at which it was written.
fn compiled(dir: &Path) -> BTreeMap<String, SystemTime> {
    let entries = dir.join("compiled").read_dir().unwrap().flatten();
    let entry = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().modified().unwrap())
    };
    entries.map(entry).collect()
}

#[tokio::test]
async fn a_component_of_absurd_shape_is_refused_at_once() {
    let cluster = Cluster::start(1).await;
    let began = Instant::now();
    let component = ABSURD.component();
    assert!(component.len() < 64 * 1024);
    let refused = cluster.client(0).put_plugin("absurd", component).await.expect(422).json;
    assert_eq!(refused["type"], "urn:brink:problem:not-a-plugin");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("too complex") && detail.contains("branches"), "{detail}");
    assert!(began.elapsed() < REFUSAL_LIMIT, "{:?}", began.elapsed());
    assert!(compilers(cluster.nodes[0].pid()).is_empty());
    assert_eq!(compiled(&cluster.nodes[0].data_dir()).len(), 0);
}

#[test]
fn inspect_refuses_such_a_component_as_a_node_does() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("absurd.wasm");
    std::fs::write(&file, ABSURD.component()).unwrap();
    let refused = brink("http://127.0.0.1:1", &["plugin", "inspect", file.to_str().unwrap()]).expect(4);
    assert!(refused.err.contains("too complex"), "{refused:?}");
}

#[tokio::test]
async fn inspect_leaves_nothing_behind_when_it_is_interrupted() {
    let (dir, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = dir.path().join("long.wasm");
    std::fs::write(&file, LONG.component()).unwrap();
    for signal in [Signal::INT, Signal::KILL] {
        // Shells start what runs in their background with SIGINT ignored, and every process below inherits that.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(brink_tests::brink_bin());
        command.args(["plugin", "inspect"]).arg(&file).env("TMPDIR", temporary.path());
        let mut inspect = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let compiler = compiler_of(inspect.id()).await;
        rustix::process::kill_process(rustix::process::Pid::from_child(&inspect), signal).unwrap();
        assert_eq!(inspect.wait().unwrap().signal(), Some(signal.as_raw()));
        ended(compiler).await;
        let left: Vec<_> = temporary.path().read_dir().unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_compiler() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let upload = upload(cluster.client(0), LONG.component());
    let compiler = compiler_of(node.pid()).await;
    upload.abort();
    ended(compiler).await;
    // Neither the node nor its folder remembers it.
    cluster.client(0).put_plugin("normalize", plugin_wasm("normalize")).await.expect(200);
    assert!(compilers(node.pid()).is_empty());
    assert_eq!(compiled(&node.data_dir()).len(), 1);
}

#[tokio::test]
async fn a_node_that_stops_does_not_wait_for_its_compiler() {
    let mut cluster = Cluster::start(1).await;
    let upload = upload(cluster.client(0), LONG.component());
    let compiler = compiler_of(cluster.nodes[0].pid()).await;
    let began = Instant::now();
    assert!(cluster.nodes[0].stop());
    // Requests that are under way have five seconds, and are then cut off.
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert!(!cluster.nodes[0].log().contains("some requests were cut off"), "{}", cluster.nodes[0].log());
    ended(compiler).await;
    assert_eq!(upload.await.unwrap(), Some(503));
}

#[tokio::test]
async fn a_compiler_does_not_outlive_its_node() {
    let mut cluster = Cluster::start(1).await;
    let _upload = upload(cluster.client(0), LONG.component());
    let compiler = compiler_of(cluster.nodes[0].pid()).await;
    cluster.nodes[0].kill();
    ended(compiler).await;
    // What it has left goes when the node starts.
    cluster.nodes[0].start();
    cluster.ready().await;
    assert_eq!(compiled(&cluster.nodes[0].data_dir()).len(), 0);
}

/// Compiles the component within these limits, as a node would, and returns the exit status and the words.
fn compile(component: &[u8], limits: &[&str]) -> (ExitStatus, String) {
    let mut input = tempfile::tempfile().unwrap();
    // The job: compile; then the length of the component.
    let job = [vec![0], leb128(component.len())].concat();
    input.write_all(&[&job, component].concat()).unwrap();
    input.rewind().unwrap();
    let output = tempfile::tempfile().unwrap();
    let mut command = Command::new(brink_tests::brink_bin());
    command.args(["compile-component", "--parent", &std::process::id().to_string()]).args(limits);
    let child = command.stdin(input).stdout(output).stderr(Stdio::piped()).spawn().unwrap();
    let ended = child.wait_with_output().unwrap();
    (ended.status, String::from_utf8_lossy(&ended.stderr).into_owned())
}

#[test]
fn the_limits_of_a_compiler_end_it() {
    let plugin = plugin_wasm("normalize");
    assert!(compile(&plugin, &[]).0.success());
    assert_eq!(compile(&LONG.component(), &["--cpu-s", "1"]).0.signal(), Some(Signal::XCPU.as_raw()));
    let (status, words) = compile(&LONG.component(), &["--memory-bytes", "67108864"]);
    assert!(!status.success() && words.contains("memory allocation of"), "{status} {words}");
    assert_eq!(compile(&plugin, &["--code-bytes", "4096"]).0.signal(), Some(Signal::XFSZ.as_raw()));
}

#[tokio::test]
async fn a_compiler_of_a_node_is_limited_and_yields() {
    let cluster = Cluster::start(1).await;
    let upload = upload(cluster.client(0), LONG.component());
    let compiler = compiler_of(cluster.nodes[0].pid()).await;
    // The class is the 41st field, the 39th after the name; 5 is the idle class.
    eventually(SOON, "it runs when nothing else wants to", || async {
        let stat = std::fs::read_to_string(format!("/proc/{compiler}/stat")).unwrap_or_default();
        let (_, fields) = stat.rsplit_once(") ")?;
        (fields.split(' ').nth(38) == Some("5")).then_some(())
    })
    .await;
    let limits = std::fs::read_to_string(format!("/proc/{compiler}/limits")).unwrap();
    for limit in ["Max cpu time", "Max data size", "Max file size"] {
        let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
        assert!(!line.contains("unlimited"), "{line}");
    }
    upload.abort();
    ended(compiler).await;
}

#[tokio::test]
async fn a_hook_is_pre_initialized_on_every_node_when_it_is_acknowledged() {
    let mut cluster = Cluster::start(3).await;
    repeated(|| cluster.client(0).put_plugin("limits", plugin_wasm("limits"))).await.expect(200);
    // Nodes that do not answer in time are not waited for.
    cluster.healthy().await;
    let hook = json!({"plugin": "limits", "prefix": "n/", "config": {"depth_max": 0}, "deadline_ms": 5_000});
    repeated(|| cluster.client(1).put_json("/hooks/h/", &hook)).await.expect(200);
    let deep = json!([1]);
    for node in &cluster.nodes {
        let stats = node.client.get("/registry/stats/").await.expect(200).json;
        assert_eq!(stats["hooks"][0]["starts_configured"], true, "{}: {stats}", node.url);
        repeated(|| node.client.put("n/a", &deep)).await.expect(422);
    }
    // A node that starts again takes both from its disk.
    let before = compiled(&cluster.nodes[2].data_dir());
    assert_eq!(before.len(), 2, "{before:?}");
    assert!(cluster.nodes[2].stop());
    cluster.nodes[2].start();
    cluster.ready().await;
    eventually(SOON, "the hook is pre-initialized", || async {
        let stats = cluster.client(2).get("/registry/stats/").await.expect(200).json;
        (stats["hooks"][0]["starts_configured"] == true).then_some(())
    })
    .await;
    repeated(|| cluster.client(2).put("n/a", &deep)).await.expect(422);
    assert_eq!(compiled(&cluster.nodes[2].data_dir()), before);
}
