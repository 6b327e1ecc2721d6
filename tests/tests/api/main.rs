//! The HTTP API: golden scripts of requests and answers, and the limits of requests.

mod limits;
mod scripts;
