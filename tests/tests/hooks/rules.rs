//! P6 with several rules at once: rules over several keys hold in the final state, although deployments, referenced keys
//! and judged writes race on all nodes.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brink_tests::{Client, Cluster, plugin_wasm};
use serde_json::{Value, json};

use crate::{repeated, was_cut_off};

/// Number of customers.
const CUSTOMERS: usize = 4;

/// Maximum number of orders per customer.
const ORDERS_MAX: usize = 3;

/// Number of changes of the stamping hook.
const DEPLOYMENTS: u64 = 25;

/// Pause of a writer, so that compilers, whose priority is low, get on.
const PAUSE: Duration = Duration::from_millis(2);

/// Number of answers by status.
type Answers = BTreeMap<u16, usize>;

/// A deterministic random number generator (xorshift, Marsaglia 2003).
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

/// The rules: an order names an existing customer, a customer with orders cannot be deleted, and has at most three.
async fn set_rules(client: &Client) {
    for name in ["limits", "reference"] {
        repeated(|| client.put_plugin(name, plugin_wasm(name))).await.expect(200);
    }
    repeated(|| client.put_plugin("stamp", plugin_wasm("test-stamp"))).await.expect(200);
    let both = ["put", "delete"];
    let orders = json!({"references": [{"at": "/customer"}], "restrict_delete": ["{}/"]});
    let count = json!({"counts": [{"under": "customers/*/orders/", "max": ORDERS_MAX}]});
    for (name, config) in [("reference", orders), ("limits", count)] {
        let hook =
            json!({"plugin": name, "prefix": "customers/", "operations": both, "config": config, "deadline_ms": 5_000});
        let path = format!("/hooks/{name}/");
        repeated(|| client.put_json(&path, &hook)).await.expect(200);
    }
}

/// The stamps by the revisions from which they are in force at the latest, and whether they may have been before: a change that was
/// cut off may be in force until it is acknowledged, or not.
type Stamps = BTreeMap<u64, (u64, bool)>;

/// Sets the hook that stamps values, and notes from when on it is in force.
async fn set_stamp(client: &Client, stamp: u64, in_force: &mut Stamps) {
    let hook = json!({"plugin": "stamp", "prefix": "customers/", "config": {"stamp": stamp}, "deadline_ms": 5_000});
    let attempts = Cell::new(0);
    let set = repeated(|| {
        attempts.set(attempts.get() + 1);
        client.put_json("/hooks/stamp/", &hook)
    });
    let revision = set.await.expect(200).json["revision"].as_u64().unwrap();
    in_force.insert(revision, (stamp, attempts.get() > 1));
}

/// Writes and deletes customers and orders until `stop` is set.
async fn write(client: Client, seed: u64, stop: Arc<AtomicBool>) -> Answers {
    let mut draws = Draws(seed);
    let mut answers = Answers::new();
    while !stop.load(Ordering::Relaxed) {
        let customer = format!("customers/{}", draws.below(CUSTOMERS));
        let order = format!("{customer}/orders/{}", draws.below(2 * ORDERS_MAX));
        let answer = match draws.below(6) {
            0 => client.put(&customer, &json!({})).await,
            1 => client.delete(&format!("/kv/{customer}/")).await,
            2 | 3 => client.delete(&format!("/kv/{order}/")).await,
            _ => client.put(&order, &json!({ "customer": customer })).await,
        };
        match answer.status {
            200 | 201 | 204 | 404 => {}
            // Refused by a rule, or contended: not written.
            409 | 422 => assert_eq!(answer.json["outcome"], "not_written", "{answer:?}"),
            // An election has cut it off: whether it is written or not, the rules hold.
            500 | 503 => assert!(was_cut_off(&answer), "{answer:?}"),
            _ => panic!("{answer:?}"),
        }
        *answers.entry(answer.status).or_default() += 1;
        tokio::time::sleep(PAUSE).await;
    }
    answers
}

#[tokio::test]
async fn rules_over_several_keys_hold_while_hooks_and_keys_change_on_all_nodes() {
    let cluster = Cluster::start(3).await;
    set_rules(cluster.client(0)).await;
    let mut in_force = Stamps::new();
    set_stamp(cluster.client(0), 0, &mut in_force).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..6).map(|n| tokio::spawn(write(cluster.client(n % 3).clone(), 7 + n as u64, stop.clone()))).collect();
    for stamp in 1..=DEPLOYMENTS {
        let node = usize::try_from(stamp % 3).unwrap();
        set_stamp(cluster.client(node), stamp, &mut in_force).await;
        check(&cluster, &in_force).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut answers = Answers::new();
    for writer in writers {
        for (status, count) in writer.await.unwrap() {
            *answers.entry(status).or_default() += count;
        }
    }
    let stamps = check(&cluster, &in_force).await;
    // Every kind of answer occurred often enough.
    for status in [200, 201, 204, 422] {
        assert!(answers.get(&status).is_some_and(|count| *count > 50), "{answers:?}");
    }
    assert!(!stamps.is_empty(), "no entries are left to check: {answers:?}");
}

/// Checks the rules on one page, which shows one revision. Returns its stamps.
async fn check(cluster: &Cluster, in_force: &Stamps) -> BTreeSet<u64> {
    let page = cluster.client(1).settled("/kv/?prefix=customers/&limit=1000&consistency=strong").await.expect(200).json;
    assert_eq!(page["has_more"], false);
    let entries = page["results"].as_array().unwrap();
    let keys: BTreeSet<&str> = entries.iter().map(|entry| entry["key"].as_str().unwrap()).collect();
    let mut orders: BTreeMap<&str, usize> = BTreeMap::new();
    for key in &keys {
        if let Some((customer, _)) = key.split_once("/orders/") {
            assert!(keys.contains(customer), "{key} has no customer: {keys:?}");
            *orders.entry(customer).or_default() += 1;
        }
    }
    assert!(orders.values().all(|count| *count <= ORDERS_MAX), "too many orders: {keys:?}");
    let stamp = |entry: &Value| {
        let (revision, stamp) = (entry["revision"].as_u64().unwrap(), entry["value"]["stamp"].as_u64().unwrap());
        let (_, (expected, _)) = in_force.range(..revision).next_back().unwrap();
        let is_early = in_force.range(revision..).next().is_some_and(|(_, next)| *next == (stamp, true));
        assert!(stamp == *expected || is_early, "{entry} was judged by another version: {in_force:?}");
        stamp
    };
    entries.iter().map(stamp).collect()
}
