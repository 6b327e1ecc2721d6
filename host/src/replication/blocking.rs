//! Where replication runs work that may block: the disk must not hold up the async threads.

use std::{io, iter};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};

/// Runs blocking work. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Blocking {
    /// On tokio's blocking threads.
    Threads,
    /// On the caller's thread, after a delay that is asked for once per job: for simulations, which have one thread and always
    /// take the same course. The delay must depend on nothing but the simulation's seed.
    InPlace(fn() -> BoxFuture<'static, ()>),
}

impl Blocking {
    /// Runs a job and waits for it. The job continues even if the caller stops waiting.
    pub(super) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(job).await.map_err(io::Error::other),
            Self::InPlace(delay) => {
                delay().await;
                Ok(job())
            }
        }
    }

    /// Streams the items of a blocking iterator, reading up to `ahead` items in advance. Dropping the stream stops the
    /// reading.
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
                let (sender, mut receiver) = tokio::sync::mpsc::channel(ahead);
                tokio::task::spawn_blocking(move || {
                    // Sending fails once the stream has been dropped.
                    items().all(|item| sender.blocking_send(item).is_ok())
                });
                futures::stream::poll_fn(move |context| receiver.poll_recv(context)).boxed()
            }
            Self::InPlace(_) => futures::stream::iter(items()).boxed(),
        }
    }
}
