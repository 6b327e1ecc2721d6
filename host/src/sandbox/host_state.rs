//! What the host keeps beside one instance, and the interfaces of `brink:hooks` that it serves from it.

use wasmtime::component::{HasSelf, Linker};

use super::bindings::brink::hooks::log;
use super::bindings::brink::hooks::store::{self, ReadError};
use super::bindings::brink::hooks::types::{self, Entry};
use super::limiter::Limiter;
use super::lines::Lines;

/// Most random bytes of one request.
const RANDOM_BYTES_MAX: u64 = 64 * 1024;

/// What a guest may read from the host during one call. Called on the thread that runs the guest; may wait for a disk.
///
/// The default value belongs to no call: it answers every read with [`ReadError::Unavailable`]. The sandbox uses it while
/// an instance starts and is configured.
pub trait HostReads: Default + Send + 'static {
    /// The entry of a key, or `None` if it has none.
    fn get(&mut self, key: &str) -> Result<Option<Entry>, ReadError>;

    /// Whether a key has an entry.
    fn exists(&mut self, key: &str) -> Result<bool, ReadError>;

    /// The first `limit` keys from `start` to `end`, both inclusive, in byte order. An empty `end` means no upper bound.
    fn list(&mut self, start: &str, end: &str, limit: u32) -> Result<Vec<String>, ReadError>;
}

pub(super) struct HostState<R> {
    pub(super) lines: Lines,
    pub(super) random: Random,
    /// Whether the guest was given a handle of WASI, which refers to something that ends with the instance.
    pub(super) has_handles: bool,
    pub(super) limiter: Limiter,
    pub(super) reads: R,
}

/// The random numbers of a guest. They follow from a seed, so that a guest computes the same on every node.
///
/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        wasmtime::ensure!(len <= RANDOM_BYTES_MAX, "it asked for more than {RANDOM_BYTES_MAX} random bytes at once");
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        Ok(words.flatten().take(len as usize).collect())
    }
}

pub(super) fn add_to_linker<R: HostReads>(linker: &mut Linker<HostState<R>>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, HasSelf<HostState<R>>>(linker, |state| state)?;
    store::add_to_linker::<_, HasSelf<HostState<R>>>(linker, |state| state)?;
    log::add_to_linker::<_, HasSelf<HostState<R>>>(linker, |state| state)
}

impl<R: HostReads> types::Host for HostState<R> {}

impl<R: HostReads> store::Host for HostState<R> {
    fn get(&mut self, key: String) -> Result<Option<Entry>, ReadError> {
        self.reads.get(&key)
    }

    fn exists(&mut self, key: String) -> Result<bool, ReadError> {
        self.reads.exists(&key)
    }

    fn list(&mut self, start: String, end: String, limit: u32) -> Result<Vec<String>, ReadError> {
        self.reads.list(&start, &end, limit)
    }
}

impl<R: HostReads> log::Host for HostState<R> {
    fn write(&mut self, level: log::Level, message: String) {
        self.lines.log(level, &message);
    }
}
