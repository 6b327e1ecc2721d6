//! An instance whose call has ended is put back to where it began, and the next call gets it.
//!
//! # Problem
//!
//! No call may see what another left. A new instance for each is the plain way to that, and most of what a short call costs: the
//! engine's own data are made anew, functions are linked at their first use, and all of it is cold in the caches of the
//! processor.
//!
//! # Approach
//!
//! What a call can leave is known (see `rewindable`): globals, pages of memory, and nothing else. The globals are put back by a
//! function in the instance; of the memory, the system says which pages were written to (see `pages`), and these get the
//! bytes of the image again. It is asked when a call had page faults, which is mostly the first of an instance: without one,
//! the call wrote to no pages but those that were found before. An instance that was put back cannot be told from a new one by
//! what runs in it.
//!
//! One instance of each hook waits at each thread that asks, as long as all have [`limits::PLUGIN_KEPT_MIB_MAX`] of memory. They
//! are only a stock: where none waits, a call starts a new one.
//!
//! # Guarantees
//!
//! Only an instance whose call returned as it should is put back, whose memory has not grown, and that was given no
//! handles of WASI. All others are thrown away: after a trap, a missed deadline or a refused growth nobody has to ask what
//! state they are in. So is one that has written to more than [`limits::PLUGIN_KEPT_WRITTEN_BYTES_MAX`], and one of which the
//! system does not tell.
//!
//! In debug builds, which all tests are, the whole memory is compared with the image each time.
//!
//! # Cost
//!
//! Two short system calls, and a copy of the pages that this instance has written to since it started; after a page fault one
//! more call, which takes longer the larger the memory is. 1 µs and the copies, where ending an instance and starting another
//! costs 7 to 9, and what is called for the first time in an instance as much again. A call of a plugin in Python takes 31 µs in
//! place of 1,200: its memory of 13 MiB need not be mapped and copied anew.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::component::{ComponentExportIndex, TypedFunc, WasmList};

use super::guest::{Guest, Live};
use super::hook::Hook;
use super::pages::{self, Faults, PageMap, Pages, RUNS_MAX};
use super::per_thread::PerThread;
use super::plugin::Code;
use super::rewindable::{MEMORY, PUT_BACK};
use super::ticker::Ticker;
use crate::limits;

/// How long putting the globals back may take. It is a few instructions.
const PATIENCE: Duration = Duration::from_secs(1);

/// Of an image to which nothing could be added that puts it back.
const NOT_REWINDABLE: &str =
    "it may have state that cannot be reached (the log of making its image says which, at level debug)";

/// What lets a node put instances back.
pub(super) struct Means {
    pages: PageMap,
    /// One permit for each MiB of instances that may wait.
    room: Arc<Semaphore>,
}

/// Puts the instances of one image back, and keeps those that wait.
pub(super) struct Rewinder {
    means: Arc<Means>,
    put_back: ComponentExportIndex,
    memory: ComponentExportIndex,
    pristine: Pristine,
    waiting: PerThread<Mutex<Option<Live>>>,
    _room: OwnedSemaphorePermit,
}

/// What it takes to put one instance back, found when that is first done.
pub(super) struct WayBack {
    put_back: TypedFunc<(), ()>,
    memory: WasmList<u8>,
    /// Pieces of the memory (see [`Pristine`]) that it has written to since it started, in order.
    written: Vec<usize>,
    /// The page faults of the thread when `written` was all, if they could be counted.
    faults: Option<Faults>,
    _room: OwnedSemaphorePermit,
}

impl Means {
    /// Those of this system. `None`, with a line in the log: it does not have them.
    pub(super) fn find() -> Option<Arc<Self>> {
        let pages = PageMap::open();
        let pages = pages.map_err(|error| tracing::debug!(%error, "plugin instances are not put back")).ok()?;
        let room = Arc::new(Semaphore::new(limits::PLUGIN_KEPT_MIB_MAX));
        Some(Arc::new(Self { pages, room }))
    }

    /// Room for so much memory, if there is any.
    fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.div_ceil(1 << 20)).ok()?;
        Arc::clone(&self.room).try_acquire_many_owned(permits.max(1)).ok()
    }
}

