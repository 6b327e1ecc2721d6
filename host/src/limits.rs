//! Every limit that a client, a plugin author or an operator can meet, by subject. A bound that only one file knows is a
//! constant at the top of that file.
//!
//! A client that exceeds a limit gets a clear 4xx or 503 at once, and nothing that was accepted is lost (P9).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

// Keys and values

/// Longest key, in bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Largest value, in bytes, before and after transformers.
pub const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest content type that is kept with a value, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// Deepest nesting of arrays and objects in a JSON value.
pub const JSON_LEVELS_MAX: usize = 128;

// Requests

/// Largest body of a `PUT` of one key, in bytes.
pub const BODY_BYTES_MAX: usize = VALUE_BYTES_MAX + 64 * 1024;
/// Most items in a batch.
pub const BATCH_ITEMS_MAX: usize = 10_000;
/// Largest body of a batch, in bytes.
pub const BATCH_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest line of a stream, in bytes: the largest value in Base64, and room for the other members.
pub const STREAM_LINE_BYTES_MAX: usize = VALUE_BYTES_MAX / 3 * 4 + 64 * 1024;
/// Writes of a stream that are under way at once. Beyond it, the node reads on once the client has read answers.
pub const STREAM_WRITES_MAX: usize = 1_024;
/// Bytes of the lines that are under way at once in a stream. Beyond it, the node reads on once the client has read answers.
pub const STREAM_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Time without a line and without a write under way after which a stream ends.
pub const STREAM_IDLE_MAX: Duration = Duration::from_secs(60);
/// Most entries on a page of a range.
pub const PAGE_ENTRIES_MAX: usize = 10_000;
/// Entries on a page of a range if the client sets no limit.
pub const PAGE_ENTRIES_DEFAULT: usize = 100;
/// Bytes of values after which a page ends early.
pub const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of requests' bodies that a node holds at once, uploads of plugins apart. Beyond it, a request is refused with 503.
pub const BODIES_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Steps in which a body takes its room as it arrives, in bytes. What a client only announces takes none.
pub const BODY_STEP_BYTES: usize = 1024 * 1024;
/// Time without a byte of a body after which it is given up.
pub const BODY_STALL_MAX: Duration = Duration::from_secs(10);
/// Bytes of a body that must arrive in each second, on average, once it has taken longer than [`BODY_STALL_MAX`].
pub const BODY_BYTES_PER_S_MIN: u64 = 16 * 1024;
/// Time for a body to arrive, uploads of plugins apart; the largest needs a line of 1 Mbit/s.
pub const BODY_DEADLINE: Duration = Duration::from_secs(150);
/// Bytes read and discarded of a body that is refused, so that its sender sees the refusal.
pub const REFUSED_BODY_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Time for reading and discarding such a body.
pub const REFUSED_BODY_DEADLINE: Duration = Duration::from_secs(5);

// Deadlines and queues

/// Time for a write, from its arrival to its answer.
pub const WRITE_DEADLINE: Duration = Duration::from_millis(2_500);
/// Time for a strong read.
pub const STRONG_READ_DEADLINE: Duration = Duration::from_millis(2_500);
/// Time for a read without `consistency=` to be strong before it falls back to local.
pub const PROMPT_READ_DEADLINE: Duration = Duration::from_millis(150);
/// Writes that wait to be proposed on a node. Beyond it, a write is refused with 503.
pub const PROPOSE_QUEUE_MAX: usize = 16_384;
/// Bytes of writes that wait or are in flight on a node, including those that other nodes forwarded to it. Beyond it, a write is
/// refused with 503.
pub const PROPOSE_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest write in bytes, as the log carries it: after its hooks, and with all that must hold when it is applied. A request that
/// no hook enlarges is never as large. Far below what fits into a call between nodes, which carries entries in whole.
pub const COMMAND_BYTES_MAX: usize = 32 * 1024 * 1024;
// A key is in the log once more if its item has an `if_revision`. `queue` tests that the rest has at most 64 bytes.
const _: () = assert!(BATCH_BODY_BYTES_MAX + BATCH_ITEMS_MAX * (KEY_BYTES_MAX + 64) < COMMAND_BYTES_MAX);
/// Times that a write is judged while its hooks, or the entries they read, keep changing.
pub const REJUDGE_MAX: usize = 8;

// Idempotency

/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Outcomes remembered by `Idempotency-Key`. Beyond it, the oldest are forgotten.
pub const IDEMPOTENCY_KEYS_MAX: u64 = 1_000_000;
/// Bytes of the remembered outcomes. Beyond it, the oldest are forgotten.
pub const IDEMPOTENCY_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Time for which an outcome is remembered, unless newer ones displace it.
pub const IDEMPOTENCY_AGE_MAX: Duration = Duration::from_secs(24 * 3_600);

