//! The world of a simulation: its clock, nodes, network and clients.
//!
//! Time advances in steps of a millisecond. In each step the world delivers the messages that are due, lets clients act,
//! lets each node run to the end of the step in turn, and collects the messages it sent. No message takes less than one
//! step, so the order in which nodes run within a step makes no difference to them.

use std::hash::{DefaultHasher, Hash};
use std::sync::{Arc, Once};
use std::{cell::Cell, collections::BTreeMap, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::clients::{self, CLIENTS, Client, Inbox};
use super::history::{History, Request, Response, Unique};
use super::invariants::{Invariants, Violation};
use super::network::{Body, Cuts, Outbox, Outgoing, Reply, Weather};
use super::node::Node;
use crate::replication::peer::protocol::{Call, CallError, Envelope, Failure};
use crate::replication::{Caller, Error, Handle, WriteOutcome};
use crate::telemetry::Telemetry;

/// Interval at which the invariants observe the nodes.
const LOOK_INTERVAL_MS: u64 = 5;

/// The way of a call. Its answer takes the same way back.
#[derive(Clone, Copy)]
struct Route {
    from: usize,
    to: usize,
    call: Call,
}

/// A message on its way between two nodes.
enum Message {
    /// A repetition of a call has no reply.
    Call(Route, Envelope, Body, Option<Reply>),
    Answer(Route, Result<Bytes, CallError>, Reply),
}

pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) now_ms: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) weather: Weather,
    pub(super) cuts: Cuts,
    pub(super) history: History,
    pub(super) clients: Vec<Client>,
    pub(super) clients_act: bool,
    /// The nodes whose wall clocks are wrong at times.
    pub(super) unsteady_clocks: Vec<usize>,
    /// Whether the invariants observe the nodes.
    pub(super) is_observed: bool,
    /// Whether a linearizable order is searched for at the end.
    pub(super) looks_for_orders: bool,
    pub(super) invariants: Invariants,
    outbox: Arc<Mutex<Outbox>>,
    inbox: Inbox,
    /// Messages on their way, by the time at which they are due and the order in which they were sent.
    under_way: BTreeMap<(u64, u64), Message>,
    sent: u64,
    /// The calls that nodes serve, in the order in which they were delivered. When a node dies they break in this order; its
    /// runtime would drop its tasks in an order that no seed controls.
    serving: BTreeMap<u64, (Route, Reply)>,
    delivered: u64,
    /// Callers whose call or answer is lost wait for their timeouts.
    unanswered: Vec<Reply>,
    /// The size of the largest body that a node sent.
    pub(super) largest_body: usize,
    /// What nodes sent to each other, without appends and hellos, and how often in a row.
    pub(super) messages: Vec<(String, u32)>,
    telemetry: Telemetry,
    /// The digest of all events.
    pub(super) events: DefaultHasher,
    shows_events: bool,
}

impl World {
    pub(super) fn new(seed: u64, nodes: Vec<Node>) -> Self {
        // All random numbers of the nodes come from the thread's generator.
        fastrand::seed(seed);
        Self {
            rng: fastrand::Rng::with_seed(seed),
            now_ms: 0,
            nodes,
            weather: Weather::CALM,
            cuts: Cuts::default(),
            history: History::default(),
            clients: (0..CLIENTS).map(Client::new).collect(),
            clients_act: false,
            unsteady_clocks: Vec::new(),
            is_observed: true,
            looks_for_orders: true,
            invariants: Invariants::default(),
            outbox: Arc::default(),
            inbox: Arc::default(),
            under_way: BTreeMap::new(),
            sent: 0,
            serving: BTreeMap::new(),
            delivered: 0,
            unanswered: Vec::new(),
            largest_body: 0,
            messages: Vec::new(),
            telemetry: Telemetry::disabled(),
            events: DefaultHasher::new(),
            shows_events: std::env::var_os("BRINK_SIM_TRACE").is_some(),
        }
    }

    pub(super) fn note(&mut self, event: impl Hash + std::fmt::Debug) {
        self.now_ms.hash(&mut self.events);
        event.hash(&mut self.events);
        if self.shows_events {
            eprintln!("{:>6} {event:?}", self.now_ms);
        }
    }

    pub(super) fn start(&mut self, number: usize) {
        self.note(("start", number));
        self.nodes[number].start(self.now_ms, self.outbox.clone(), self.telemetry.clone());
    }

    /// Kills a node at a random poll.
    pub(super) fn crash(&mut self, number: usize, is_host_up: bool) {
        let polls = self.rng.u32(0..80);
        self.note(("crash", number, polls, is_host_up));
        let node = &mut self.nodes[number];
        // A paused node must not run: its clock is behind the world's.
        node.crash(if node.is_paused(self.now_ms) { 0 } else { polls });
        node.is_host_up = is_host_up;
        self.collect();
        self.serving.retain(|_, (route, _)| route.to != number);
        self.invariants.crashed(number);
        let is_here = |id: &Unique| self.history.operations[*id].node == number;
        let lost: Vec<_> = self.clients.iter().filter_map(Client::waits_for).filter(is_here).collect();
        for id in lost {
            self.give_back(id, Response::Lost);
        }
    }

