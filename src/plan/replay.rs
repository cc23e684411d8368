//! Which calls to keep ready for replay: those that come again and again with
//! the very same addresses, as a loop makes them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// A call is worth keeping when it comes for this time.
const MEETINGS: u32 = 3;
/// Calls that came, but not often enough, before all of them are forgotten.
const REMEMBERED: usize = 512;
/// Calls for each recording, which takes a few times as long as a call.
const COST: u32 = 8;
/// Calls that count at most: so many recordings may follow each other.
const MOST_CREDIT: u32 = 64 * COST;

/// What to do with a call.
#[derive(Debug)]
pub enum Verdict<V> {
    /// Replay this.
    Replay(Arc<V>),
    /// Run it, and keep it for later.
    Keep,
    /// Run it.
    Pass,
}

/// Kept calls, the least recently used one giving way. In the long run at most
/// every eighth call is recorded, so that a program whose addresses never settle
/// pays little for it.
#[derive(Debug)]
pub struct Replays<K, V> {
    capacity: usize,
    /// `None`: cannot be kept.
    kept: HashMap<Arc<K>, (Option<Arc<V>>, u64)>,
    met: HashMap<Arc<K>, u32>,
    credit: u32,
    clock: u64,
}

impl<K: Eq + Hash, V> Replays<K, V> {
    /// Keeps at most `capacity`.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let (kept, met) = Default::default();
        Self { capacity, kept, met, credit: MOST_CREDIT, clock: 0 }
    }

    /// A call comes in.
    pub fn meet(&mut self, key: &Arc<K>) -> Verdict<V> {
        self.clock += 1;
        self.credit = (self.credit + 1).min(MOST_CREDIT);
        if let Some((value, used)) = self.kept.get_mut(key) {
            *used = self.clock;
            let Some(value) = value else { return Verdict::Pass };
            return Verdict::Replay(Arc::clone(value));
        }
        if self.met.len() >= REMEMBERED && !self.met.contains_key(key) {
            self.met.clear();
        }
        let times = self.met.entry(Arc::clone(key)).or_insert(0);
        *times = times.saturating_add(1);
        if *times >= MEETINGS && self.credit >= COST {
            Verdict::Keep
        } else {
            Verdict::Pass
        }
    }

    /// Keeps what was made of a call; `None` if nothing can be.
    pub fn keep(&mut self, key: Arc<K>, value: Option<Arc<V>>) {
        self.credit = self.credit.saturating_sub(COST);
        self.met.remove(&key);
        if self.kept.len() >= self.capacity && !self.kept.contains_key(&key) {
            let oldest = self.kept.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| Arc::clone(key)) {
                self.kept.remove(&oldest);
            }
        }
        self.kept.insert(key, (value, self.clock));
    }

    /// Calls kept now.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.kept.values().filter(|(value, _)| value.is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meet(replays: &mut Replays<u64, u64>, key: u64) -> Option<u64> {
        let key = Arc::new(key);
        match replays.meet(&key) {
            Verdict::Replay(value) => Some(*value),
            Verdict::Keep => {
                let value = Arc::new(*key * 10);
                replays.keep(key, Some(value));
                None
            }
            Verdict::Pass => None,
        }
    }

    #[test]
    fn the_third_meeting_is_kept_and_the_fourth_replayed() {
        let mut replays = Replays::new(4);
        let seen: Vec<_> = (0..5).map(|_| meet(&mut replays, 7)).collect();
        assert_eq!(seen, [None, None, None, Some(70), Some(70)]);
        assert_eq!(replays.len(), 1);
    }

    #[test]
    fn the_least_recently_used_gives_way() {
        let mut replays = Replays::new(2);
        for key in [1, 2, 1, 3] {
            (0..3).for_each(|_| {
                meet(&mut replays, key);
            });
        }
        assert_eq!(meet(&mut replays, 1), Some(10));
        assert_eq!(meet(&mut replays, 3), Some(30));
        assert_eq!(meet(&mut replays, 2), None);
    }

    #[test]
    fn what_cannot_be_kept_is_not_tried_again() {
        let mut replays: Replays<u64, u64> = Replays::new(2);
        let key = Arc::new(1);
        (0..3).for_each(|_| drop(replays.meet(&key)));
        replays.keep(Arc::clone(&key), None);
        assert!((0..9).all(|_| matches!(replays.meet(&key), Verdict::Pass)));
        assert_eq!(replays.len(), 0);
    }

    #[test]
    fn at_most_every_eighth_call_is_recorded() {
        let mut replays = Replays::new(8);
        // Each comes often enough and never again.
        let calls = (0..10_000_u64).flat_map(|call| [call; 3]);
        let recorded = calls
            .filter(|call| {
                let key = Arc::new(*call);
                let keep = matches!(replays.meet(&key), Verdict::Keep);
                if keep {
                    replays.keep(key, Some(Arc::new(0)));
                }
                keep
            })
            .count();
        assert_eq!(recorded, 63 + 30_000 / 8);
        // Then it settles.
        let settled: Vec<_> = (0..20).map(|_| meet(&mut replays, 77_777)).collect();
        assert!(settled.iter().filter(|value| value.is_some()).count() >= 20 - 3 - 8);
    }

    #[test]
    fn what_was_met_is_bounded() {
        let mut replays: Replays<u64, u64> = Replays::new(8);
        for key in 0..10 * REMEMBERED as u64 {
            meet(&mut replays, key);
        }
        assert!(replays.met.len() <= REMEMBERED);
    }
}
