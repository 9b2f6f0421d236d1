//! Deterministic simulation: a fleet of real agent cores and a controller of the real controller
//! core under one seed, with links, disks, clocks, registries, brokers and containers that fail in
//! every way that the real ones may, and operators who change their minds.
//!
//! [`invariant::Invariant`] lists what must hold. `SEEDS=10000` runs more seeds; `SEED=7` replays one
//! and tells its story.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a simulation stops where an invariant breaks"
)]

mod controller;
mod device;
mod invariant;
mod operator;
mod random;
mod seeds;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::{Run, World};

/// Seeds of a run that says nothing else.
const SEEDS: u64 = 320;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn whatever_fails_the_promises_hold_and_all_converge() {
    if let Some(seed) = number("SEED") {
        println!("{} steps", World::new(seed, true).run().steps);
        return;
    }
    let count = number("SEEDS").unwrap_or(SEEDS);
    let found = seeds::FOUND.iter().map(|(seed, _)| *seed);
    let seeds: Vec<u64> = found.chain(0..count).collect();
    let started = std::time::Instant::now();
    let Run { steps, to_converge } = run_all(&seeds);
    let (seeds, seconds) = (seeds.len(), started.elapsed().as_secs_f64());
    let per_second = steps as f64 / seconds;
    println!("{seeds} seeds, {steps} steps in {seconds:.1} s: {per_second:.0} steps/s");
    println!("with all healed, at most {to_converge} steps of a device until nothing more happens");
}

/// Runs all seeds, as many at once as there are processors: the sum of their steps, and the longest
/// way to convergence.
fn run_all(seeds: &[u64]) -> Run {
    let (next, total) = (AtomicU64::new(0), Mutex::new(Run::default()));
    let failed: Mutex<Vec<(usize, String)>> = Mutex::new(Vec::new());
    let work = || {
        while failed.lock().unwrap().is_empty() {
            let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
            let Some(seed) = seeds.get(at) else { break };
            match catch_unwind(AssertUnwindSafe(|| World::new(*seed, false).run())) {
                Ok(run) => {
                    let mut total = total.lock().unwrap();
                    total.steps += run.steps;
                    total.to_converge = total.to_converge.max(run.to_converge);
                }
                Err(why) => {
                    let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
                    failed.lock().unwrap().push((at, why));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    if let Some((at, why)) = failed.into_inner().unwrap().into_iter().min() {
        let seed = seeds[at];
        panic!("seed {seed} fails: {why}\nreplay it with: make sim SEED={seed}");
    }
    total.into_inner().unwrap()
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let story = |seed| {
        let mut world = World::new(seed, false);
        world.run();
        world.digest()
    };
    assert_eq!(story(11), story(11));
    assert_ne!(story(11), story(12));
}
