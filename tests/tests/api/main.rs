//! The HTTP API: golden scripts of requests and answers, streams, the limits of requests, and too many of them.

mod limits;
mod overload;
mod scripts;
mod stream;
