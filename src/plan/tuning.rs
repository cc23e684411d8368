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
    /// Algorithms asked of cuBLASLt's heuristic under each limit of scratch memory.
    pub candidates: usize,
    /// Replays of each graph; the fastest counts.
    pub replays: usize,
    /// GPU time that one replay should take, in µs.
    pub replay_us: f32,
    /// GPU time for one product at most, in µs.
    pub budget_us: f32,
}

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
            Self::Off | Self::FirstUse => {
                // A replay is long against the event's 0.5 us.
                Effort { candidates: 8, replays: 3, replay_us: 100.0, budget_us: 30_000.0 }
            }
            Self::All => {
                Effort { candidates: 64, replays: 12, replay_us: 300.0, budget_us: f32::INFINITY }
            }
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
        assert!(Tuning::FirstUse.takes_kept_plans());
        assert!(!Tuning::All.takes_kept_plans() && !Tuning::Off.takes_kept_plans());
    }
}
