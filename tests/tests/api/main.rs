//! The HTTP API: golden scripts of requests and answers, streams, the limits of requests, too many of them, and slow ones.

mod limits;
mod overload;
mod scripts;
mod slow;
mod stream;
