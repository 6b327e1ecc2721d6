//! Wrong clocks and suspended machines.
//!
//! The wall clocks of a minority are unsteady: they start wrong in most simulations, and step in both directions. All others are
//! right, apart from their rates. Any machine may be suspended.

use super::world::World;

const HOUR_MS: i64 = 3_600_000;

/// The distances to the right time that an unsteady clock shows: never set (2020), a day and a step beyond the age of names both ways,
/// a little, and none.
const WRONG_MS: [i64; 7] = [-122_000_000_000, 25 * HOUR_MS, -25 * HOUR_MS, HOUR_MS, 5_000, -5_000, 0];

/// Chooses the nodes with unsteady clocks. If the members change, any of them may be a majority, so there are none.
pub(super) fn begin(world: &mut World, seed: u64, members_change: bool) {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x636c_6f63_6b73);
    if members_change {
        return;
    }
    let mut numbers: Vec<usize> = (0..world.nodes.len()).collect();
    rng.shuffle(&mut numbers);
    numbers.truncate((world.nodes.len() - 1) / 2);
    for number in &numbers {
        set(world, *number, WRONG_MS[rng.usize(0..WRONG_MS.len())]);
    }
    world.unsteady_clocks = numbers;
}

/// Sets an unsteady clock to another time.
pub(super) fn step(world: &mut World) {
    let ahead_ms = WRONG_MS[world.rng.usize(0..WRONG_MS.len())];
    if let Some(&number) = world.rng.choice(&world.unsteady_clocks) {
        set(world, number, ahead_ms);
    }
}

/// Sets a node's wall clock to so many milliseconds ahead of the world's time.
pub(super) fn set(world: &mut World, number: usize, ahead_ms: i64) {
    world.note(("clock", number, ahead_ms));
    world.nodes[number].set_wall_clock(ahead_ms);
}

/// Suspends a node's machine for some time.
pub(super) fn suspend(world: &mut World, number: usize, ms: u64) {
    world.note(("suspend", number, ms));
    let now_ms = world.now_ms;
    world.nodes[number].suspend(now_ms, now_ms + ms);
}