impl Rewinder {
    /// For the instances of an image that is `rewindable`.
    pub(super) fn new(means: &Arc<Means>, code: &Code, hook: &Hook) -> Result<Self, String> {
        // IMPORTANT: only what we added may be called. If the plugin had such exports, nothing was added, and they are its own.
        let (plugin, component) = (hook.plugin().code().pre.component(), code.pre.component());
        if [PUT_BACK, MEMORY].iter().any(|name| plugin.get_export_index(None, name).is_some()) {
            return Err("it has exports of its own that are named like ours".to_owned());
        }
        let export = |name| component.get_export_index(None, name).ok_or_else(|| NOT_REWINDABLE.to_owned());
        let (put_back, memory) = (export(PUT_BACK)?, export(MEMORY)?);
        let pristine = Guest::with(hook.core(), code, hook.speaker(), hook.allowance(), |guest| {
            let live = guest.live();
            live.expect_reading();
            let memory = read_memory(live, memory)?;
            let memory = memory.as_le_slice(&live.store);
            let pristine = Pristine::of(memory);
            let range = memory.as_ptr_range();
            #[allow(unsafe_code, reason = "the instance ends here")]
            // SAFETY: nothing runs in the instance any more, and nobody else refers to its memory.
            unsafe {
                pages::forget(range);
            }
            Ok(pristine)
        });
        let pristine = pristine.map_err(|error| error.to_string())?;
        let pristine = pristine.map_err(|error: wasmtime::Error| format!("{error:#}"))?;
        let room = means.room(pristine.bytes());
        let room = room.ok_or_else(|| "other hooks have all the memory that a node keeps for that".to_owned())?;
        Ok(Self { means: Arc::clone(means), put_back, memory, pristine, waiting: PerThread::default(), _room: room })
    }

    /// An instance that waits at this thread.
    pub(super) fn take(&self) -> Option<Live> {
        let mut live = self.waiting.mine().try_lock().ok()?.take()?;
        if let Some(way_back) = &mut live.way_back {
            way_back.faults = Faults::of_this_thread().ok();
        }
        Some(live)
    }

    /// Puts an instance back, to wait at this thread; or ends it.
    pub(super) fn keep(&self, mut live: Live) {
        let Ok(mut waiting) = self.waiting.mine().try_lock() else { return };
        if waiting.is_some() {
            return;
        }
        match self.rewind(&mut live) {
            Ok(true) => *waiting = Some(live),
            Ok(false) => {}
            Err(error) => tracing::debug!(error = format!("{error:#}"), "a plugin instance was not put back"),
        }
    }

