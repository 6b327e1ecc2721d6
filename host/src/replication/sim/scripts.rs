//! Golden scripts: stories of a small cluster, as commands and what came of them, to be read and reviewed.
//!
//! Each file in `scripts/` is one story, played in simulated time from a fixed seed. `UPDATE_GOLDENFILES=1` writes the files
//! anew; review what changed. Commands:
//!
//! | command | effect |
//! |---|---|
//! | `cluster <nodes>` | starts nodes 0, 1, … and has node 0 lead |
//! | `put <node> <key>`, `delete <node> <key>`, `read <node> <key>`, `local <node> <key>` | a client's call on a node, until it is answered |
//! | `partition <nodes> <nodes>` | cuts all links between two groups, such as `partition 0 12` |
//! | `heal` | mends all links |
//! | `crash <node>`, `start <node>`, `wipe <node>` | kills a node, starts it again, empties the disks of a dead node |
//! | `pause <node> <ms>` | stops a node's process; its clock goes on |
//! | `transfer <node> <node>` | asks the first node, which leads, to hand over to the second |
//! | `run <ms>` | lets time pass |
//! | `elect` | lets time pass until a node leads that did not when the story last told who leads |
//! | `status` | what each node knows |
//!
//! `leader` in place of a node's number stands for the leader of the newest term.
//!
//! Below the result of each command stand the messages that nodes sent meanwhile, in order, with consecutive repeats folded. Hellos are
//! left out, and appends, since `status` shows the log.

use std::{error::Error, fmt::Write as _, path::Path, time::Duration};

use super::history::{Request, Response};
use super::{chaos::leader, clients::DEADLINE, node::Node, world::World};
use crate::storage::Outcome;

/// The seed of all stories.
const SEED: u64 = 1;

/// How long a story waits for an answer or for a leader, in milliseconds of the world.
const PATIENCE_MS: u64 = 5_000;

/// How long a cluster that has just elected a leader is left alone, in milliseconds of the world.
const SETTLE_MS: u64 = 400;

/// How long a node tries to hand over.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(1);

/// Entries after which nodes take a snapshot: more than a story writes.
const SNAPSHOT_ENTRIES: u64 = 10_000;

type Told = Result<String, Box<dyn Error>>;

/// The commands of a story. Nodes are numbers, or `leader`.
#[derive(goldenscript::Command)]
enum Command {
    Cluster(usize),
    Put(String, String),
    Delete(String, String),
    Read(String, String),
    Local(String, String),
    Partition(String, String),
    Heal,
    Crash(String),
    Start(usize),
    Wipe(usize),
    Pause(String, u64),
    Transfer(String, usize),
    Run(u64),
    Elect,
    Status,
}

struct Story {
    world: World,
    /// The node that the story last told to lead.
    led_by: Option<usize>,
}

impl goldenscript::Runner for Story {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Told {
        let mut told = self.play(command)?;
        for (message, count) in std::mem::take(&mut self.world.messages) {
            let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
            writeln!(told, "  {message}{times}")?;
        }
        Ok(told)
    }
}

impl Story {
    fn play(&mut self, command: &Command) -> Told {
        match command {
            Command::Cluster(nodes) => return self.cluster(*nodes),
            Command::Put(node, key) => {
                return self.call(node, Request::Put { keys: vec![key.clone()], expected: None, name: None });
            }
            Command::Delete(node, key) => return self.call(node, Request::Delete { key: key.clone() }),
            Command::Read(node, key) => return self.call(node, Request::StrongRead { key: key.clone() }),
            Command::Local(node, key) => return self.call(node, Request::LocalRead { key: key.clone() }),
            Command::Elect => return self.elect(),
            Command::Status => return Ok(status(&self.world)),
            Command::Partition(one, other) => self.partition(&group(one)?, &group(other)?),
            Command::Heal => self.world.cuts.heal(),
            Command::Crash(node) => {
                let number = self.number(node)?;
                self.world.crash(number, true);
            }
            Command::Start(number) => self.world.start(*number),
            Command::Wipe(number) => self.world.nodes[*number].wipe(),
            Command::Pause(node, ms) => {
                let number = self.number(node)?;
                self.world.nodes[number].paused_until_ms = Some(self.world.now_ms + ms);
            }
            Command::Transfer(from, to) => self.world.transfer(self.number(from)?, *to, TRANSFER_PATIENCE),
            Command::Run(ms) => self.pass(*ms)?,
        }
        Ok(String::new())
    }

    fn number(&self, node: &str) -> Result<usize, Box<dyn Error>> {
        match node {
            "leader" => leader(&self.world).ok_or_else(|| "nobody leads".into()),
            number => Ok(number.parse()?),
        }
    }

