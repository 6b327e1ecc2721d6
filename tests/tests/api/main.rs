//! The HTTP API: golden scripts of requests and answers, streams, browsers, rights, the limits of requests, too many of them, and slow
//! ones.

mod limits;
mod overload;
mod rights;
mod scripts;
mod slow;
mod strangers;
mod stream;
mod unread;
