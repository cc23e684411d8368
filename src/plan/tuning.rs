//! How much timing of algorithms the user wants (`HYPATIA_TUNE`), and how much work
//! each kind is.

use std::ffi::OsStr;

/// When algorithms are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuning {
    /// Never: first guesses (`0`).
    Off,
    /// A product's first call, within budgets, unless its plan is known.
    FirstUse,
    /// A product's first call, whatever it takes, even if its plan is known (`all`).
    All,
}

/// The work of timing one product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// Limits of scratch memory, in bytes, under which cuBLASLt's heuristic is asked.
    pub limits: &'static [usize],
    /// Algorithms asked of it under each.
    pub candidates: usize,
    /// Replays of each graph; the fastest counts.
    pub replays: usize,
    /// GPU time that one replay should take, in µs.
    pub replay_us: f32,
    /// Launches in one graph at most.
    pub launches: usize,
    /// GPU time for one product at most, in µs.
    pub budget_us: f32,
}

/// The heuristic's lists differ: on an H200, TF32 256x512x512 takes 5.4 us with the best
/// algorithm of the lists for 1 to 16 MiB and 7.5 us with that of the list for 32 MiB,
/// while some strict fp32 products want more than 16 MiB.
const LIMITS: [usize; 3] = [8 << 20, usize::MAX, 0];
/// Those first, so that the first guess is the same.
const MORE_LIMITS: [usize; 8] =
    [8 << 20, usize::MAX, 0, 64 << 10, 1 << 20, 2 << 20, 4 << 20, 16 << 20];

impl Tuning {
    /// By the variable's value; `None` if it is not one.
    #[must_use]
    pub fn parse(value: Option<&OsStr>) -> Option<Self> {
        match value.map(|value| value.to_str().unwrap_or("?")) {
            None | Some("" | "1") => Some(Self::FirstUse),
            Some("0" | "off") => Some(Self::Off),
            Some("all") => Some(Self::All),
            Some(_) => None,
        }
    }

    /// How to time.
    #[must_use]
    pub const fn effort(self) -> Effort {
        match self {
            Self::Off | Self::FirstUse => Effort {
                limits: &LIMITS,
                candidates: 8,
                replays: 3,
                // Long against the event's 0.5 us.
                replay_us: 100.0,
                launches: 20,
                budget_us: 30_000.0,
            },
            Self::All => Effort {
                limits: &MORE_LIMITS,
                candidates: 64,
                replays: 12,
                replay_us: 300.0,
                launches: 64,
                budget_us: f32::INFINITY,
            },
        }
    }

    /// Whether plans that other processes timed are taken.
    #[must_use]
    pub const fn takes_kept_plans(self) -> bool {
        matches!(self, Self::FirstUse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_what_is_none() {
        let parse = |value| Tuning::parse(Some(OsStr::new(value)));
        assert_eq!(Tuning::parse(None), Some(Tuning::FirstUse));
        assert_eq!([parse(""), parse("1")], [Some(Tuning::FirstUse); 2]);
        assert_eq!([parse("0"), parse("off")], [Some(Tuning::Off); 2]);
        assert_eq!(parse("all"), Some(Tuning::All));
        for wrong in ["ALL", "2", "yes", " 0", "?"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn exhaustive_is_more_of_everything_and_takes_nothing_for_granted() {
        let (usual, all) = (Tuning::FirstUse.effort(), Tuning::All.effort());
        assert!(all.candidates > usual.candidates && all.replays > usual.replays);
        assert!(all.replay_us > usual.replay_us && all.budget_us > usual.budget_us);
        assert!(all.limits.starts_with(usual.limits) && all.launches > usual.launches);
        assert!(Tuning::FirstUse.takes_kept_plans());
        assert!(!Tuning::All.takes_kept_plans() && !Tuning::Off.takes_kept_plans());
    }
}
