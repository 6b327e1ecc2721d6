//! Fills a cluster with keys, many at once, so that the measurement of a large state begins soon.
//!
//! Some connections send batches to the leader. Streams of single writes fill nodes about half as fast.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{bail, ensure};

use crate::http::Client;
use crate::interrupt::Interrupt;

/// Connections that send batches.
const CONNECTIONS: usize = 4;

/// Maximum number of keys in a batch; the node allows 10,000.
const ITEMS_MAX: u64 = 1_000;

/// Maximum bytes of the values in a batch.
const BATCH_BYTES_MAX: u64 = 512 * 1024;

/// The prefix of the keys that `brink bench` uses.
const PREFIX: &str = "bench/";

/// Characters of values: they need no escapes in JSON, and random ones hardly compress.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Keys to write, and how large their values are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fill {
    pub(super) keys: u64,
    pub(super) value_bytes: u64,
}

impl Fill {
    /// Writes each key once, by way of the node on `port`. Fails if that is not done at the deadline.
    pub(super) fn run(self, port: u16, deadline: Instant, interrupt: &Interrupt) -> anyhow::Result<()> {
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let connections: Vec<_> =
                (0..CONNECTIONS).map(|_| scope.spawn(|| self.send(port, &next, deadline, interrupt))).collect();
            let results = connections.into_iter().map(|sender| match sender.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread that fills the cluster panicked"),
            });
            results.collect()
        })
    }

    /// Sends batches on one connection until all keys are sent, by whichever.
    fn send(self, port: u16, next: &AtomicU64, deadline: Instant, interrupt: &Interrupt) -> anyhow::Result<()> {
        let mut client = Client::connect(port)?;
        let step = self.batch_items();
        loop {
            let first = next.fetch_add(step, Ordering::Relaxed);
            if first >= self.keys {
                return Ok(());
            }
            interrupt.check()?;
            ensure!(Instant::now() < deadline, "the time was over after {first} of {} keys", self.keys);
            client.begin("POST", "/kv-store/v1/kv/batch/", &self.batch(first, step))?;
            client.finish()?;
        }
    }

    fn batch_items(self) -> u64 {
        (BATCH_BYTES_MAX / self.value_bytes.max(1)).clamp(1, ITEMS_MAX)
    }

    /// The batch of the keys from `first` on.
    fn batch(self, first: u64, items: u64) -> String {
        let mut body = String::from("{\"items\":[");
        for number in first..(first + items).min(self.keys) {
            let comma = if number == first { "" } else { "," };
            body.push_str(&format!("{comma}{{\"key\":\"{PREFIX}{number}\",\"value\":\""));
            push_value(&mut body, number, self.value_bytes);
            body.push_str("\"}");
        }
        body + "]}"
    }
}

/// Appends the value of a key: pseudo-random characters (xorshift64*, Vigna 2016), each key's own.
fn push_value(text: &mut String, number: u64, bytes: u64) {
    let mut state = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for _ in 0..bytes {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let random = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 58;
        text.push(ALPHABET.get(random as usize).copied().map_or('A', char::from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_carry_each_key_once_with_a_value_of_its_own() {
        let fill = Fill { keys: 5, value_bytes: 16 };
        let items = [0, 3].map(|first| serde_json::from_str::<serde_json::Value>(&fill.batch(first, 3)).unwrap());
        let items: Vec<_> = items.iter().flat_map(|batch| batch["items"].as_array().unwrap()).collect();
        let keys: Vec<_> = items.iter().map(|item| item["key"].as_str().unwrap()).collect();
        assert_eq!(keys, ["bench/0", "bench/1", "bench/2", "bench/3", "bench/4"]);
        let mut values: Vec<_> = items.iter().map(|item| item["value"].as_str().unwrap()).collect();
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), 5);
        assert!(values.iter().all(|value| value.len() == 16));
        assert_eq!(Fill { keys: 1, value_bytes: 256 * 1024 }.batch_items(), 2);
        assert_eq!(Fill { keys: 1, value_bytes: 16 }.batch_items(), ITEMS_MAX);
    }
}