    /// Asks a node to make another the leader. The caller checks which node leads.
    pub(super) fn transfer(&self, number: usize, successor: usize, patience: Duration) {
        let url = self.nodes[successor].url.clone();
        let ask = async move |handle: Handle| drop(handle.transfer_leader(&url, Instant::now() + patience).await);
        self.nodes[number].spawn(ask);
    }

    /// Advances time by a millisecond.
    pub(super) fn step(&mut self) -> Result<(), Violation> {
        self.now_ms += 1;
        self.deliver();
        if self.clients_act {
            self.let_clients_act();
        }
        for number in 0..self.nodes.len() {
            let started = self.nodes[number].run_until(self.now_ms);
            started.map_err(|error| Violation::new("availability", format!("node {number} cannot start: {error}")))?;
            self.collect();
        }
        if has_panicked() {
            return Err(Violation::new("availability", "a node has panicked"));
        }
        if self.is_observed && self.now_ms.is_multiple_of(LOOK_INTERVAL_MS) {
            for node in &self.nodes {
                self.invariants.observe(node, self.now_ms)?;
            }
        }
        Ok(())
    }

    /// Lets clients give up operations and begin new ones.
    fn let_clients_act(&mut self) {
        let given_up: Vec<_> = self.clients.iter().filter_map(|client| client.gives_up(self.now_ms)).collect();
        for id in given_up {
            self.give_back(id, Response::Lost);
        }
        for number in 0..self.clients.len() {
            let running: Vec<&Node> = self.nodes.iter().filter(|node| node.handle().is_some()).collect();
            let client = &mut self.clients[number];
            if !client.is_ready(self.now_ms) {
                continue;
            }
            let Some(&node) = self.rng.choice(&running) else { continue };
            let target = node.number;
            client.act(&mut self.rng, &mut self.history, node, &self.inbox, self.now_ms);
            let request = self.history.operations.last().map(|operation| format!("{:?}", operation.request));
            self.note(("client", number, target, request));
        }
    }

    /// Begins an operation on a node, without a client that waits for it. Does nothing if the node does not run.
    pub(super) fn begin(&mut self, target: usize, request: Request, patience: Duration) {
        let node = &self.nodes[target];
        if node.handle().is_none() {
            return;
        }
        let id = self.history.call(CLIENTS, node, request.clone(), self.now_ms);
        clients::begin(node, &self.inbox, request, (id, id), self.now_ms, patience);
        self.note(("begin", id, target));
    }

    fn collect(&mut self) {
        let Outbox { calls, served } = std::mem::take(&mut *self.outbox.lock());
        for call in calls {
            self.send(call);
        }
        for (number, result) in served {
            let Some((route, reply)) = self.serving.remove(&number) else { continue };
            self.answer(route, result, reply);
        }
        let responses = std::mem::take(&mut *self.inbox.lock());
        for (id, response) in responses {
            self.give_back(id, response);
        }
    }

    fn give_back(&mut self, id: Unique, response: Response) {
        self.note(("answer", id, format!("{response:?}")));
        if !self.history.give_back(id, response.clone()) {
            return;
        }
        let operation = &self.history.operations[id];
        if let Some(client) = self.clients.get_mut(operation.client as usize) {
            client.take(&mut self.rng, &operation.request, &response, self.now_ms);
        }
    }

    fn send(&mut self, outgoing: Outgoing) {
        let Outgoing { from, url, envelope, call, mut body, reply } = outgoing;
        self.note(("send", from, &url, name(call), digest(&body)));
        let Some(to) = self.nodes.iter().position(|node| node.is_at(&url)) else {
            return drop(reply.send(Err(CallError::new(Failure::NotSent, url, "there is no such host"))));
        };
        if let Body::Whole(body) = &body {
            self.largest_body = self.largest_body.max(body.len());
        }
        if !matches!(call, Call::Append | Call::Hello) {
            self.remember(format!("{from} -> {to}: {}", name(call)));
        }
        if self.weather.loses(&mut self.rng) {
            return self.unanswered.push(reply);
        }
        if let Body::Frames { frames, is_whole } = &mut body
            && self.weather.loses(&mut self.rng)
        {
            frames.truncate(self.rng.usize(0..=frames.len()));
            *is_whole = false;
        }
        let (route, delay_ms) = (Route { from, to, call }, self.weather.delay(&mut self.rng));
        if self.weather.repeats(call, &mut self.rng) {
            let again_ms = self.weather.delay(&mut self.rng) + delay_ms;
            self.under_way_in(again_ms, Message::Call(route, envelope, body.clone(), None));
        }
        self.under_way_in(delay_ms, Message::Call(route, envelope, body, Some(reply)));
    }

