//! Clients on every node that write, read and delete the same few keys, and record what they are told.
//!
//! Their rate is bounded, so that the histories can be checked in less time than they took.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::history::{Ask, Call, Demand, Effect, History, Item, KEYS, Level, Outcome, Seen};
use crate::{Answer, Client, Cluster};

/// Objects in use at a time.
const OBJECTS: u64 = 3;

/// How long an object is in use.
const OBJECT_LIFE: Duration = Duration::from_secs(10);

/// How long a client waits for an answer. Longer than any node takes to give one.
const PATIENCE: Duration = Duration::from_secs(3);

/// The most calls of one client: no load runs for ever.
const CALLS_MAX: usize = 200_000;

/// How often a named write is sent before its client gives up.
const ATTEMPTS_MAX: usize = 4;

/// How many clients there are, and how busy.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Clients of each node.
    pub clients: usize,
    /// Further clients of each node, which only read: a write that waits for a quorum keeps its client from noticing
    /// that reads are answered meanwhile.
    pub readers: usize,
    /// The longest pause of a client between two calls.
    pub pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { clients: 3, readers: 1, pause: Duration::from_millis(60) }
    }
}

/// What the clients and whoever inflicts faults on the nodes have in common.
pub struct Desk {
    /// What was called so far.
    pub history: History,
    clients: Vec<Client>,
    /// How often each node's process began or ended.
    lives: Vec<AtomicU64>,
    /// The last revision that was seen of each key.
    revisions: Mutex<HashMap<(u64, usize), u64>>,
    next_value: AtomicU64,
    stop: AtomicBool,
}

impl Desk {
    /// A desk for the nodes of a cluster.
    pub fn new(cluster: &Cluster) -> Arc<Self> {
        Arc::new(Self {
            history: History::default(),
            clients: cluster.nodes.iter().map(|node| Client::with_patience(&node.url, PATIENCE)).collect(),
            lives: cluster.nodes.iter().map(|_| AtomicU64::new(0)).collect(),
            revisions: Mutex::default(),
            next_value: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        })
    }

    /// Notes that the process of a node begins or ends.
    pub fn note_life(&self, node: usize) {
        self.lives[node].fetch_add(1, Ordering::SeqCst);
    }

    /// Reads every object from a node, strongly. These reads come after everything, so they show what was lost.
    pub async fn read_everything(&self, node: usize) {
        let client = u32::MAX - u32::try_from(node).unwrap();
        for object in 0..=self.newest_object() {
            self.call(node, client, object, Ask::Range(Level::Strong), &mut Rng::with_seed(0)).await;
        }
    }

    /// The number of the newest object.
    pub fn newest_object(&self) -> u64 {
        (0..OBJECTS).map(|group| self.object(group)).max().unwrap()
    }

    /// The object that a group of calls goes to now. The groups change one after the other.
    fn object(&self, group: u64) -> u64 {
        let life = u64::try_from(OBJECT_LIFE.as_nanos()).unwrap();
        let now = u64::try_from(self.history.now()).unwrap() + group * life / OBJECTS;
        group + OBJECTS * (now / life)
    }

    fn next_value(&self) -> u64 {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }

    fn revision_of(&self, object: u64, key: usize) -> Option<u64> {
        self.revisions.lock().unwrap().get(&(object, key)).copied()
    }

    fn learn(&self, object: u64, key: usize, revision: Option<u64>) {
        let mut revisions = self.revisions.lock().unwrap();
        match revision {
            Some(revision) => revisions.insert((object, key), revision),
            None => revisions.remove(&(object, key)),
        };
    }

    /// Makes a call and records it.
    async fn call(&self, node: usize, client: u32, object: u64, ask: Ask, rng: &mut Rng) -> Outcome {
        let id = self.history.next_id();
        let life = self.lives[node].load(Ordering::SeqCst);
        let invoked = self.history.now();
        let outcome = match &ask {
            Ask::Write { named: true, .. } => self.insist(node, object, &ask, &format!("call-{id}"), rng).await,
            _ => self.send(node, object, &ask, None).await,
        };
        let completed = self.history.now();
        let life = Some(life).filter(|life| *life == self.lives[node].load(Ordering::SeqCst));
        self.remember(object, &ask, &outcome);
        let known = outcome.clone();
        self.history.record(Call { id, client, node, life, object, ask, invoked, completed, outcome });
        known
    }

