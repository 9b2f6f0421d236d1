//! Whose turn it is to pull: each registry has turns of its own, so that one that is dead or slow
//! holds up no image of another.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use smol::lock::{Semaphore, SemaphoreGuardArc};

/// Images that are pulled at once of one registry: a thin link is not made wider by sharing it.
const OF_ONE_REGISTRY: usize = 2;
/// Images that are pulled at once: each costs a thread and memory. Beyond this many registries that
/// are dead at once, others wait.
const OF_ALL: usize = 8;

/// Turns to pull, by registry.
pub(super) struct Turns {
    all: Arc<Semaphore>,
    each: RefCell<BTreeMap<String, Arc<Semaphore>>>,
}

/// A turn, until it is dropped.
pub(super) struct Turn {
    _of_all: SemaphoreGuardArc,
    _of_one: SemaphoreGuardArc,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(OF_ALL)), each: RefCell::default() }
    }

    /// Waits for a turn. Who waits for a registry's takes none of the others'.
    pub(super) async fn take(&self, registry: &str) -> Turn {
        let of_one = {
            let mut each = self.each.borrow_mut();
            // Whoever has a turn, or waits for one, holds it too.
            each.retain(|_, turns| Arc::strong_count(turns) > 1);
            let fresh = || Arc::new(Semaphore::new(OF_ONE_REGISTRY));
            Arc::clone(each.entry(registry.to_owned()).or_insert_with(fresh))
        };
        let _of_one = of_one.acquire_arc().await;
        Turn { _of_all: self.all.acquire_arc().await, _of_one }
    }
}

#[cfg(test)]
mod tests {
    use smol::future::{FutureExt, block_on};

    use super::*;

    /// A turn, if one is free.
    fn take(turns: &Turns, registry: &str) -> Option<Turn> {
        let taken = async { Some(turns.take(registry).await) };
        block_on(taken.or(async { None }))
    }

    #[test]
    fn a_registry_that_is_busy_holds_up_no_other() {
        let turns = Turns::new();
        let dead: Vec<_> = (0..4).filter_map(|_| take(&turns, "dead")).collect();
        assert_eq!(dead.len(), OF_ONE_REGISTRY);
        assert!(take(&turns, "alive").is_some());
        drop(dead);
        assert!(take(&turns, "dead").is_some());
        let all: Vec<_> = (0..20).filter_map(|n| take(&turns, &format!("r{n}"))).collect();
        assert_eq!(all.len(), OF_ALL);
        drop(all);
        assert!(take(&turns, "r").is_some());
        assert_eq!(turns.each.borrow().len(), 1, "what nobody uses is forgotten");
    }
}
