//! Clients on every node that read, write and delete the same few keys, and record their calls.
//!
//! Their rate is bounded, so that checking a history takes less time than recording it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::cluster::Cluster;
use crate::exchange;
use crate::history::{Call, Consistency, History, Item, KEYS, Outcome, Precondition, Request};

/// Number of objects in use at a time.
const OBJECTS: u64 = 3;

/// Time for which an object is in use.
const OBJECT_LIFETIME: Duration = Duration::from_secs(10);

/// Timeout of a request; longer than a node's own deadlines.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Upper bound of one client's calls.
const CALLS_MAX: usize = 200_000;

/// How often a client sends an idempotent write before it gives up.
const ATTEMPTS_MAX: usize = 4;

/// Number and rate of the clients.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// Clients per node that read and write.
    pub clients: usize,
    /// Clients per node that only read. They keep reading while the others wait for writes without a quorum.
    pub readers: usize,
    /// Longest pause of a client between two calls.
    pub pause: Duration,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { clients: 3, readers: 1, pause: Duration::from_millis(60) }
    }
}

/// The state that clients share with the nemesis.
pub struct Workload {
    /// The calls so far.
    pub history: History,
    /// A client of each node, at its current address.
    clients: Vec<RwLock<Client>>,
    /// Number of starts and ends of each node's process.
    incarnations: Vec<AtomicU64>,
    /// The last known revision of each key.
    revisions: Mutex<HashMap<(u64, usize), u64>>,
    next_value: AtomicU64,
    stop: AtomicBool,
}

impl Workload {
    /// A workload on the nodes of a cluster.
    pub fn new(cluster: &Cluster) -> Arc<Self> {
        Arc::new(Self {
            history: History::default(),
            clients: cluster.nodes.iter().map(|node| RwLock::new(Client::with_timeout(&node.url, TIMEOUT))).collect(),
            incarnations: cluster.nodes.iter().map(|_| AtomicU64::new(0)).collect(),
            revisions: Mutex::default(),
            next_value: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        })
    }

    /// Notes that the process of a node has started or ended.
    pub fn note_restart(&self, node: usize) {
        self.incarnations[node].fetch_add(1, Ordering::SeqCst);
    }

    /// Calls a node at another URL from now on.
    pub fn follow(&self, node: usize, url: &str) {
        *self.clients[node].write().unwrap() = Client::with_timeout(url, TIMEOUT);
    }

    /// Reads every object from a node by strong reads. At the end of a run, they show lost writes.
    pub async fn read_everything(&self, node: usize) {
        let client = u32::MAX - u32::try_from(node).unwrap();
        for object in 0..=self.newest_object() {
            self.call(node, client, object, Request::Range(Consistency::Strong), &mut Rng::with_seed(0)).await;
        }
    }

    /// The number of the newest object.
    pub fn newest_object(&self) -> u64 {
        (0..OBJECTS).map(|group| self.object(group)).max().unwrap()
    }

