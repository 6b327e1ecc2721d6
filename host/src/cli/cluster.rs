//! `brink cluster`: the state and the members of the cluster.

use serde_json::{Value, json};

use super::{Client, Common, Failure, Format, Method, Request, client, io, name_path};
use crate::node;
use crate::storage::FeatureLevel;
use crate::text;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show the nodes, the leader, and whether there is a quorum
    Status(Common),
    /// List the members with their ids and roles
    Members(Common),
    /// Add a node, or change a member's role
    ///
    /// A new node must run with an empty data directory, and with a node of this cluster in REPLICA_NODES.
    Add {
        /// The node's base URL, such as http://node4:8000/kv-store/v1
        node: String,
        /// Add it as a learner: a read replica, which does not count for the quorum
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Remove a node, running or not
    Remove {
        /// The node's base URL
        node: String,
        #[command(flatten)]
        common: Common,
    },
    /// Finish an upgrade: enable what needs all nodes to run this version or a newer one
    ///
    /// The version before no longer runs in this cluster afterwards. A cluster that this version formed needs no upgrade.
    Upgrade(Common),
    /// Print a new secret for --cluster-secret-file
    ///
    /// Every node of a cluster is started with the same file. To exchange the secret of a running cluster: add the new one as a
    /// second line of the file on every node, then change the order of the lines on every node, then remove the old one on every
    /// node. A node reads the file again within seconds.
    Secret,
    /// Make a voter the leader
    Transfer {
        /// The node's base URL
        node: String,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Status(common) => status(&common).await,
        Command::Members(common) => print_members(&Request::get("/cluster/members/"), &common).await,
        Command::Add { node, learner, common } => {
            let role = if learner { "learner" } else { "voter" };
            let member = json!({ "url": client::base_url("NODE", &node)?, "role": role });
            print_members(&Request::new(Method::POST, "/cluster/members/").json(&member), &common).await
        }
        Command::Remove { node, common } => {
            let url = client::base_url("NODE", &node)?;
            let request = Request::new(Method::DELETE, name_path("cluster/members", &url));
            Client::new(&common)?.send(&request).await?;
            io::line(&format!("{url} is removed"))
        }
        Command::Secret => {
            let secret =
                node::new_cluster_secret().map_err(|error| Failure::Failed(format!("no random numbers: {error}")))?;
            io::line(&secret)
        }
        Command::Upgrade(common) => {
            let level = json!({ "feature_level": FeatureLevel::NEWEST });
            let request = Request::new(Method::PUT, "/cluster/feature-level/").json(&level);
            let answer = Client::new(&common)?.send(&request).await?.json()?;
            io::line(&format!("the cluster has feature level {}", answer["feature_level"]))
        }
        Command::Transfer { node, common } => {
            let url = client::base_url("NODE", &node)?;
            let request = Request::new(Method::PUT, "/cluster/leader/").json(&json!({ "url": url }));
            Client::new(&common)?.send(&request).await?;
            io::line(&format!("{url} leads"))
        }
    }
}

async fn status(common: &Common) -> Result<(), Failure> {
    let answer = Client::new(common)?.send(&Request::get("/health/")).await?;
    let (url, health) = (&answer.url, answer.json()?);
    if common.output == Format::Json {
        return io::json(&health.to_string());
    }
    let cluster = &health["cluster"];
    io::line(&format!(
        "{}: {} of {} nodes healthy, {} needed for writes, seen from {url}",
        io::text(&health["status"]),
        cluster["healthy_nodes"],
        cluster["total_nodes"],
        cluster["required_for_quorum"],
    ))?;
    if health["reason"].is_string() {
        io::line(&io::text(&health["reason"]))?;
    }
    for (node, offset_ms) in wrong_clocks(url, &health) {
        let place = if offset_ms > 0 { "ahead of" } else { "behind" };
        let seconds = offset_ms.unsigned_abs() / 1_000;
        let node = text::safe(node);
        io::line(&format!("the clock of {node} is {seconds} s {place} the other nodes' clocks"))?;
    }
    io::line("")?;
    let leader = &cluster["leader"];
    let own_healthy = if health["disk_full"].is_object() { "disk full" } else { "yes" };
    let own =
        [url.clone(), own_healthy.to_owned(), either(leader == url, "leader", ""), "-".to_owned(), "-".to_owned()];
    let others = io::items(&cluster["nodes"]).map(|node| {
        let [url, lag, rtt] = io::texts(node, ["url", "lag_entries", "rtt_ms"]);
        let healthy = match (node["healthy"] == true, node["disk_full"] == true) {
            (true, true) => "disk full".to_owned(),
            (healthy, _) => either(healthy, "yes", "no"),
        };
        [url, healthy, either(node["url"] == *leader, "leader", ""), lag, rtt]
    });
    io::table(["NODE", "HEALTHY", "LEADER", "LAG", "RTT MS"], std::iter::once(own).chain(others))
}

/// The nodes whose clocks are far from the others', with the milliseconds that they are ahead.
fn wrong_clocks<'a>(own_url: &'a str, health: &'a Value) -> impl Iterator<Item = (&'a str, i64)> {
    let own = std::iter::once((own_url, &health["clock"]["offset_ms"]));
    let others = io::items(&health["cluster"]["nodes"]);
    let others = others.map(|node| (node["url"].as_str().unwrap_or_default(), &node["clock_offset_ms"]));
    own.chain(others).filter_map(|(node, offset_ms)| Some((node, offset_ms.as_i64()?)))
}

/// Sends a request that is answered with the members, and prints these.
async fn print_members(request: &Request, common: &Common) -> Result<(), Failure> {
    let answer = Client::new(common)?.send(request).await?.json()?;
    if common.output == Format::Json {
        return io::json(&answer.to_string());
    }
    let rows = io::items(&answer["members"]).map(|member| {
        let [url, id, role, lag] = io::texts(member, ["url", "id", "role", "lag_entries"]);
        let healthy = either(member["healthy"] == true, "yes", "no");
        [url, id, role, healthy, either(member["leader"] == true, "leader", ""), lag]
    });
    io::table(["NODE", "ID", "ROLE", "HEALTHY", "LEADER", "LAG"], rows)?;
    let level = &answer["feature_level"];
    let can_be_raised = |member: &Value| member["supports_level"].as_u64() > level.as_u64();
    match io::items(&answer["members"]).all(can_be_raised) {
        true => {
            io::line(&format!("\nfeature level {level}: `brink cluster upgrade` finishes the upgrade of all nodes"))
        }
        false => Ok(()),
    }
}

fn either(condition: bool, yes: &str, no: &str) -> String {
    if condition { yes } else { no }.to_owned()
}
