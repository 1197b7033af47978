//! The chance of simulations: the same numbers for the same seed, for ever, and a way to run one seed again.
//!
//! `SEED=4711 cargo test -p agent simulation` replays what failed; `SEEDS=100` bounds how many run where a processor is emulated.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// SplitMix64: small, and good enough to draw events.
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 to `below`, without it.
    pub fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % below as u64).unwrap()
    }

    /// Yes, once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.next(times) == 0
    }
}

/// Runs a simulation with the seeds from 0 to `count` (or to `SEEDS`), or with that of `SEED` alone; a failure names its seed.
pub fn simulate(count: u64, run: impl Fn(u64)) {
    #[expect(
        clippy::disallowed_methods,
        reason = "a developer's way to choose seeds, not configuration"
    )]
    let given = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = given("SEED") {
        return run(seed);
    }
    for seed in 0..given("SEEDS").map_or(count, |most| most.min(count)) {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed)));
        assert!(outcome.is_ok(), "failed with SEED={seed}");
    }
}
