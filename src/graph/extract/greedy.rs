//! Good choices without search, to prune against and to fall back to.

use super::bound::{relax, Combine, Relaxed, NEVER};
use super::part::Part;
use super::search::Steps;

/// A choice for a part.
#[derive(Clone)]
pub(super) struct Choice {
    /// The option of each class; meaningless for classes that are not needed.
    pub best: Vec<Option<usize>>,
    /// What the needed ones cost, each once.
    pub cost: u128,
}

/// The classes that the roots reach by `best`; `None` if one has no option.
fn needed(part: &Part, best: &[Option<usize>]) -> Option<(Vec<bool>, u128)> {
    let mut seen = vec![false; part.classes()];
    let (mut stack, mut cost) = (part.roots.clone(), 0);
    while let Some(class) = stack.pop() {
        if !std::mem::replace(&mut seen[class], true) {
            let option = &part.options[best[class]?];
            cost += option.cost;
            stack.extend(&option.children);
        }
    }
    Some((seen, cost))
}

/// The best choice by prices of trees or by dearest paths, then improved until
/// it costs no more than `floor`: what if a shared class were paid already, or
/// did not exist? A class too dear to each user alone is found this way.
pub(super) fn choose(
    part: &Part,
    prices: &[u128],
    paths: Relaxed,
    floor: u128,
    steps: &mut Steps,
) -> Option<Choice> {
    let cost = |relaxed: Relaxed| {
        let best = relaxed.best;
        needed(part, &best).map(|(_, cost)| Choice { best, cost })
    };
    let by_path = cost(paths)?;
    let by_tree = cost(relax(part, prices, Combine::Sum, steps))?;
    let mut found = if by_path.cost < by_tree.cost { by_path } else { by_tree };
    let shared: Vec<usize> = (0..part.classes()).filter(|&c| part.users[c].len() > 1).collect();
    // Trying costs no more than a quarter of what is left for the search.
    let mut trials = steps.split(4);
    let mut improved = true;
    while improved {
        improved = false;
        for &class in &shared {
            if trials.is_over() || found.cost <= floor {
                break;
            }
            let (used, _) = needed(part, &found.best)?;
            let mut prices = prices.to_vec();
            prices[part.options_of(class)].fill(if used[class] { NEVER } else { 0 });
            let trial = cost(relax(part, &prices, Combine::Sum, &mut trials));
            if let Some(better) = trial.filter(|trial| trial.cost < found.cost) {
                found = better;
                improved = true;
            }
        }
    }
    steps.join(trials);
    Some(found)
}
