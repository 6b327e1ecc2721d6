//! The world of a simulation: its clock, nodes, network and clients.
//!
//! Time advances in steps of a millisecond. In each step the world delivers the messages that are due, lets clients act,
//! lets each node run to the end of the step in turn, and collects the messages it sent. No message takes less than one
//! step, so the order in which nodes run within a step makes no difference to them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Once};

use bytes::Bytes;
use parking_lot::Mutex;

use super::clients::{self, CLIENTS, Client, Inbox};
use super::history::{History, Request, Response};
use super::invariants::{Invariants, Violation};
use super::network::{Answer, Body, Cuts, Outbox, Outgoing, Reply, Serving, Weather};
use super::node::Node;
use crate::replication::WriteOutcome;
use crate::replication::peer::protocol::{Call, CallError, Envelope};
use crate::telemetry::Telemetry;

/// Interval at which the invariants observe the nodes.
const LOOK_INTERVAL_MS: u64 = 5;

/// A message on its way between two nodes.
enum Message {
    Call(Delivery),
    Answer(Answer),
}

/// A call to deliver; a repetition of a call has no reply.
struct Delivery {
    from: usize,
    target: usize,
    envelope: Envelope,
    call: Call,
    body: Body,
    reply: Option<Reply>,
}

/// A world.
pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) now_ms: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) weather: Weather,
    pub(super) cuts: Cuts,
    pub(super) history: History,
    pub(super) clients: Vec<Client>,
    pub(super) clients_act: bool,
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
    serving: BTreeMap<u64, Serving>,
    delivered: u64,
    /// Callers whose call or answer is lost wait for their timeouts.
    unanswered: Vec<Reply>,
    /// What nodes sent to each other since the last [`World::take_messages`], and how often in a row.
    messages: Vec<(String, u32)>,
    telemetry: Telemetry,
    /// The digest of all events.
    events: DefaultHasher,
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
            looks_for_orders: true,
            invariants: Invariants::default(),
            outbox: Arc::default(),
            inbox: Arc::default(),
            under_way: BTreeMap::new(),
            sent: 0,
            serving: BTreeMap::new(),
            delivered: 0,
            unanswered: Vec::new(),
            messages: Vec::new(),
            telemetry: Telemetry::disabled(),
            events: DefaultHasher::new(),
            shows_events: std::env::var_os("BRINK_SIM_TRACE").is_some(),
        }
    }

    /// The digest of all events.
    pub(super) fn events(&self) -> u64 {
        self.events.finish()
    }

    /// Records an event.
    pub(super) fn note(&mut self, event: impl Hash + std::fmt::Debug) {
        self.now_ms.hash(&mut self.events);
        event.hash(&mut self.events);
        if self.shows_events {
            eprintln!("{:>6} {event:?}", self.now_ms);
        }
    }

    /// Starts a node.
    pub(super) fn start(&mut self, number: usize) {
        self.note(("start", number));
        let (now_ms, outbox, telemetry) = (self.now_ms, self.outbox.clone(), self.telemetry.clone());
        if let Some(node) = self.nodes.get_mut(number) {
            node.start(now_ms, outbox, telemetry);
        }
    }

    /// Kills a node at a random poll.
    pub(super) fn crash(&mut self, number: usize, is_host_up: bool) {
        let polls = self.rng.u32(0..80);
        self.note(("crash", number, polls, is_host_up));
        let now_ms = self.now_ms;
        if let Some(node) = self.nodes.get_mut(number) {
            // A paused node must not run: its clock is behind the world's.
            node.crash(if node.is_paused(now_ms) { 0 } else { polls });
            node.is_host_up = is_host_up;
        }
        self.collect();
        self.serving.retain(|_, serving| serving.from != number);
        self.invariants.crashed(number);
        let lost: Vec<_> = self.clients.iter().filter_map(Client::waits_for).collect();
        for id in lost {
            let was_here = self.history.operations.get(index(id)).is_some_and(|operation| operation.node == number);
            if was_here {
                self.give_back(id, Response::Lost);
            }
        }
    }

    /// Advances time by a millisecond.
    pub(super) fn step(&mut self) -> Result<(), Violation> {
        self.now_ms += 1;
        self.deliver();
        if self.clients_act {
            self.let_clients_act();
        }
        for number in 0..self.nodes.len() {
            let now_ms = self.now_ms;
            let Some(node) = self.nodes.get_mut(number) else { continue };
            if node.is_paused(now_ms) {
                continue;
            }
            let was_paused = node.paused_until_ms.take().is_some();
            let Some(running) = &mut node.running else { continue };
            let started = running.run_until(now_ms, was_paused);
            started.map_err(|error| Violation::new("availability", format!("node {number} cannot start: {error}")))?;
            self.collect();
        }
        if has_panicked() {
            return Err(Violation::new("availability", "a node has panicked"));
        }
        if self.now_ms.is_multiple_of(LOOK_INTERVAL_MS) {
            for node in &self.nodes {
                self.invariants.observe(node)?;
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
            let running: Vec<usize> =
                self.nodes.iter().filter(|node| node.handle().is_some()).map(|node| node.number).collect();
            let Some(client) = self.clients.get_mut(number).filter(|client| client.is_ready(self.now_ms)) else {
                continue;
            };
            let Some(&target) = self.rng.choice(&running) else { continue };
            let Some(running) = self.nodes.get(target).and_then(|node| node.running.as_ref()) else { continue };
            let Some(handle) = &running.handle else { continue };
            client.act(&mut self.rng, &mut self.history, (target, running, handle), &self.inbox, self.now_ms);
            let request = self.history.operations.last().map(|operation| format!("{:?}", operation.request));
            self.note(("client", number, target, request));
        }
    }

    /// Begins an operation on a node, without a client that waits for it. Does nothing if the node does not run.
    pub(super) fn begin(&mut self, target: usize, request: Request) {
        let Some(node) = self.nodes.get(target) else { return };
        let (Some(running), Some(handle)) = (&node.running, node.handle()) else { return };
        let id = self.history.call(CLIENTS, target, request.clone(), self.now_ms);
        clients::begin((running, handle), &self.inbox, request, (id, id), self.now_ms);
        self.note(("begin", id, target));
    }

    /// Collects the messages that nodes have sent.
    fn collect(&mut self) {
        let Outbox { calls, served } = std::mem::take(&mut *self.outbox.lock());
        for call in calls {
            self.send(call);
        }
        for (number, result) in served {
            let Some(Serving { from, to, call, reply }) = self.serving.remove(&number) else { continue };
            self.answer(Answer { from, to, call, result, reply });
        }
        let responses = std::mem::take(&mut *self.inbox.lock());
        for (id, response) in responses {
            self.give_back(id, response);
        }
    }

    fn give_back(&mut self, id: u64, response: Response) {
        self.note(("answer", id, format!("{response:?}")));
        if !self.history.give_back(id, response.clone()) {
            return;
        }
        let Some(operation) = self.history.operations.get(index(id)) else { return };
        let number = usize::try_from(operation.client).unwrap_or(usize::MAX);
        if let Some(client) = self.clients.get_mut(number) {
            client.take(&mut self.rng, &operation.request, &response, self.now_ms);
        }
    }

    fn send(&mut self, outgoing: Outgoing) {
        let Outgoing { from, url, envelope, call, mut body, reply } = outgoing;
        self.note(("send", from, &url, name(call), digest(&body)));
        let Some(target) = self.nodes.iter().position(|node| node.url == url) else {
            let _ = reply.send(Err(CallError::NotSent { url, reason: "there is no such host".to_owned() }));
            return;
        };
        if !matches!(call, Call::Append | Call::Hello) {
            self.remember(format!("{from} -> {target}: {}", name(call)));
        }
        if self.weather.loses(&mut self.rng) {
            self.unanswered.push(reply);
            return;
        }
        if let Body::Frames { frames, is_whole } = &mut body
            && self.weather.loses(&mut self.rng)
        {
            frames.truncate(self.rng.usize(0..=frames.len()));
            *is_whole = false;
        }
        let delay_ms = self.weather.delay(&mut self.rng);
        if self.weather.repeats(call, &mut self.rng) {
            let again_ms = self.weather.delay(&mut self.rng) + delay_ms;
            let body = body.clone();
            self.under_way_in(again_ms, Message::Call(Delivery { from, target, envelope, call, body, reply: None }));
        }
        let delivery = Delivery { from, target, envelope, call, body, reply: Some(reply) };
        self.under_way_in(delay_ms, Message::Call(delivery));
    }

    /// The messages that nodes sent to each other since the last call, without appends and hellos, and how often each was
    /// sent in a row.
    pub(super) fn take_messages(&mut self) -> Vec<(String, u32)> {
        std::mem::take(&mut self.messages)
    }

    fn remember(&mut self, message: String) {
        match self.messages.last_mut() {
            Some((last, count)) if *last == message => *count += 1,
            _ => self.messages.push((message, 1)),
        }
    }

    fn answer(&mut self, answer: Answer) {
        let result = answer.result.as_ref().map(|body| digest(&Body::Whole(body.clone()))).map_err(ToString::to_string);
        self.note(("reply", answer.from, answer.to, name(answer.call), result));
        if let Err(CallError::Refused { reason, .. }) = &answer.result {
            self.remember(format!("{} refuses {} from {}: {reason}", answer.from, name(answer.call), answer.to));
        }
        if self.weather.loses(&mut self.rng) {
            self.unanswered.push(answer.reply);
            return;
        }
        let delay_ms = self.weather.delay(&mut self.rng);
        self.under_way_in(delay_ms, Message::Answer(answer));
    }

    fn under_way_in(&mut self, delay_ms: u64, message: Message) {
        self.sent += 1;
        self.under_way.insert((self.now_ms + delay_ms, self.sent), message);
    }

    fn deliver(&mut self) {
        while let Some(first) = self.under_way.first_entry().filter(|first| first.key().0 <= self.now_ms) {
            match first.remove() {
                Message::Call(delivery) => self.deliver_call(delivery),
                Message::Answer(answer) if self.cuts.is_cut(answer.from, answer.to) => {
                    self.unanswered.push(answer.reply);
                }
                // Sending fails if the caller has stopped waiting.
                Message::Answer(answer) => drop(answer.reply.send(answer.result)),
            }
        }
    }

    fn deliver_call(&mut self, delivery: Delivery) {
        let (from, target, call) = (delivery.from, delivery.target, delivery.call);
        if self.cuts.is_cut(from, target) {
            // The message is lost, or arrives once the network has healed.
            match self.rng.bool() {
                true => self.unanswered.extend(delivery.reply),
                false => {
                    let delay_ms = self.rng.u64(50..500);
                    self.under_way_in(delay_ms, Message::Call(delivery));
                }
            }
            return;
        }
        let Some(node) = self.nodes.get(target) else { return };
        if let Some(until) = node.paused_until_ms.filter(|until| self.now_ms < *until) {
            let delay_ms = until - self.now_ms;
            return self.under_way_in(delay_ms, Message::Call(delivery));
        }
        let Delivery { envelope, body, reply, .. } = delivery;
        let (Some(running), Some(handle)) = (&node.running, node.handle()) else {
            let Some(reply) = reply else { return };
            if !node.is_host_up {
                self.unanswered.push(reply);
                return;
            }
            let result = Err(CallError::NotSent { url: node.url.clone(), reason: "connection refused".to_owned() });
            return self.under_way_in(1, Message::Answer(Answer { from: target, to: from, call, result, reply }));
        };
        self.delivered += 1;
        let delivered = self.delivered;
        if let Some(reply) = reply {
            self.serving.insert(delivered, Serving { from: target, to: from, call, reply });
        }
        let (handle, outbox, url) = (handle.clone(), self.outbox.clone(), node.url.clone());
        running.spawn(async move {
            let served = match body {
                Body::Whole(body) => handle.serve(call, envelope, body).await,
                Body::Frames { frames, is_whole } => {
                    let broken = (!is_whole).then(|| Err(std::io::Error::other("the connection broke")));
                    let frames = frames.into_iter().map(Ok).chain(broken);
                    handle.serve_snapshot(envelope, futures::stream::iter(frames)).await
                }
            };
            let result = served.map_err(|error| {
                let reason = error.to_string();
                match error.outcome() {
                    WriteOutcome::NotWritten => CallError::Refused { url, reason },
                    WriteOutcome::Unknown => CallError::NoAnswer { url, reason },
                }
            });
            outbox.lock().served.push((delivered, result));
        });
        self.note(("deliver", from, target, name(call)));
    }
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

fn index(id: u64) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
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
