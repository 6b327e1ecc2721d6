//! Nothing outside stops a node: an unread log, connections that use up its files, a collector that does not answer.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use brink_tests::{Cluster, Options, eventually, free_ports};
use serde_json::json;

/// Time within which a node stops that has nothing to hand over, on a machine that stands still now and then.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Time for a state that a node reaches by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// A node alone that is started by a shell command; the command ends with `exec` of its arguments.
async fn started_by(script: &str, options: Options) -> Cluster {
    let mut cluster = Cluster::prepare(1, options);
    cluster.nodes[0].wrap(["sh", "-c", script].map(str::to_owned).to_vec());
    cluster.nodes[0].start();
    cluster.ready().await;
    cluster
}

/// The first line of a metric.
async fn metric(cluster: &Cluster, name: &str) -> String {
    let metrics = cluster.client(0).get("/metrics").await.expect(200).body;
    let metrics = String::from_utf8(metrics).unwrap();
    metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{metrics}")).to_owned()
}

#[tokio::test]
async fn a_node_alone_is_healthy() {
    let cluster = Cluster::start(1).await;
    // Longer than any lease that others would have to confirm.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let health = cluster.client(0).get("/health/").await.expect(200).json;
    assert_eq!((&health["status"], &health["cluster"]["can_accept_writes"]), (&json!("healthy"), &json!(true)));
    let quorum = metric(&cluster, "brink_quorum_healthy").await;
    assert!(quorum.ends_with(" 1"), "{quorum}");
}

#[tokio::test]
async fn a_cluster_that_shrank_to_one_is_healthy() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for other in [(leader + 1) % 3, (leader + 2) % 3] {
        cluster.client(leader).remove_member(&cluster.nodes[other].url).await;
    }
    // Longer than any lease that others would have to confirm.
    tokio::time::sleep(Duration::from_secs(1)).await;
    eventually(LIMIT, "the cluster of one is healthy", || async {
        let health = cluster.client(leader).get("/health/").await.expect(200).json;
        let nodes = &health["cluster"]["total_nodes"];
        let found = (&health["status"], nodes, &health["cluster"]["can_accept_writes"]);
        (found == (&json!("healthy"), &json!(1), &json!(true))).then_some(())
    })
    .await;
    cluster.client(leader).write("alone", &json!(1)).await.expect(201);
}

#[tokio::test]
async fn a_node_whose_log_nobody_reads_goes_on() {
    // The node holds both ends of the pipe: it is never closed and never read.
    let options = Options { args: ["--log", "trace"].map(str::to_owned).to_vec(), ..Options::default() };
    let mut cluster = started_by(r#"mkfifo pipe-$$; exec 3<>pipe-$$; rm pipe-$$; exec "$0" "$@" 2>&3"#, options).await;
    for number in 0..300 {
        cluster.client(0).put(&format!("k/{number}"), &json!(number)).await.expect(201);
    }
    let dropped = || async { !metric(&cluster, "brink_lines_dropped").await.ends_with(" 0") };
    for batch in 0.. {
        if dropped().await {
            break;
        }
        assert!(batch < 100, "no line was dropped");
        for number in 0..100 {
            cluster.client(0).put(&format!("more/{number}"), &json!(number)).await;
        }
    }
    cluster.client(0).get("/livez").await.expect(200);
    let began = Instant::now();
    assert!(cluster.nodes[0].stop());
    assert!(began.elapsed() < STOP_LIMIT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn idle_connections_leave_files_for_the_disk() {
    let mut cluster = started_by(r#"ulimit -n 300; exec "$0" "$@""#, Options::default()).await;
    // Half of 300 files are for connections; the others wait in the queue of the system.
    let port = cluster.nodes[0].port;
    let idle: Vec<TcpStream> = (0..250).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    eventually(LIMIT, "the node has met its bound", || async {
        cluster.nodes[0].log().contains("new connections wait").then_some(())
    })
    .await;
    // The client's own connection was open before.
    for number in 0..200 {
        let value = "v".repeat(30_000);
        cluster.client(0).put(&format!("k/{number}"), &json!(value)).await.expect(201);
    }
    drop(idle);
    assert!(cluster.nodes[0].stop());
}

#[tokio::test]
async fn the_soft_limit_of_files_is_raised() {
    let cluster = started_by(r#"ulimit -Sn 128; exec "$0" "$@""#, Options::default()).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", cluster.nodes[0].pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(words[3], words[4], "soft and hard limit");
}

#[tokio::test]
async fn a_collector_that_does_not_answer_is_said_once_and_delays_nothing() {
    // It accepts connections, and never answers.
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = SocketAddr::from(([127, 0, 0, 1], free_ports(1)[0]));
    for (endpoint, is_gone) in [(hangs.local_addr().unwrap(), false), (gone, true)] {
        let endpoint = format!("http://{endpoint}");
        let env = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "300"),
            ("OTEL_BSP_SCHEDULE_DELAY", "300"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let mut cluster = Cluster::start_with(1, Options { env, ..Options::default() }).await;
        for number in 0..20 {
            cluster.client(0).put(&format!("k/{number}"), &json!(number)).await.expect(201);
        }
        let count = |cluster: &Cluster, signal: &str| {
            cluster.nodes[0].log().matches(&format!("{signal} cannot be exported")).count()
        };
        eventually(LIMIT, "both are said", || async {
            (count(&cluster, "traces") > 0 && count(&cluster, "metrics") > 0).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((count(&cluster, "traces"), count(&cluster, "metrics")), (1, 1));
        let began = Instant::now();
        assert!(cluster.nodes[0].stop());
        assert!(began.elapsed() < STOP_LIMIT, "{:?}, gone: {is_gone}", began.elapsed());
    }
}