    fn remember(&mut self, message: String) {
        match self.messages.last_mut() {
            Some((last, count)) if *last == message => *count += 1,
            _ => self.messages.push((message, 1)),
        }
    }

    fn answer(&mut self, route: Route, result: Result<Bytes, CallError>, reply: Reply) {
        let Route { from, to, call } = route;
        let digest = result.as_ref().map(|body| crc32fast::hash(body)).map_err(ToString::to_string);
        self.note(("reply", to, from, name(call), digest));
        if let Err(CallError { failure: Failure::Refused, reason, .. }) = &result {
            self.remember(format!("{to} refuses {} from {from}: {reason}", name(call)));
        }
        if self.weather.loses(&mut self.rng) {
            return self.unanswered.push(reply);
        }
        let delay_ms = self.weather.delay(&mut self.rng);
        self.under_way_in(delay_ms, Message::Answer(route, result, reply));
    }

    fn under_way_in(&mut self, delay_ms: u64, message: Message) {
        self.sent += 1;
        self.under_way.insert((self.now_ms + delay_ms, self.sent), message);
    }

    fn deliver(&mut self) {
        while let Some(first) = self.under_way.first_entry().filter(|first| first.key().0 <= self.now_ms) {
            match first.remove() {
                Message::Call(route, envelope, body, reply) => self.deliver_call(route, envelope, body, reply),
                Message::Answer(route, _, reply) if self.cuts.is_cut(route.to, route.from) => {
                    self.unanswered.push(reply);
                }
                // Sending fails if the caller has stopped waiting.
                Message::Answer(_, result, reply) => drop(reply.send(result)),
            }
        }
    }

    fn deliver_call(&mut self, route: Route, envelope: Envelope, body: Body, reply: Option<Reply>) {
        let Route { from, to, call } = route;
        if self.cuts.is_cut(from, to) {
            // The message is lost, or arrives once the network has healed.
            if self.rng.bool() {
                return self.unanswered.extend(reply);
            }
            let delay_ms = self.rng.u64(50..500);
            return self.under_way_in(delay_ms, Message::Call(route, envelope, body, reply));
        }
        let node = &self.nodes[to];
        if let Some(until) = node.paused_until_ms.filter(|until| self.now_ms < *until) {
            return self.under_way_in(until - self.now_ms, Message::Call(route, envelope, body, reply));
        }
        let url = node.url.clone();
        if node.handle().is_none() {
            let Some(reply) = reply else { return };
            if !node.is_host_up {
                return self.unanswered.push(reply);
            }
            let refused = Err(CallError::new(Failure::NotSent, url, "connection refused"));
            return self.under_way_in(1, Message::Answer(route, refused, reply));
        }
        self.delivered += 1;
        let (delivered, outbox) = (self.delivered, self.outbox.clone());
        self.serving.extend(reply.map(|reply| (delivered, (route, reply))));
        let caller = Caller::Node { url: self.nodes[from].url.clone(), secret: [0; 4] };
        let node = &self.nodes[to];
        node.spawn(async move |handle| {
            let served = match body {
                Body::Whole(body) if call == Call::FetchSnapshot => give_snapshot(handle, envelope, &body).await,
                Body::Whole(body) => handle.serve(&caller, call, envelope, body).await,
                Body::Frames { frames, is_whole } => {
                    let broken = (!is_whole).then(|| Err(std::io::Error::other("the connection broke")));
                    let frames = frames.into_iter().map(Ok).chain(broken);
                    handle.serve_snapshot(envelope, futures::stream::iter(frames)).await
                }
            };
            let failure = |outcome| match outcome {
                WriteOutcome::NotWritten => Failure::Refused,
                WriteOutcome::Unknown => Failure::NoAnswer,
            };
            let result = served.map_err(|error| CallError::new(failure(error.outcome()), url, error));
            outbox.lock().served.push((delivered, result));
        });
        self.note(("deliver", from, to, name(call)));
    }
}

/// A snapshot as one message.
async fn give_snapshot(handle: Handle, envelope: Envelope, index_min: &[u8]) -> Result<Bytes, Error> {
    let index_min = u64::from_be_bytes(index_min.try_into().unwrap());
    let frames: Vec<_> = handle.give_snapshot(envelope, index_min).await?.collect().await;
    Ok(frames.into_iter().map(Result::unwrap).collect::<Vec<_>>().concat().into())
}

fn name(call: Call) -> &'static str {
    call.into()
}

fn digest(body: &Body) -> u32 {
    match body {
        Body::Whole(body) => crc32fast::hash(body),
        Body::Frames { frames, .. } => frames.iter().fold(0, |digest, frame: &Bytes| digest ^ crc32fast::hash(frame)),
    }
}

thread_local! {
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Whether anything has panicked on this thread since the last call. tokio catches the panics of tasks.
fn has_panicked() -> bool {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICKED.set(true);
            before(info);
        }));
    });
    PANICKED.replace(false)
}