    fn pass(&mut self, ms: u64) -> Result<(), Box<dyn Error>> {
        (0..ms).try_for_each(|_| self.world.step().map_err(|violation| format!("{violation:?}").into()))
    }

    /// Lets time pass until `is_done`, or for as long as a story waits at most. Returns whether it is done.
    fn pass_until(&mut self, is_done: impl Fn(&Self) -> bool) -> Result<bool, Box<dyn Error>> {
        for _ in 0..PATIENCE_MS {
            if is_done(self) {
                return Ok(true);
            }
            self.pass(1)?;
        }
        Ok(false)
    }

    /// Starts a cluster, and has node 0 lead, so that stories do not depend on who was elected first.
    fn cluster(&mut self, nodes: usize) -> Told {
        let peers: Vec<usize> = (0..nodes).collect();
        let node = |number| Node::new(number, &peers, SEED + number as u64, 1_000, SNAPSHOT_ENTRIES);
        self.world = World::new(SEED, (0..nodes).map(node).collect());
        (0..nodes).for_each(|number| self.world.start(number));
        self.pass_until(|story| leader(&story.world).is_some())?;
        self.pass(SETTLE_MS)?;
        let elected = leader(&self.world).ok_or("nobody leads")?;
        if elected != 0 {
            self.world.transfer(elected, 0, TRANSFER_PATIENCE);
            self.pass_until(|story| leader(&story.world) == Some(0))?;
            self.pass(SETTLE_MS)?;
        }
        self.led_by = Some(0);
        self.world.messages.clear();
        Ok(status(&self.world))
    }

    fn elect(&mut self) -> Told {
        let before = self.led_by;
        if !self.pass_until(|story| leader(&story.world).is_some_and(|leader| Some(leader) != before))? {
            return Ok("nobody else leads\n".to_owned());
        }
        self.led_by = leader(&self.world);
        Ok(self.led_by.map(|leader| format!("node {leader} leads\n")).unwrap_or_default())
    }

    /// Has a node perform a client's call, and waits for the answer.
    fn call(&mut self, node: &str, request: Request) -> Told {
        let (number, id) = (self.number(node)?, self.world.history.operations.len());
        self.world.begin(number, request, DEADLINE);
        self.pass_until(|story| story.world.history.operations.get(id).is_none_or(|call| call.response.is_some()))?;
        let call = self.world.history.operations.get(id);
        Ok(match call.map(|call| &call.response) {
            Some(Some(response)) => format!("{}\n", answer(response)),
            Some(None) => "no answer\n".to_owned(),
            None => "the node is down\n".to_owned(),
        })
    }

    fn partition(&mut self, one: &[usize], other: &[usize]) {
        for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
            self.world.cuts.cut_both(a, b);
        }
    }
}

/// The nodes of a group, written without anything between them.
fn group(nodes: &str) -> Result<Vec<usize>, Box<dyn Error>> {
    let number =
        |digit: char| digit.to_digit(10).map(|digit| digit as usize).ok_or_else(|| format!("{digit} is no node"));
    Ok(nodes.chars().map(number).collect::<Result<_, _>>()?)
}

fn answer(response: &Response) -> String {
    match response {
        Response::Committed(Outcome::Applied { revision, .. }) => format!("committed at revision {revision}"),
        Response::Committed(outcome) => format!("{outcome:?}"),
        Response::Read(Some((revision, value))) => format!("value {value} of revision {revision}"),
        Response::Scanned(scanned) => format!("{scanned:?}"),
        Response::Read(None) => "no entry".to_owned(),
        Response::Refused(error) => format!("refused ({:?}): {error}", error.outcome()),
        Response::Lost => "no answer: the node died".to_owned(),
    }
}

fn status(world: &World) -> String {
    let mut text = String::new();
    for node in &world.nodes {
        let state = match (node.handle(), node.metrics(), node.status()) {
            (Some(handle), Some(metrics), Some(status)) => format!(
                "{} in term {}, log to {}, applied to {}",
                status.state,
                metrics.current_term,
                metrics.last_log_index.unwrap_or(0),
                *handle.applied().borrow()
            ),
            _ => "down".to_owned(),
        };
        let _ = writeln!(text, "node {}: {state}", node.number);
    }
    text
}

#[test]
fn stories_of_clusters_go_as_they_are_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/replication/sim/scripts");
    let mut scripts: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for script in scripts {
        let mut story = Story { world: World::new(SEED, Vec::new()), led_by: None };
        goldenscript::run(&mut story, &script).unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    }
}
