//! Plugins and hooks in real clusters: deployment, judgement of writes, containment, history.

mod authors;
mod compatibility;
mod compiling;
mod epochs;
mod examples;
mod history;
mod hostile;
mod logs;
mod references;
mod registry;
mod rules;
mod streams;
mod uploads;