// The registry

/// Longest name of a plugin or a hook, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most plugins in the registry.
pub const PLUGINS_MAX: usize = 256;
/// Largest component of a plugin, in bytes.
pub const PLUGIN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Uploads that a node receives at once, each in memory. Beyond it, one is refused with 503.
pub const UPLOADS_MAX: usize = 4;
/// Time for the body of an upload to arrive; the largest needs a line of 1 Mbit/s.
pub const UPLOAD_BODY_DEADLINE: Duration = Duration::from_secs(600);
/// Most hooks in force at once.
pub const HOOKS_MAX: usize = 64;
/// Largest configuration of a hook, in bytes of JSON.
pub const HOOK_CONFIG_BYTES_MAX: usize = 1024 * 1024;
/// Largest body of a `PUT` of a hook, in bytes: its configuration, and room for the other fields.
pub const HOOK_BODY_BYTES_MAX: usize = HOOK_CONFIG_BYTES_MAX + 16 * 1024;
/// Largest body of a rollback, in bytes.
pub const ROLL_BACK_BODY_BYTES_MAX: usize = 1024;
/// Changes of the registry kept in its history.
pub const HISTORY_CHANGES_MAX: usize = 200;
/// Bytes of hook configurations in the history.
pub const HISTORY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of plugin versions that only the history names.
pub const HISTORY_VERSIONS_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Time for storing an upload on a majority, piece by piece: 64 MiB over a link of 10 Mbit/s take a minute.
pub const STORE_UPLOAD_DEADLINE: Duration = Duration::from_secs(300);
/// Time for a node to catch up before it changes the registry: it may have just started, and apply the pieces of an upload.
pub const REGISTRY_READ_DEADLINE: Duration = Duration::from_secs(20);
/// Time for any other change of the registry. It waits until hooks are in force.
pub const REGISTRY_DEADLINE: Duration = Duration::from_secs(60);
/// Time that an upload waits for other nodes to compile it.
pub const PREPARE_DEADLINE: Duration = Duration::from_secs(30);
/// Time that a hook waits to be pre-initialized on all nodes before it is in force. After that it is in force all the same, and
/// its calls are configured one by one where it is not ready.
pub const BIND_DEADLINE: Duration = Duration::from_secs(600);
/// Hooks that are being prepared at once in a cluster. Beyond it, a change of a hook is refused with 503.
pub const HOOKS_PREPARED_MAX: usize = 8;

// Compiling a plugin, in a process of its own

/// Functions of a component, over all its modules.
pub const PLUGIN_FUNCTIONS_MAX: u64 = 200_000;
/// The body of one function, in bytes.
pub const PLUGIN_FUNCTION_BYTES_MAX: u64 = 1024 * 1024;
/// Targets of all jump tables (`br_table`) of a component.
pub const PLUGIN_JUMP_TARGETS_MAX: u64 = 1_000_000;
/// Values that the branches of one function carry, at most: its branches, each counted with all locals and with the values of
/// the block it leads to. What a compiler needs grows with it, however small the component is.
pub const PLUGIN_BRANCH_VALUES_MAX: u64 = 10_000_000;
/// Processor time for compiling a component, over all cores. A plugin in Python, of 19 MB, takes 15 s, and 26 s to pre-initialize.
pub const COMPILE_CPU: Duration = Duration::from_secs(300);
/// Memory for compiling a component, in bytes of data: heap, stacks and everything else that is written to.
pub const COMPILE_MEMORY_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Compiled code of a component, in bytes.
pub const COMPILED_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Time for compiling a component, waiting for others included. On a busy machine compilers take far longer than their
/// processor time.
pub const COMPILE_DEADLINE: Duration = Duration::from_secs(900);
/// Components that a node compiles at once, unless writes wait for them.
pub const COMPILERS_MAX: usize = 2;
/// Components that wait to be compiled. Beyond it, one is refused with 503.
pub const COMPILES_WAITING_MAX: usize = 16;
/// Threads that compile one component, but not more than half of the cores.
pub const COMPILER_THREADS_MAX: usize = 4;

// Calls of a plugin

