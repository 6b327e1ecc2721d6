//! Clusters of real processes: formation, membership, loss and recovery of nodes.

mod belonging;
mod bootstrap;
mod clocks;
mod durability;
mod idempotency;
mod learners;
mod membership;
mod node_loss;
mod snapshot;
mod strangers;
mod surroundings;
mod trace;
