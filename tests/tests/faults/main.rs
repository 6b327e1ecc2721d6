//! Real faults of real processes and networks: whatever happens, clients get no wrong answers.

mod alone;
mod growing;
mod mixed;
mod moving;
mod partitions;
mod paused;
mod rolling;
mod upgrading;
