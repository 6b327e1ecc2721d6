//! Every limit of a node, by name.
//!
//! Over a limit the client gets a clear 4xx or 503 at once; nothing that was accepted is lost.

use std::time::Duration;

/// Longest key, in bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 1_024;

/// Largest value, in bytes, before and after transformers.
pub const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest content type that is kept with a value, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;

/// Deepest nesting of arrays and objects in a JSON value.
pub const JSON_LEVELS_MAX: usize = 128;

/// Largest body of a `PUT` of one key, in bytes.
pub const BODY_BYTES_MAX: usize = VALUE_BYTES_MAX + 64 * 1024;

/// Most items in a batch.
pub const BATCH_ITEMS_MAX: usize = 10_000;

/// Largest body of a batch, in bytes.
pub const BATCH_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What is read and forgotten of a body that is too large, in bytes, so that its sender sees the refusal.
pub const REFUSED_BODY_BYTES_MAX: usize = 128 * 1024 * 1024;

/// How long that may take.
pub const REFUSED_BODY_DEADLINE: Duration = Duration::from_secs(5);

/// Most entries on a page of a range.
pub const PAGE_ENTRIES_MAX: usize = 10_000;

/// Entries on a page of a range if the client names no limit.
pub const PAGE_ENTRIES_DEFAULT: usize = 100;

/// A page ends early once its values reach this many bytes, so that an answer stays small.
pub const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Largest plugin, in bytes of the component.
pub const PLUGIN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Uploads of plugins that a node takes at once; over it one is refused with 503. Each keeps its component in memory.
pub const UPLOADS_MAX: usize = 4;

/// How long the body of an upload may take to arrive: the largest one needs a line of 1 Mbit/s.
pub const UPLOAD_BODY_DEADLINE: Duration = Duration::from_secs(600);

/// Longest name of a plugin or a hook, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Largest configuration of a hook, in bytes of JSON.
pub const HOOK_CONFIG_BYTES_MAX: usize = 1024 * 1024;

/// Largest body of a `PUT` of a hook, in bytes: its configuration, and room for the other fields.
pub const HOOK_BODY_BYTES_MAX: usize = HOOK_CONFIG_BYTES_MAX + 16 * 1024;

/// Largest body of a rollback, in bytes.
pub const ROLL_BACK_BODY_BYTES_MAX: usize = 1024;

/// Most hooks in force at once.
pub const HOOKS_MAX: usize = 64;

/// How long one call of a plugin may run.
pub const PLUGIN_DEADLINE: Duration = Duration::from_millis(100);

/// How long `configure` may run when a hook is created.
pub const PLUGIN_CONFIGURE_DEADLINE: Duration = Duration::from_secs(5);

/// Linear memory of one plugin instance, in bytes.
pub const PLUGIN_MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Elements of one table of a plugin.
pub const PLUGIN_TABLE_ELEMENTS_MAX: usize = 100_000;

/// What a plugin may return or pass to the host in one call, in bytes.
pub const PLUGIN_OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Plugin instances running at once on a node; further writes wait their turn.
pub const PLUGIN_INSTANCES_MAX: usize = 32;

/// Memory of plugin instances that wait for the next call of their hook, and of the copy that each such hook needs of what
/// they began with; in MiB, each counted in full and as at least one. Beyond it instances are thrown away after their calls.
pub const PLUGIN_KEPT_MIB_MAX: usize = 256;

/// What an instance may have written to and wait, in bytes.
pub const PLUGIN_KEPT_WRITTEN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Writes that wait for a plugin instance; over it a write is refused with 503.
pub const PLUGIN_QUEUE_MAX: usize = 4_096;

/// Reads (`get`, `exists`, `list`) in one call of a plugin.
pub const PLUGIN_READS_MAX: usize = 1_000;

/// Keys in one answer of a plugin's `list`.
pub const PLUGIN_LIST_MAX: usize = 1_000;

/// Violations kept of a rejection.
pub const PLUGIN_VIOLATIONS_MAX: usize = 100;

/// Log lines kept of one call of a plugin.
pub const PLUGIN_LOG_LINES_MAX: usize = 64;

/// Bytes kept of one log line of a plugin.
pub const PLUGIN_LOG_LINE_BYTES_MAX: usize = 4 * 1024;

/// How often a write goes back through the hooks because what they read, or they themselves, changed meanwhile.
pub const REJUDGE_MAX: usize = 8;

