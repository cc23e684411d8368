//! Whether equal shares of work end together. On a shared host one core can be at half
//! its speed for a tenth of a second to minutes, while others use its other half: then
//! threads had better take small tasks from each other than have a share each.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How much longer the slowest share takes than all would if they were shared ideally,
/// from where on that pays: threads that share layers fetch what others wrote, which
/// costs 1.1 to 1.25.
const PAYS: f64 = 1.25;

/// Calls in a row that must have been so, one being an accident.
const IN_A_ROW: u32 = 2;

/// Shares that take less are not judged: threads that share tasks wait for each other.
const SHORTEST: Duration = Duration::from_micros(150);

/// How long threads share then, before equal shares are tried again.
const HOLD: Duration = Duration::from_millis(50);

/// What the last calls were like.
#[derive(Debug, Default)]
pub struct Balance {
    in_a_row: AtomicU32,
    /// Nanoseconds of its own clock.
    shared_until: AtomicU64,
}

impl Balance {
    /// Whether threads should share tasks at this time.
    #[must_use]
    pub fn is_uneven(&self, now: Duration) -> bool {
        nanoseconds(now) < self.shared_until.load(Ordering::Relaxed)
    }

    /// Equal shares have taken as long as `race` says.
    fn judge(&self, race: &Race, now: Duration) {
        if race.loss() < PAYS || race.slowest() < SHORTEST {
            self.in_a_row.store(0, Ordering::Relaxed);
            return;
        }
        // Behind those, one is enough until they are even again.
        if self.in_a_row.fetch_add(1, Ordering::Relaxed).wrapping_add(1) >= IN_A_ROW {
            self.shared_until.store(nanoseconds(now + HOLD), Ordering::Relaxed);
        }
    }
}

/// The equal shares of one call.
#[derive(Debug)]
pub struct Race {
    shares: usize,
    left: AtomicUsize,
    slowest: AtomicU64,
    /// The sum of `RATE` over their nanoseconds.
    rates: AtomicU64,
}

/// Makes whole numbers of rates: a share of 1 s still counts with six digits.
const RATE: u64 = 1 << 50;

impl Race {
    /// Of so many shares.
    #[must_use]
    pub fn new(shares: usize) -> Self {
        Self {
            shares,
            left: AtomicUsize::new(shares),
            slowest: AtomicU64::new(0),
            rates: AtomicU64::new(0),
        }
    }

    /// One has taken so long. True for the last one.
    fn finish(&self, time: Duration) -> bool {
        let time = nanoseconds(time).max(1);
        self.slowest.fetch_max(time, Ordering::Relaxed);
        self.rates.fetch_add(RATE / time, Ordering::Relaxed);
        // Whoever sees all gone sees their times too.
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Shares that have not finished.
    #[cfg(test)]
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    fn slowest(&self) -> Duration {
        Duration::from_nanos(self.slowest.load(Ordering::Relaxed))
    }

    /// The time of the slowest share over that of all if they were shared ideally.
    fn loss(&self) -> f64 {
        let rates = self.rates.load(Ordering::Relaxed) as f64 / RATE as f64;
        self.slowest.load(Ordering::Relaxed) as f64 * rates / self.shares as f64
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Of this process, with the beginning of its clock.
static BALANCE: LazyLock<(Balance, Instant)> =
    LazyLock::new(|| (Balance::default(), Instant::now()));

/// Whether threads should share tasks now.
#[must_use]
pub fn is_uneven() -> bool {
    let (balance, begin) = &*BALANCE;
    balance.is_uneven(begin.elapsed())
}

/// A share of a call is done that began at `began`.
pub fn finished(race: &Race, began: Instant) {
    if race.finish(began.elapsed()) {
        let (balance, begin) = &*BALANCE;
        balance.judge(race, begin.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(times: &[u64]) -> Race {
        let race = Race::new(times.len());
        for (i, time) in times.iter().enumerate() {
            assert_eq!(race.finish(Duration::from_micros(*time)), i + 1 == times.len());
        }
        race
    }

    const NOW: Duration = Duration::from_secs(10);

    /// Whether threads share after calls whose shares took so long.
    fn shares(calls: &[&[u64]]) -> bool {
        let balance = Balance::default();
        for call in calls {
            balance.judge(&micros(call), NOW);
        }
        balance.is_uneven(NOW)
    }

    #[test]
    fn the_loss_is_that_to_ideal_shares() {
        for (times, want) in
            [(&[1000, 1000][..], 1.0), (&[1000, 2000], 1.5), (&[500, 1000, 1000, 1000], 1.25)]
        {
            assert!((micros(times).loss() - want).abs() < 1e-6, "{times:?}");
        }
    }

    #[test]
    fn two_uneven_calls_in_a_row_are_shared() {
        assert!(!shares(&[&[1000, 2400]]));
        assert!(shares(&[&[1000, 2400], &[2400, 1000]]));
        assert!(!shares(&[&[1000, 2400], &[1000, 1100], &[1000, 2400]]));
        assert!(!shares(&[&[1000, 1400], &[1000, 1400]]), "sharing costs as much");
        assert!(!shares(&[&[40, 140], &[40, 140]]), "too short");
    }

    #[test]
    fn equal_shares_are_tried_again_after_a_while() {
        let balance = Balance::default();
        let uneven = micros(&[1000, 2400]);
        balance.judge(&uneven, NOW);
        balance.judge(&uneven, NOW);
        let later = NOW + HOLD;
        assert!(balance.is_uneven(later - Duration::from_millis(1)) && !balance.is_uneven(later));
        balance.judge(&uneven, later);
        assert!(balance.is_uneven(later), "one more is enough");
        balance.judge(&micros(&[1000, 1000]), later + HOLD);
        balance.judge(&uneven, later + HOLD);
        assert!(!balance.is_uneven(later + HOLD));
    }
}