    /// The current object of a group of calls. The groups change their objects at different times.
    fn object(&self, group: u64) -> u64 {
        let lifetime = u64::try_from(OBJECT_LIFETIME.as_nanos()).unwrap();
        let now = u64::try_from(self.history.now()).unwrap() + group * lifetime / OBJECTS;
        group + OBJECTS * (now / lifetime)
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

    /// Makes and records a call.
    async fn call(&self, node: usize, client: u32, object: u64, request: Request, rng: &mut Rng) -> Outcome {
        let id = self.history.next_id();
        let incarnation = self.incarnations[node].load(Ordering::SeqCst);
        let invoked = self.history.now();
        let outcome = match &request {
            Request::Write { idempotent: true, .. } => {
                self.send_repeatedly(node, object, &request, &format!("call-{id}"), rng).await
            }
            _ => self.send(node, object, &request, None).await,
        };
        let completed = self.history.now();
        let is_same = incarnation == self.incarnations[node].load(Ordering::SeqCst);
        let incarnation = Some(incarnation).filter(|_| is_same);
        self.remember(object, &request, &outcome);
        let known = outcome.clone();
        self.history.record(Call { id, client, node, incarnation, object, request, invoked, completed, outcome });
        known
    }

    /// Keeps the revisions for later preconditions.
    fn remember(&self, object: u64, request: &Request, outcome: &Outcome) {
        match (request, outcome) {
            (_, Outcome::Read { entries, .. }) => {
                for (key, seen) in entries {
                    self.learn(object, *key, seen.map(|seen| seen.revision));
                }
            }
            (Request::Write { items, .. }, Outcome::Done { revision, .. }) => {
                for item in items {
                    self.learn(object, item.key, revision.filter(|_| item.value.is_some()));
                }
            }
            (_, Outcome::PreconditionFailed(key, current)) => self.learn(object, *key, *current),
            _ => {}
        }
    }

    /// Sends an idempotent write to one node after the other until its outcome is known, sometimes to two nodes at once, as
    /// an impatient client does. All known outcomes must be equal.
    async fn send_repeatedly(&self, node: usize, object: u64, request: &Request, key: &str, rng: &mut Rng) -> Outcome {
        let nodes = self.clients.len();
        let mut known: Option<Outcome> = None;
        let mut is_unknown = false;
        for attempt in 0..ATTEMPTS_MAX {
            let first = (node + attempt) % nodes;
            let outcomes = if attempt == 0 && rng.u8(..) < 64 {
                let second = (node + 1 + rng.usize(..nodes - 1)) % nodes;
                let both = tokio::join!(
                    self.send(first, object, request, Some(key)),
                    self.send(second, object, request, Some(key))
                );
                vec![both.0, both.1]
            } else {
                vec![self.send(first, object, request, Some(key)).await]
            };
            for outcome in outcomes {
                match (&known, outcome) {
                    (_, Outcome::Unknown) => is_unknown = true,
                    (_, Outcome::NotWritten) => {}
                    (None, outcome) => known = Some(outcome),
                    (Some(known), outcome) if *known == outcome => {}
                    (Some(known), other) => {
                        return Outcome::Invalid(format!("one key, two outcomes: {known:?} and {other:?}"));
                    }
                }
            }
            if let Some(known) = known {
                return known;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if is_unknown { Outcome::Unknown } else { Outcome::NotWritten }
    }

    async fn send(&self, node: usize, object: u64, request: &Request, idempotency_key: Option<&str>) -> Outcome {
        let (method, path, mut headers, body) = exchange::encode(object, request);
        headers.extend(idempotency_key.map(|key| ("idempotency-key", key.to_owned())));
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let is_write = matches!(request, Request::Write { .. });
        let client = self.clients[node].read().unwrap().clone();
        match client.try_send(method, &path, &headers, body).await {
            Ok(answer) => exchange::decode(request, &answer).unwrap_or_else(|| {
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                Outcome::Invalid(format!("{method} {path} {headers:?} was answered {}: {text}", answer.status))
            }),
            Err(_) if !is_write => Outcome::Failed,
            // Without a connection, the request was not sent.
            Err(error) if error.is_connect() => Outcome::NotWritten,
            Err(_) => Outcome::Unknown,
        }
    }
}

/// Running clients.
pub struct Clients {
    workload: Arc<Workload>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts clients on every node.
    pub fn start(workload: &Arc<Workload>, traffic: Traffic, seed: u64) -> Self {
        let mut seeds = Rng::with_seed(seed);
        let writes = |number: usize| number < traffic.clients;
        let of_node = |node| (0..traffic.clients + traffic.readers).map(move |number| (node, writes(number)));
        let clients = (0..workload.clients.len()).flat_map(of_node);
        let tasks = clients
            .zip(0..)
            .map(|((node, writes), client)| {
                let draw = if writes { draw } else { draw_read };
                tokio::spawn(work(workload.clone(), node, client, (traffic.pause, draw), seeds.fork()))
            })
            .collect();
        Self { workload: workload.clone(), tasks }
    }

    /// Stops the clients after their current calls.
    pub async fn stop(self) {
        self.workload.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// Draws the next request to an object.
type Draw = fn(&Workload, u64, &mut Rng) -> Request;

async fn work(workload: Arc<Workload>, node: usize, client: u32, (pause, draw): (Duration, Draw), mut rng: Rng) {
    let longest = u64::try_from(pause.as_micros()).unwrap();
    for _ in 0..CALLS_MAX {
        if workload.stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(Duration::from_micros(rng.u64(..longest))).await;
        let object = workload.object(rng.u64(..OBJECTS));
        let request = draw(&workload, object, &mut rng);
        let outcome = workload.call(node, client, object, request, &mut rng).await;
        if matches!(outcome, Outcome::Failed | Outcome::NotWritten) {
            // The node is down or has no quorum.
            tokio::time::sleep(pause).await;
        }
    }
}

/// Draws a read.
fn draw_read(_: &Workload, _: u64, rng: &mut Rng) -> Request {
    let consistency = match rng.u8(..10) {
        0..5 => Consistency::Strong,
        5..7 => Consistency::Prompt,
        _ => Consistency::Local,
    };
    if rng.u8(..4) > 0 { Request::Get(rng.usize(..KEYS), consistency) } else { Request::Range(consistency) }
}

/// Draws a read or a write.
fn draw(workload: &Workload, object: u64, rng: &mut Rng) -> Request {
    let key = rng.usize(..KEYS);
    let idempotent = rng.u8(..4) == 0;
    match rng.u8(..100) {
        0..40 => draw_read(workload, object, rng),
        40..62 => Request::Write { items: vec![item(workload, object, key, true, false, rng)], idempotent },
        62..70 => Request::Write { items: vec![item(workload, object, key, false, rng.bool(), rng)], idempotent },
        70..86 => Request::Write { items: vec![item(workload, object, key, true, true, rng)], idempotent },
        _ => {
            let mut keys: Vec<usize> = (0..KEYS).collect();
            rng.shuffle(&mut keys);
            keys.truncate(rng.usize(2..KEYS));
            let conditional = rng.u8(..3) == 0;
            let mut items: Vec<Item> = Vec::new();
            for key in keys {
                // A put comes first, so that every batch changes the store.
                let is_put = items.is_empty() || rng.u8(..4) > 0;
                items.push(item(workload, object, key, is_put, conditional && rng.bool(), rng));
            }
            Request::Write { items, idempotent }
        }
    }
}

fn item(workload: &Workload, object: u64, key: usize, is_put: bool, conditional: bool, rng: &mut Rng) -> Item {
    let value = is_put.then(|| workload.next_value());
    let known = workload.revision_of(object, key);
    let precondition = match known.filter(|_| rng.u8(..8) > 0) {
        Some(revision) => Some(Precondition::Revision(revision)),
        None if is_put => Some(Precondition::Absent),
        None => None,
    };
    Item { key, value, precondition: precondition.filter(|_| conditional) }
}
