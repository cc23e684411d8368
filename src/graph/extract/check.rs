//! What is checked on the way in and, independently of how it was found, on
//! the way out.

use super::{Choice, ExtractError, Problem, MAX_COST, RESOLUTION};

/// Costs in multiples of [`RESOLUTION`], one list per class. Whole numbers add
/// up to the same in any order.
pub(super) type Costs = Vec<Vec<u128>>;

/// Checks every index and cost.
pub(super) fn costs(problem: &Problem) -> Result<Costs, ExtractError> {
    let classes = problem.classes.len();
    let known = |&index: &usize| {
        if index < classes {
            Ok(())
        } else {
            Err(ExtractError::NoSuchClass { index, classes })
        }
    };
    problem.roots.iter().try_for_each(known)?;
    let convert = |class: usize, option: usize, choice: &Choice| {
        choice.children.iter().try_for_each(known)?;
        if choice.cost >= 0.0 && choice.cost <= MAX_COST {
            // At most 1e21, and saturating if it were not.
            Ok((choice.cost / RESOLUTION).round() as u128)
        } else {
            Err(ExtractError::BadCost { class, option })
        }
    };
    let of_class = |(class, options): (usize, &Vec<Choice>)| {
        options.iter().enumerate().map(|(option, choice)| convert(class, option, choice)).collect()
    };
    problem.classes.iter().enumerate().map(of_class).collect()
}

/// Back to the caller's unit; keeps order.
pub(super) fn to_f64(cost: u128) -> f64 {
    cost as f64 * RESOLUTION
}

/// A choice that was checked.
#[derive(Debug)]
pub(super) struct Checked {
    /// The options of the classes the roots reach, of no others.
    pub chosen: Vec<Option<usize>>,
    /// What they cost.
    pub cost: u128,
}

/// The class at which a choice is no graph.
#[derive(Debug)]
pub(super) struct Fault(pub usize);

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    New,
    Open,
    Done,
}

/// Walks from the roots along `chosen`; fails at the first gap or cycle.
pub(super) fn evaluate(
    problem: &Problem,
    costs: &Costs,
    chosen: &[Option<usize>],
) -> Result<Checked, Fault> {
    let mut marks = vec![Mark::New; problem.classes.len()];
    let mut answer = Checked { chosen: vec![None; marks.len()], cost: 0 };
    let mut path: Vec<(usize, &[usize])> = Vec::new();
    for &root in &problem.roots {
        let mut enter = Some(root);
        loop {
            if let Some(class) = enter.take() {
                match marks[class] {
                    Mark::Open => return Err(Fault(class)),
                    Mark::Done => {}
                    Mark::New => {
                        let option = chosen.get(class).copied().flatten().ok_or(Fault(class))?;
                        let choice = problem.classes[class].get(option).ok_or(Fault(class))?;
                        marks[class] = Mark::Open;
                        answer.chosen[class] = Some(option);
                        answer.cost += costs[class][option];
                        path.push((class, &choice.children));
                    }
                }
            }
            match path.last_mut() {
                None => break,
                Some((class, [])) => {
                    marks[*class] = Mark::Done;
                    path.pop();
                }
                Some((_, rest)) => {
                    enter = Some(rest[0]);
                    *rest = &rest[1..];
                }
            }
        }
    }
    Ok(answer)
}
