//! Choosing the cheapest graph out of an e-graph, shared nodes counted once.
//!
//! An e-graph is given as plain data ([`Problem`]): classes of equal values,
//! each with options to compute it from other classes. [`extract`] picks one
//! option for every class that is needed, without a cycle, so that the sum of
//! their costs is least. Because a class is paid for once however many use it,
//! two linears that read the same input may both become slices of one merged
//! linear, although each alone looks dearer that way.
//!
//! # How
//!
//! 1. `prepare` drops what no graph can contain and what costs nothing.
//! 2. `reduce` removes dominated options and merges classes into their only
//!    user; chains and residual stacks of any length vanish here.
//! 3. `landmarks` finds the classes every graph must contain. They are paid
//!    anyway, so they no longer tie their users together.
//! 4. `regions` solves what only one class uses and puts one option in its
//!    place.
//! 5. What is left falls into parts that share nothing (`part`). Each gets a
//!    good choice (`greedy`), a lower bound (`bound`) and, if the two differ,
//!    a branch and bound (`search`).
//! 6. `check`, which knows nothing of the above, recomputes the answer.
//!
//! The problem is NP-hard, so the search counts its steps and stops at
//! [`Limits::steps`]: steps and not time, so that every machine answers alike.
//!
//! # Ties
//!
//! Costs are compared exactly ([`RESOLUTION`]), never by floating-point sums.
//! Of options of equal cost, one that needs a subset of the other's children
//! wins, else the earlier. Of graphs of equal cost, the search keeps the first
//! in the order of its branches: lowest undecided class first, options as
//! given. Parts above [`TIE_CLASSES`] classes keep the greedy choice when the
//! bound proves it cheapest. Equal inputs give equal answers.

mod bound;
mod check;
mod greedy;
mod landmarks;
mod part;
mod prepare;
mod reduce;
mod regions;
mod scc;
mod search;
#[cfg(test)]
mod tests;

use std::fmt;

/// Smallest difference of cost that counts: costs are rounded to multiples of
/// it (picoseconds, if costs are microseconds).
pub const RESOLUTION: f64 = 1e-6;

/// Largest cost an option may have; sums of it over any graph stay exact.
pub const MAX_COST: f64 = 1e15;

/// Parts of at most this many classes are searched for the preferred of
/// several cheapest graphs; see the module's note on ties.
pub const TIE_CLASSES: usize = 64;

/// One way to compute a class.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// What computing it costs, its children excluded: finite, at least 0, at
    /// most [`MAX_COST`].
    pub cost: f64,
    /// The classes it reads; duplicates count once.
    pub children: Vec<usize>,
}

/// An e-graph to extract from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Problem {
    /// The options of each class, the preferred first. A class may be empty:
    /// then it cannot be computed.
    pub classes: Vec<Vec<Choice>>,
    /// The classes that must be computed.
    pub roots: Vec<usize>,
}

/// How far to search, and from where.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Steps the search may take in all; one step looks at one option once.
    pub steps: u64,
    /// A known graph, one option per class it needs; others are ignored. The
    /// answer is never dearer.
    pub start: Option<Vec<Option<usize>>>,
}

impl Default for Limits {
    /// About a second of search at the most.
    fn default() -> Self {
        Self { steps: 15_000_000, start: None }
    }
}

/// The chosen graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Extraction {
    /// The option of every class the roots need; `None` for the others.
    pub chosen: Vec<Option<usize>>,
    /// The sum of the chosen options' costs.
    pub cost: f64,
    /// No graph costs less than this.
    pub lower_bound: f64,
    /// The graph is a cheapest one.
    pub exact: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtractError {
    /// A child or root is not a class.
    NoSuchClass {
        /// The index that came.
        index: usize,
        /// How many classes there are.
        classes: usize,
    },
    /// A cost is negative, not finite or above [`MAX_COST`].
    BadCost {
        /// The option's class.
        class: usize,
        /// The option.
        option: usize,
    },
    /// A root cannot be computed without a cycle.
    Unbuildable {
        /// The root.
        class: usize,
    },
    /// [`Limits::start`] is no graph: too short, an option that is missing or
    /// does not exist, or a cycle, met at this class.
    BadStart {
        /// The class.
        class: usize,
    },
    /// The answer did not pass its check: a bug, and no start to fall back to.
    Internal,
}

impl fmt::Display for ExtractError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchClass { index, classes } => {
                write!(f, "extract: expected a class below {classes}, got {index}")
            }
            Self::BadCost { class, option } => write!(
                f,
                "extract: expected costs from 0 to {MAX_COST:e}, got another for option {option} \
                 of class {class}"
            ),
            Self::Unbuildable { class } => write!(
                f,
                "extract: expected roots that can be computed, got class {class}, which only \
                 depends on itself or on nothing"
            ),
            Self::BadStart { class } => write!(
                f,
                "extract: expected a start without gaps or cycles, got one that fails at class \
                 {class}"
            ),
            Self::Internal => f.write_str("extract: expected a graph that checks, got none"),
        }
    }
}

impl std::error::Error for ExtractError {}

/// Chooses the cheapest graph that computes all roots.
///
/// # Errors
///
/// If the problem or the start is malformed, or a root cannot be computed.
pub fn extract(problem: &Problem, limits: &Limits) -> Result<Extraction, ExtractError> {
    let costs = check::costs(problem)?;
    let start = match &limits.start {
        Some(start) => Some(
            check::evaluate(problem, &costs, start)
                .map_err(|fault| ExtractError::BadStart { class: fault.0 })?,
        ),
        None => None,
    };
    let mut graph = prepare::prepare(problem, &costs)?;
    let mut steps = search::Steps::new(limits.steps);
    landmarks::simplify(&mut graph);
    while regions::collapse(&mut graph, &mut steps) {
        landmarks::simplify(&mut graph);
    }
    let mut lower = graph.base;
    let mut parts = part::split(&graph);
    // Small parts first: a hard one must not eat the steps of the easy ones.
    parts.sort_by_key(|part| (part.classes(), part.ids[0]));
    for part in &parts {
        let solved = search::solve(part, &mut steps);
        lower += solved.lower_bound;
        for (class, option) in solved.chosen.into_iter().enumerate() {
            graph.decided[part.ids[class]] = option.map(|o| part.options[o].index);
        }
    }
    let found = check::evaluate(problem, &costs, &graph.decided).ok();
    // The bound may only disprove an answer if one of the two is wrong.
    let found = found.filter(|found| found.cost >= lower);
    let best = match (found, start) {
        (Some(found), Some(start)) if start.cost < found.cost => start,
        (Some(found), _) => found,
        (None, Some(start)) => {
            lower = 0;
            start
        }
        (None, None) => return Err(ExtractError::Internal),
    };
    Ok(Extraction {
        exact: best.cost == lower,
        cost: check::to_f64(best.cost),
        lower_bound: check::to_f64(lower.min(best.cost)),
        chosen: best.chosen,
    })
}