/// Time for a call, unless its hook sets another.
pub const PLUGIN_DEADLINE: Duration = Duration::from_millis(100);
/// Longest deadline that a hook may set for a call.
pub const PLUGIN_DEADLINE_MAX: Duration = Duration::from_secs(10);
/// Time for `configure` when a hook is created.
pub const PLUGIN_CONFIGURE_DEADLINE: Duration = Duration::from_secs(5);
/// Linear memory of an instance, in bytes.
pub const PLUGIN_MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The smallest memory that a hook may grant, in bytes: one page of WebAssembly.
pub const PLUGIN_MEMORY_BYTES_MIN: usize = 64 * 1024;
/// Linear memories of an instance. Together they share [`PLUGIN_MEMORY_BYTES_MAX`].
pub const PLUGIN_MEMORIES_MAX: usize = 4;
/// Table elements of an instance.
pub const PLUGIN_TABLE_ELEMENTS_MAX: usize = 100_000;
/// Tables of an instance. Together they share [`PLUGIN_TABLE_ELEMENTS_MAX`].
pub const PLUGIN_TABLES_MAX: usize = 16;
/// Core WebAssembly instances in a component.
pub const PLUGIN_CORE_INSTANCES_MAX: usize = 64;
/// Bytes that a call may return or pass to the host.
pub const PLUGIN_OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The smallest output that a hook may grant, in bytes: enough for a refusal with a few violations.
pub const PLUGIN_OUTPUT_BYTES_MIN: usize = 4 * 1024;
/// Reads (`get`, `exists`, `list`) in a call.
pub const PLUGIN_READS_MAX: usize = 1_000;
/// Bytes of keys and values that a call may read from the store.
pub const PLUGIN_READ_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Keys in one answer of `list`.
pub const PLUGIN_LIST_MAX: usize = 1_000;
/// Keys that the reads of all hooks of a write may cover. Every node looks at them again when it applies the write. A range
/// counts its keys and one more, for its end; a key that two calls read counts twice.
pub const WRITE_READ_KEYS_MAX: usize = 10_000;
/// Violations kept from a rejection.
pub const PLUGIN_VIOLATIONS_MAX: usize = 100;
/// Bytes kept from each text of a rejection.
pub const PLUGIN_TEXT_BYTES_MAX: usize = 1_024;
/// Log lines kept from a call.
pub const PLUGIN_LOG_LINES_MAX: usize = 64;
/// Bytes kept from a log line.
pub const PLUGIN_LOG_LINE_BYTES_MAX: usize = 4 * 1024;

// Plugins on a node

/// Instances that run at once for writes. Further writes wait their turn.
pub const PLUGIN_INSTANCES_MAX: usize = 32;
/// Instances that run at once for the creation of hooks and for dry runs.
pub const PLUGIN_SIDE_INSTANCES_MAX: usize = 4;
/// Writes that wait for an instance. Beyond it, a write is refused with 503.
pub const PLUGIN_QUEUE_MAX: usize = 4_096;
/// Memory of idle instances, and of the copy that each of their hooks needs to reset them, in MiB; each counts in full, and
/// as at least one. Beyond it, instances are dropped after their calls.
pub const PLUGIN_KEPT_MIB_MAX: usize = 256;
/// Bytes that a call may have written for its instance to be reset. Beyond it, the instance is dropped.
pub const PLUGIN_KEPT_WRITTEN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Log lines of plugins that a node keeps.
pub const PLUGIN_LINES_KEPT: usize = 1_000;

// The cluster

/// Distance that the leader's time keeps to the middle of the voters' clocks, and beyond which a node reports its clock as wrong.
/// Clocks that are set over a network differ by milliseconds. A second is twice the worst error of a reading, and the smallest unit
/// in which users give times.
pub const CLOCK_OFFSET_MAX: Duration = Duration::from_secs(1);
/// Most members of a cluster, learners included.
pub const MEMBERS_MAX: usize = 64;
/// Longest URL of a member, in bytes.
pub const MEMBER_URL_BYTES_MAX: usize = 2_048;
/// Largest hello of a node, in bytes: it may name all members twice.
pub const HELLO_BYTES_MAX: usize = 640 * 1024;
const _: () = assert!(2 * (MEMBERS_MAX + 1) * (MEMBER_URL_BYTES_MAX + 64) <= HELLO_BYTES_MAX);
/// Bytes of calls of other nodes that a node holds at once. Beyond it, it reads on once others were served.
pub const PEER_BODIES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Time without a byte after which a call of another node that is not complete breaks its connection.
pub const PEER_STALL_MAX: Duration = Duration::from_secs(10);
/// Time that a change of the cluster waits until it is in force.
pub const MEMBERSHIP_DEADLINE: Duration = Duration::from_secs(30);
/// Largest body of a change of the cluster, in bytes.
pub const MEMBERSHIP_BODY_BYTES_MAX: usize = 4 * 1024;
/// Rate at which a snapshot is sent, in bytes per second, so that writes keep their share of the network and the disks.
pub const SNAPSHOT_BYTES_PER_SECOND_MAX: u64 = 32 * 1024 * 1024;

