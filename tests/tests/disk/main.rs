//! Disks that lose power, fail, delay and fill up, under real processes: what a node guarantees with a correct disk, and
//! what it reports when the disk breaks its own guarantees.

mod damaged_state;
mod failed_disk;
mod format;
mod full_disk;
mod lost_tail;
mod power_cut;
mod private;
mod setup;
mod slow_sync;