    /// Keeps the revisions that later conditions are made of.
    fn remember(&self, object: u64, ask: &Ask, outcome: &Outcome) {
        match (ask, outcome) {
            (_, Outcome::Read { entries, .. }) => {
                for (key, seen) in entries {
                    self.learn(object, *key, seen.map(|seen| seen.revision));
                }
            }
            (Ask::Write { items, .. }, Outcome::Done { revision, .. }) => {
                for item in items {
                    self.learn(object, item.key, revision.filter(|_| item.value.is_some()));
                }
            }
            (_, Outcome::Refused(key, current)) => self.learn(object, *key, *current),
            _ => {}
        }
    }

    /// Sends a named write to one node after the other until its outcome is known; sometimes to two at once, as a client
    /// does that lost patience. All who know the outcome must agree.
    async fn insist(&self, node: usize, object: u64, ask: &Ask, name: &str, rng: &mut Rng) -> Outcome {
        let nodes = self.clients.len();
        let mut known: Option<Outcome> = None;
        let mut in_doubt = false;
        for attempt in 0..ATTEMPTS_MAX {
            let here = (node + attempt) % nodes;
            let outcomes = if attempt == 0 && rng.u8(..) < 64 {
                let there = (node + 1 + rng.usize(..nodes - 1)) % nodes;
                let both =
                    tokio::join!(self.send(here, object, ask, Some(name)), self.send(there, object, ask, Some(name)));
                vec![both.0, both.1]
            } else {
                vec![self.send(here, object, ask, Some(name)).await]
            };
            for outcome in outcomes {
                match (&known, outcome) {
                    (_, Outcome::Unknown) => in_doubt = true,
                    (_, Outcome::NotWritten) => {}
                    (None, outcome) => known = Some(outcome),
                    (Some(first), outcome) if *first == outcome => {}
                    (Some(first), other) => {
                        return Outcome::Wrong(format!("one name, two answers: {first:?} and {other:?}"));
                    }
                }
            }
            if let Some(known) = known {
                return known;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if in_doubt { Outcome::Unknown } else { Outcome::NotWritten }
    }

    async fn send(&self, node: usize, object: u64, ask: &Ask, name: Option<&str>) -> Outcome {
        let (method, path, mut headers, body) = request(object, ask);
        headers.extend(name.map(|name| ("idempotency-key", name.to_owned())));
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let is_write = matches!(ask, Ask::Write { .. });
        match self.clients[node].try_send(method, &path, &headers, body).await {
            Ok(answer) => read_answer(ask, &answer).unwrap_or_else(|| {
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                Outcome::Wrong(format!("{method} {path} {headers:?} was answered {}: {text}", answer.status))
            }),
            Err(_) if !is_write => Outcome::Failed,
            // The request was not sent: there was no connection to send it on.
            Err(error) if error.is_connect() => Outcome::NotWritten,
            Err(_) => Outcome::Unknown,
        }
    }
}

/// Clients at work.
pub struct Clients {
    desk: Arc<Desk>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts clients on every node.
    pub fn start(desk: &Arc<Desk>, pace: Pace, seed: u64) -> Self {
        let mut seeds = Rng::with_seed(seed);
        let writes = |number: usize| number < pace.clients;
        let of_node = |node| (0..pace.clients + pace.readers).map(move |number| (node, writes(number)));
        let clients = (0..desk.clients.len()).flat_map(of_node);
        let tasks = clients
            .zip(0..)
            .map(|((node, writes), client)| {
                let draw = if writes { draw } else { draw_read };
                tokio::spawn(work(desk.clone(), node, client, (pace.pause, draw), seeds.fork()))
            })
            .collect();
        Self { desk: desk.clone(), tasks }
    }

    /// Has them finish their calls, and ends them.
    pub async fn stop(self) {
        self.desk.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// How a client decides what to ask of an object next.
type Draw = fn(&Desk, u64, &mut Rng) -> Ask;

async fn work(desk: Arc<Desk>, node: usize, client: u32, (pause, draw): (Duration, Draw), mut rng: Rng) {
    let longest = u64::try_from(pause.as_micros()).unwrap();
    for _ in 0..CALLS_MAX {
        if desk.stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(Duration::from_micros(rng.u64(..longest))).await;
        let object = desk.object(rng.u64(..OBJECTS));
        let ask = draw(&desk, object, &mut rng);
        let outcome = desk.call(node, client, object, ask, &mut rng).await;
        if matches!(outcome, Outcome::Failed | Outcome::NotWritten) {
            // The node is down, or alone: it may be better a moment later.
            tokio::time::sleep(pause).await;
        }
    }
}

/// Something to read.
fn draw_read(_: &Desk, _: u64, rng: &mut Rng) -> Ask {
    let level = match rng.u8(..10) {
        0..5 => Level::Strong,
        5..7 => Level::Prompt,
        _ => Level::Local,
    };
    if rng.u8(..4) > 0 { Ask::Get(rng.usize(..KEYS), level) } else { Ask::Range(level) }
}

/// Something to read or to write.
fn draw(desk: &Desk, object: u64, rng: &mut Rng) -> Ask {
    let key = rng.usize(..KEYS);
    let named = rng.u8(..4) == 0;
    match rng.u8(..100) {
        0..40 => draw_read(desk, object, rng),
        40..62 => Ask::Write { items: vec![item(desk, object, key, true, false, rng)], named },
        62..70 => Ask::Write { items: vec![item(desk, object, key, false, rng.bool(), rng)], named },
        70..86 => Ask::Write { items: vec![item(desk, object, key, true, true, rng)], named },
        _ => {
            let mut keys: Vec<usize> = (0..KEYS).collect();
            rng.shuffle(&mut keys);
            keys.truncate(rng.usize(2..KEYS));
            let conditional = rng.u8(..3) == 0;
            let mut items: Vec<Item> = Vec::new();
            for key in keys {
                // The first is written, so that a batch always changes something.
                let is_put = items.is_empty() || rng.u8(..4) > 0;
                items.push(item(desk, object, key, is_put, conditional && rng.bool(), rng));
            }
            Ask::Write { items, named }
        }
    }
}

fn item(desk: &Desk, object: u64, key: usize, is_put: bool, conditional: bool, rng: &mut Rng) -> Item {
    let value = is_put.then(|| desk.next_value());
    let known = desk.revision_of(object, key);
    let demand = match known.filter(|_| rng.u8(..8) > 0) {
        Some(revision) => Some(Demand::Revision(revision)),
        None if is_put => Some(Demand::Absent),
        None => None,
    };
    Item { key, value, demand: demand.filter(|_| conditional) }
}

/// A call as HTTP: method, path, headers and body.
fn request(object: u64, ask: &Ask) -> (&'static str, String, Vec<(&'static str, String)>, String) {
    let name = |key: usize| format!("object/{object}/{key}");
    let query = |level: &Level| match level {
        Level::Strong => "consistency=strong",
        Level::Prompt => "",
        Level::Local => "consistency=local",
    };
    let json_body = || vec![("content-type", "application/json".to_owned())];
    match ask {
        Ask::Get(key, level) => ("GET", format!("/kv/{}/?{}", name(*key), query(level)), vec![], String::new()),
        Ask::Range(level) => ("GET", format!("/kv/?prefix=object/{object}/&{}", query(level)), vec![], String::new()),
        Ask::Write { items, .. } if items.len() > 1 => {
            let item = |item: &Item| {
                let mut json = match item.value {
                    Some(value) => json!({ "key": name(item.key), "value": value }),
                    None => json!({ "op": "delete", "key": name(item.key) }),
                };
                match item.demand {
                    None => {}
                    Some(Demand::Absent) => json["if_revision"] = json!(0),
                    Some(Demand::Revision(revision)) => json["if_revision"] = json!(revision),
                }
                json
            };
            let body = json!({ "items": items.iter().map(item).collect::<Vec<_>>() });
            ("POST", "/kv/batch/".to_owned(), json_body(), body.to_string())
        }
        Ask::Write { items, .. } => {
            let item = &items[0];
            let condition = item.demand.map(|demand| match demand {
                Demand::Absent => ("if-none-match", "*".to_owned()),
                Demand::Revision(revision) => ("if-match", format!("\"{revision}\"")),
            });
            let path = format!("/kv/{}/", name(item.key));
            let (method, mut headers, body) = match item.value {
                Some(value) => ("PUT", json_body(), json!({ "value": value }).to_string()),
                None => ("DELETE", vec![], String::new()),
            };
            headers.extend(condition);
            (method, path, headers, body)
        }
    }
}

/// What an answer says; none if no node may answer so.
fn read_answer(ask: &Ask, answer: &Answer) -> Option<Outcome> {
    match (ask, answer.status) {
        (Ask::Write { items, .. }, status) => match (status, &items[..]) {
            (412, _) => {
                let key = answer.json["key"].as_str()?.rsplit_once('/')?.1.parse().ok()?;
                Some(Outcome::Refused(key, answer.json["current_revision"].as_u64()))
            }
            (200 | 201, [Item { value: Some(value), .. }]) => {
                let seen = read_entry(&answer.json)?;
                let is_so = seen.value == *value && (seen.version == 1) == (status == 201);
                is_so.then(|| done(Some(seen.revision), vec![Effect::Put(seen.version)]))
            }
            (204 | 404, [Item { value: None, .. }]) => Some(done(None, vec![Effect::Deleted(status == 204)])),
            (200, _) if items.len() > 1 => read_batch(items, &answer.json),
            (500.., _) => match answer.json["outcome"].as_str()? {
                "not_written" => Some(Outcome::NotWritten),
                "unknown" => Some(Outcome::Unknown),
                _ => None,
            },
            _ => None,
        },
        (_, 500..) => Some(Outcome::Failed),
        (Ask::Get(key, level), 200) => read_of(level, answer, vec![(*key, Some(read_entry(&answer.json)?))]),
        (Ask::Get(key, level), 404) => read_of(level, answer, vec![(*key, None)]),
        (Ask::Range(level), 200) => {
            let mut entries: Vec<(usize, Option<Seen>)> = (0..KEYS).map(|key| (key, None)).collect();
            for entry in answer.json["results"].as_array()? {
                let key: usize = entry["key"].as_str()?.rsplit_once('/')?.1.parse().ok()?;
                entries.get_mut(key)?.1 = Some(read_entry(entry)?);
            }
            read_of(level, answer, entries)
        }
        _ => None,
    }
}

fn done(revision: Option<u64>, effects: Vec<Effect>) -> Outcome {
    Outcome::Done { revision, effects }
}

fn read_of(level: &Level, answer: &Answer, entries: Vec<(usize, Option<Seen>)>) -> Option<Outcome> {
    let linearizable = match (answer.header("brink-consistency")?, level) {
        ("linearizable", Level::Strong | Level::Prompt) => true,
        ("local", Level::Local | Level::Prompt) => false,
        _ => return None,
    };
    let revision = answer.header("brink-revision")?.parse().ok()?;
    Some(Outcome::Read { entries, revision, linearizable })
}

fn read_entry(json: &Value) -> Option<Seen> {
    let number = |name: &str| json[name].as_u64();
    Some(Seen { value: number("value")?, version: number("version")?, revision: number("revision")? })
}

fn read_batch(items: &[Item], json: &Value) -> Option<Outcome> {
    let revision = json["revision"].as_u64()?;
    let results = json["results"].as_array()?;
    let effect = |(item, result): (&Item, &Value)| match item.value {
        Some(value) => {
            let seen = read_entry(result)?;
            (seen.value == value && seen.revision == revision).then_some(Effect::Put(seen.version))
        }
        None => Some(Effect::Deleted(result["existed"].as_bool()?)),
    };
    let effects: Option<Vec<Effect>> = items.iter().zip(results).map(effect).collect();
    (results.len() == items.len()).then_some(())?;
    Some(done(Some(revision), effects?))
}
