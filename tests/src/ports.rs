//! Ports for nodes, none of which two tests get.
//!
//! They are below the ports of outgoing connections, one of which might otherwise take the port of a node that is down. Each
//! test process takes whole blocks of ports; it holds a lock on a file for each as long as it lives, and uses no port twice.

use std::fs::{File, TryLockError};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Mutex;

/// The first port of the first block.
const FIRST: u16 = 10_000;

/// Number of ports in a block.
const BLOCK: u16 = 250;

/// Number of blocks: all of their ports are below 32,000.
const BLOCKS: u16 = 88;

/// The locks of this process, and the ports of its last block that are left.
static TAKEN: Mutex<(Vec<File>, std::ops::Range<u16>)> = Mutex::new((Vec::new(), 0..0));

/// Free ports in ascending order.
pub fn free_ports(count: usize) -> Vec<u16> {
    let mut taken = TAKEN.lock().unwrap();
    let mut ports = Vec::with_capacity(count);
    while ports.len() < count {
        match taken.1.next() {
            // A process that is no test may listen there.
            Some(port) if TcpListener::bind(("127.0.0.1", port)).is_ok() => ports.push(port),
            Some(_) => {}
            None => {
                let (lock, block) = take_block();
                taken.0.push(lock);
                taken.1 = block;
            }
        }
    }
    ports.sort_unstable();
    ports
}

fn take_block() -> (File, std::ops::Range<u16>) {
    let dir = std::env::temp_dir().join("brink-test-ports");
    std::fs::create_dir_all(&dir).unwrap();
    let free = (0..BLOCKS).find_map(|block| Some((try_lock(&dir.join(block.to_string()))?, block)));
    let (lock, block) = free.expect("a free block of ports");
    let first = FIRST + block * BLOCK;
    (lock, first..first + BLOCK)
}

/// Locks a file until it is closed, unless it is locked already.
pub(crate) fn try_lock(path: &Path) -> Option<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    match file.try_lock() {
        Ok(()) => Some(file),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => panic!("{} cannot be locked: {error}", path.display()),
    }
}