// A node

/// Fewest log entries between two snapshots.
pub const SNAPSHOT_ENTRIES_MIN: u64 = 10;
/// Free space of the data directory below which writes are refused, in bytes, unless set. It leaves room for journals and
/// tables that are being written.
pub const DISK_RESERVE_BYTES: u64 = 256 * 1024 * 1024;
/// Time for the head of a request to arrive.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Largest head of a request, in bytes, and the largest part of a body that is read at once.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Time without a request after which a connection of a client is closed.
pub const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(120);
/// Time in which a client takes no byte of an answer after which its connection is cut.
pub const UNTAKEN_ANSWER_MAX: Duration = Duration::from_secs(60);
/// Requests at once on a connection of HTTP/2.
pub const HTTP2_STREAMS_MAX: u32 = 128;
/// Bytes of an answer that wait on a stream of HTTP/2 for the client to take them.
pub const HTTP2_SEND_BYTES_MAX: usize = 64 * 1024;
/// Interval at which the client of an HTTP/2 connection is asked whether it is there.
pub const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// Time for its answer.
pub const HTTP2_PING_DEADLINE: Duration = Duration::from_secs(10);
/// Files that a node keeps for its disk and for other nodes, of those that the system lets it open. Clients may use the others for
/// connections.
pub const FILES_RESERVED: u64 = 512;
/// Time that a stopping node waits for the requests under way.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

// Limits in bytes

/// Largest request that counts as small in a [`ByteBudget`], in bytes.
const SMALL_REQUEST_BYTES_MAX: usize = 64 * 1024;

/// The part of a [`ByteBudget`] that only small requests use: one of so many.
const SMALL_REQUEST_SHARE: usize = 8;

/// A limit for the bytes that requests hold in memory at once. Nothing waits for it: whatever finds no room is refused. Large
/// requests leave some room to small ones, so that a flood of large ones does not stop the others.
#[derive(Clone)]
pub struct ByteBudget {
    free: Arc<Semaphore>,
    reserve: usize,
}

/// Bytes of a [`ByteBudget`] in use. They are free again when this is dropped.
pub struct HeldBytes(OwnedSemaphorePermit);

impl ByteBudget {
    /// A budget of `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(bytes_max)), reserve: bytes_max / SMALL_REQUEST_SHARE }
    }

    /// Takes room for a request; none if there is too little.
    pub fn take(&self, bytes: usize) -> Option<HeldBytes> {
        self.permit(bytes, bytes).map(HeldBytes)
    }

    /// Takes room for more bytes of the same request; false if there is too little.
    pub fn extend(&self, held: &mut HeldBytes, bytes: usize) -> bool {
        let more = self.permit(bytes, held.0.num_permits() + bytes);
        more.map(|more| held.0.merge(more)).is_some()
    }

    fn permit(&self, bytes: usize, request_bytes: usize) -> Option<OwnedSemaphorePermit> {
        let is_large = request_bytes > SMALL_REQUEST_BYTES_MAX;
        if is_large && self.free.available_permits() < bytes.saturating_add(self.reserve) {
            return None;
        }
        self.free.clone().try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }
}

impl HeldBytes {
    /// How many they are.
    pub fn bytes(&self) -> usize {
        self.0.num_permits()
    }

    /// Takes away a part of it, which then counts by itself.
    pub fn split(&mut self, bytes: usize) -> Option<Self> {
        self.0.split(bytes).map(Self)
    }

    /// Adds what another request of the same budget holds.
    pub fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_refused_over_the_budget_and_free_again_when_dropped() {
        let budget = ByteBudget::new(80 * SMALL_REQUEST_BYTES_MAX);
        let mut held = budget.take(60 * SMALL_REQUEST_BYTES_MAX).unwrap();
        assert!(budget.take(20 * SMALL_REQUEST_BYTES_MAX).is_none());
        assert!(budget.extend(&mut held, 10 * SMALL_REQUEST_BYTES_MAX));
        assert!(!budget.extend(&mut held, 1));
        assert!(budget.take(usize::MAX).is_none());
        drop(held);
        assert!(budget.take(70 * SMALL_REQUEST_BYTES_MAX).is_some());
    }

    #[test]
    fn large_requests_leave_room_for_small_ones() {
        let budget = ByteBudget::new(80 * SMALL_REQUEST_BYTES_MAX);
        let mut large = budget.take(SMALL_REQUEST_BYTES_MAX + 1).unwrap();
        while budget.extend(&mut large, 1_024) {}
        let small: Vec<_> = std::iter::from_fn(|| budget.take(SMALL_REQUEST_BYTES_MAX)).collect();
        assert_eq!(small.len(), 10);
    }
}
