//! Where replication does what may block: the disk must not hold up the async threads.

use std::io;
use std::iter;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

/// Does what may block. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub enum Blocking {
    /// On threads of their own.
    #[default]
    Threads,
    /// In place, after a little simulated time, so that a simulation has one thread and always the same course.
    #[cfg(test)]
    Simulated,
}

impl Blocking {
    /// Does a job and waits for it. The job goes on if nobody waits any more.
    pub(super) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(job).await.map_err(io::Error::other),
            #[cfg(test)]
            Self::Simulated => {
                tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(0..=2))).await;
                Ok(job())
            }
        }
    }

    /// What an iterator that may block yields; up to `ahead` items are read before they are asked for. A stream that is
    /// dropped stops the reading.
    pub(super) fn stream<I>(
        &self,
        ahead: usize,
        open: impl FnOnce() -> io::Result<I> + Send + 'static,
    ) -> BoxStream<'static, io::Result<Bytes>>
    where
        I: Iterator<Item = io::Result<Bytes>> + Send + 'static,
    {
        let items = move || -> Box<dyn Iterator<Item = io::Result<Bytes>> + Send> {
            match open() {
                Ok(items) => Box::new(items),
                Err(error) => Box::new(iter::once(Err(error))),
            }
        };
        match self {
            Self::Threads => {
                let (sender, receiver) = tokio::sync::mpsc::channel(ahead);
                tokio::task::spawn_blocking(move || {
                    // A receiver that is gone means that nobody wants the rest.
                    items().all(|item| sender.blocking_send(item).is_ok())
                });
                let next =
                    |mut receiver: tokio::sync::mpsc::Receiver<_>| async { Some((receiver.recv().await?, receiver)) };
                futures::stream::unfold(receiver, next).boxed()
            }
            #[cfg(test)]
            Self::Simulated => futures::stream::iter(items()).boxed(),
        }
    }
}