    /// Instances that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.iter().filter(|waiting| waiting.lock().is_ok_and(|waiting| waiting.is_some())).count()
    }

    /// Makes an instance as good as new. `false`: it cannot be made so.
    fn rewind(&self, live: &mut Live) -> wasmtime::Result<bool> {
        if live.store.data().has_more_than(self.pristine.bytes()) {
            return Ok(false);
        }
        live.store.set_epoch_deadline(Ticker::ticks(PATIENCE));
        let mut way_back = match live.way_back.take() {
            Some(way_back) => way_back,
            None => match self.find_way_back(live)? {
                Some(way_back) => way_back,
                None => return Ok(false),
            },
        };
        way_back.put_back.call(&mut live.store, ())?;
        let memory = way_back.memory.as_le_slice(&live.store).as_ptr_range();
        let is_known = way_back.faults.is_some() && way_back.faults == Faults::of_this_thread().ok();
        if !is_known && !self.look(memory.start.addr()..memory.end.addr(), &mut way_back.written)? {
            return Ok(false);
        }
        #[allow(unsafe_code, reason = "what runs in the instance hides its memory")]
        // SAFETY: the instance is borrowed for us alone and does not run; its memory has as many bytes as the pristine one
        // (checked above: it has not grown) and begins there. It is the system's, and compiled code, which the language knows
        // nothing of, writes to it by its address; so do we.
        unsafe {
            let memory = std::ptr::with_exposed_provenance_mut(memory.start.expose_provenance());
            self.pristine.put_back(memory, &way_back.written);
        }
        debug_assert!(self.pristine.is(way_back.memory.as_le_slice(&live.store)), "memory is as in the image");
        live.way_back = Some(way_back);
        Ok(true)
    }

    /// Finds the pieces of a memory that were written to. `false`: they are too many, or the system does not tell.
    fn look(&self, memory: Range<usize>, written: &mut Vec<usize>) -> wasmtime::Result<bool> {
        written.clear();
        let mut found = [Pages::default(); RUNS_MAX];
        let mut at = memory.start;
        while at < memory.end {
            let (runs, end) = self.means.pages.written(at..memory.end, &mut found)?;
            for pages in runs {
                let range = pages.range();
                let pieces = (range.start - memory.start) / PIECE_BYTES..(range.end - memory.start) / PIECE_BYTES;
                written.extend(pieces.filter(|piece| !pages.are_zero() || self.pristine.has(*piece)));
            }
            if end <= at || written.len() * PIECE_BYTES > limits::PLUGIN_KEPT_WRITTEN_BYTES_MAX {
                return Ok(false);
            }
            at = end;
        }
        Ok(true)
    }

    fn find_way_back(&self, live: &mut Live) -> wasmtime::Result<Option<WayBack>> {
        let Some(room) = self.means.room(self.pristine.bytes()) else { return Ok(None) };
        live.expect_reading();
        let put_back = live.instance.get_typed_func(&mut live.store, self.put_back)?;
        let memory = read_memory(live, self.memory)?;
        pages::stay_small(memory.as_le_slice(&live.store).as_ptr_range())?;
        Ok(Some(WayBack { put_back, memory, written: Vec::new(), faults: None, _room: room }))
    }
}

/// Where the memory of an instance is.
fn read_memory(live: &mut Live, index: ComponentExportIndex) -> wasmtime::Result<WasmList<u8>> {
    let memory = live.instance.get_typed_func::<(), (WasmList<u8>,)>(&mut live.store, index)?;
    Ok(memory.call(&mut live.store, ())?.0)
}

/// Bytes that are kept together. A page of the system is one of these, or several.
const PIECE_BYTES: usize = 4096;

/// The memory of a new instance. Pieces of zeros are left out.
struct Pristine(Vec<Option<Box<[u8; PIECE_BYTES]>>>);

impl Pristine {
    fn of(memory: &[u8]) -> Self {
        // A memory of 32 bits has whole pages of 64 KiB.
        let (pieces, _) = memory.as_chunks::<PIECE_BYTES>();
        Self(pieces.iter().map(|piece| piece.iter().any(|byte| *byte != 0).then(|| Box::new(*piece))).collect())
    }

    fn bytes(&self) -> usize {
        self.0.len() * PIECE_BYTES
    }

    /// Whether a memory is the same.
    fn is(&self, memory: &[u8]) -> bool {
        let (pieces, rest) = memory.as_chunks::<PIECE_BYTES>();
        let are_same = |(piece, own): (&[u8; PIECE_BYTES], &Option<Box<_>>)| match own {
            Some(own) => piece == &**own,
            None => piece.iter().all(|byte| *byte == 0),
        };
        rest.is_empty() && pieces.len() == self.0.len() && pieces.iter().zip(&self.0).all(are_same)
    }

    /// Whether a piece is not of zeros.
    fn has(&self, piece: usize) -> bool {
        self.0.get(piece).is_some_and(Option::is_some)
    }

    /// Puts back what some pieces of a memory began with.
    ///
    /// # Safety
    ///
    /// At `memory` are as many bytes as this has, which nobody else refers to.
    #[allow(unsafe_code, reason = "what runs in the instance hides its memory")]
    unsafe fn put_back(&self, memory: *mut u8, pieces: &[usize]) {
        for index in pieces {
            let Some(piece) = self.0.get(*index) else { continue };
            // SAFETY: the piece is one of ours, so there is memory for it, as the caller says.
            unsafe {
                let at = memory.add(index * PIECE_BYTES);
                match piece {
                    Some(piece) => piece.as_ptr().copy_to_nonoverlapping(at, PIECE_BYTES),
                    None => at.write_bytes(0, PIECE_BYTES),
                }
            }
        }
    }
}