/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// Writes remembered by their `Idempotency-Key`; beyond it the oldest are forgotten.
pub const IDEMPOTENCY_KEYS_MAX: u64 = 1_000_000;

/// Bytes of what is remembered by `Idempotency-Key`; beyond it the oldest are forgotten.
pub const IDEMPOTENCY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How long a write is remembered by its `Idempotency-Key`, unless more recent ones fill the memory before.
pub const IDEMPOTENCY_AGE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// How long a call that changes the cluster waits until the change is in force.
pub const MEMBERSHIP_DEADLINE: Duration = Duration::from_secs(30);

/// Largest body of a call that changes the cluster, in bytes.
pub const MEMBERSHIP_BODY_BYTES_MAX: usize = 4 * 1024;

/// Writes waiting to be proposed on a node; over it a write is refused with 503.
pub const PROPOSE_QUEUE_MAX: usize = 16_384;

/// Writes that share one proposal round.
pub const ROUND_WRITES_MAX: usize = 1_024;

/// Bytes of commands that share one proposal round (a single larger write goes alone).
pub const ROUND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long the writes of the next proposal round wait for the one in flight.
pub const ROUND_PATIENCE: Duration = Duration::from_millis(20);

/// Proposal rounds in flight at once on a node.
pub const ROUNDS_IN_FLIGHT_MAX: usize = 8;

/// How long a write may take from its arrival to its answer.
pub const WRITE_DEADLINE: Duration = Duration::from_millis(2_500);

/// How long a strong read may take.
pub const STRONG_READ_DEADLINE: Duration = Duration::from_millis(2_500);

/// How long a read without `consistency=` tries to be strong before it falls back to local.
pub const PROMPT_READ_DEADLINE: Duration = Duration::from_millis(150);

/// Largest body of a call between nodes, in bytes: one entry that carries a batch and what plugins made of it.
pub const PEER_BODY_BYTES_MAX: usize = PLUGIN_BYTES_MAX + 8 * 1024 * 1024;

/// How fast a snapshot is sent to another node, in bytes per second, so that writes keep their share of the network and of
/// the disks.
pub const SNAPSHOT_BYTES_PER_SECOND_MAX: u64 = 32 * 1024 * 1024;

/// Lines of plugins that a node keeps for who asks for them.
pub const PLUGIN_LINES_KEPT: usize = 1_000;

/// Plugins in the registry.
pub const PLUGINS_MAX: usize = 256;

/// Changes of the registry that are remembered.
pub const HISTORY_CHANGES_MAX: usize = 200;

/// Bytes of hooks' configurations in the changes that are remembered.
pub const HISTORY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of plugin versions that are kept only to be rolled back to.
pub const HISTORY_VERSIONS_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How long a change of the registry may take: it carries plugins, and waits until hooks are in force.
pub const REGISTRY_DEADLINE: Duration = Duration::from_secs(60);

/// How long a change of the registry waits for other nodes to compile what it brings.
pub const PREPARE_DEADLINE: Duration = Duration::from_secs(30);

/// Free space of the data directory below which writes are refused, in bytes, unless set: room for the journals that are
/// begun, and for tables that are being written.
pub const DISK_RESERVE_BYTES: u64 = 256 * 1024 * 1024;

/// How often it is looked how much space is free.
pub const DISK_POLL: Duration = Duration::from_millis(500);

/// How long a node that stops waits for the requests it is answering.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// What one call of a plugin may read from the store, in bytes of keys and values.
pub const PLUGIN_READ_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The longest deadline a hook may set for a call of its plugin.
pub const PLUGIN_DEADLINE_MAX: Duration = Duration::from_secs(10);

/// Core WebAssembly instances one plugin may be made of.
pub const PLUGIN_CORE_INSTANCES_MAX: usize = 64;

/// Linear memories one plugin may have; together they share [`PLUGIN_MEMORY_BYTES_MAX`].
pub const PLUGIN_MEMORIES_MAX: usize = 4;

/// Tables one plugin may have; together they share [`PLUGIN_TABLE_ELEMENTS_MAX`].
pub const PLUGIN_TABLES_MAX: usize = 16;

/// Plugin instances running at once on a node to create hooks and for dry runs, beside those for writes.
pub const PLUGIN_SIDE_INSTANCES_MAX: usize = 4;

/// Bytes kept of one text of a plugin's rejection.
pub const PLUGIN_TEXT_BYTES_MAX: usize = 1_024;
