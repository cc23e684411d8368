//! Random small cyclic e-graphs against exhaustive search.

use super::super::{check, part, prepare, search, ExtractError};
use super::{assert_valid, choice, extract, Limits, Problem, Rng};

/// The least cost in whole units, by trying every combination.
fn exhaustive(problem: &Problem) -> Option<u64> {
    fn cost(
        problem: &Problem,
        pick: &[usize],
        class: usize,
        open: &mut [bool],
        done: &mut [bool],
    ) -> Option<u64> {
        if done[class] {
            return Some(0);
        }
        if open[class] {
            return None;
        }
        open[class] = true;
        let option = problem.classes[class].get(pick[class])?;
        let mut sum = option.cost as u64;
        for &child in &option.children {
            sum += cost(problem, pick, child, open, done)?;
        }
        (open[class], done[class]) = (false, true);
        Some(sum)
    }
    let count = problem.classes.len();
    let mut pick = vec![0; count];
    let mut best: Option<u64> = None;
    loop {
        let (mut open, mut done) = (vec![false; count], vec![false; count]);
        let total = problem.roots.iter().try_fold(0, |sum, &root| {
            Some(sum + cost(problem, &pick, root, &mut open, &mut done)?)
        });
        best = best.into_iter().chain(total).min();
        let Some(class) = (0..count).find(|&class| pick[class] + 1 < problem.classes[class].len())
        else {
            return best;
        };
        pick[class] += 1;
        pick[..class].fill(0);
    }
}

/// Any children, so cycles, self-loops and classes that cannot be computed;
/// few different costs, so ties.
fn wild(rng: &mut Rng) -> Problem {
    let count = 2 + rng.below(7);
    let classes = (0..count).map(|_| {
        (0..rng.below(4).max(usize::from(rng.below(8) > 0)))
            .map(|_| {
                let children: Vec<_> = (0..rng.below(4)).map(|_| rng.below(count)).collect();
                choice([0.0, 1.0, 2.0, 3.0, 7.0][rng.below(5)], &children)
            })
            .collect()
    });
    let classes = classes.collect();
    Problem { classes, roots: (0..1 + rng.below(2)).map(|_| rng.below(count)).collect() }
}

/// Layers of classes that share what lies below, dear shared ones among them,
/// with some edges upwards: little of it reduces away.
fn tangled(rng: &mut Rng) -> Problem {
    let count = 9 + rng.below(3);
    let classes = (0..count).map(|class| {
        if class + 3 >= count {
            return vec![choice(1.0 + rng.below(9) as f64, &[])];
        }
        (0..1 + rng.below(3))
            .map(|_| {
                let mut children: Vec<_> = (0..1 + rng.below(2))
                    .map(|_| class + 1 + rng.below((count - class - 1).min(5)))
                    .collect();
                if rng.below(6) == 0 {
                    children.push(rng.below(count));
                }
                choice(rng.below(5) as f64, &children)
            })
            .collect()
    });
    let classes = classes.collect();
    Problem { classes, roots: vec![0, rng.below(count)] }
}

/// Cost of the search alone, nothing reduced before it.
fn searched(problem: &Problem) -> Option<u128> {
    let costs = check::costs(problem).unwrap();
    let mut graph = prepare::prepare(problem, &costs).ok()?;
    let mut bound = 0;
    for part in part::split(&graph) {
        let solved = search::solve(&part, &mut search::Steps::new(10_000_000));
        bound += solved.lower_bound;
        for (class, option) in solved.chosen.into_iter().enumerate() {
            graph.decided[part.ids[class]] = option.map(|id| part.options[id].index);
        }
    }
    let cost = check::evaluate(problem, &costs, &graph.decided).unwrap().cost;
    assert_eq!(cost, bound);
    Some(cost)
}

fn compare(make: fn(&mut Rng) -> Problem, seed: u64, rounds: usize) -> usize {
    let mut rng = Rng(seed);
    let mut solvable = 0;
    for round in 0..rounds {
        let problem = make(&mut rng);
        let expected = exhaustive(&problem);
        let answer = extract(&problem, &Limits::default());
        match (&answer, expected) {
            (Ok(answer), Some(expected)) => {
                assert_valid(&problem, answer);
                assert_eq!(answer.cost, expected as f64, "round {round}: {problem:?}");
                assert!(answer.exact, "round {round}: {problem:?}");
                solvable += 1;
            }
            (Err(ExtractError::Unbuildable { class }), None) => {
                assert!(problem.roots.contains(class));
            }
            other => panic!("round {round}: {other:?} for {problem:?}"),
        }
        let units = |cost: u64| u128::from(cost) * 1_000_000;
        assert_eq!(searched(&problem), expected.map(units), "round {round}: {problem:?}");
    }
    solvable
}

#[test]
fn wild_graphs_cost_what_exhaustive_search_finds() {
    assert!(compare(wild, 0x9e37_79b9_7f4a_7c15, 3000) > 1400);
}

#[test]
fn tangled_graphs_cost_what_exhaustive_search_finds() {
    assert!(compare(tangled, 0x2545_f491_4f6c_dd1d, 1000) > 900);
}

#[test]
fn numbering_and_repetition_do_not_matter() {
    let mut rng = Rng(7);
    for _ in 0..500 {
        let problem = if rng.below(2) == 0 { wild(&mut rng) } else { tangled(&mut rng) };
        let first = extract(&problem, &Limits::default());
        assert_eq!(first, extract(&problem, &Limits::default()));
        let mut to: Vec<usize> = (0..problem.classes.len()).collect();
        (1..to.len()).for_each(|at| to.swap(at, rng.below(at + 1)));
        let mut moved =
            Problem { classes: vec![Vec::new(); to.len()], roots: problem.roots.clone() };
        moved.roots.iter_mut().for_each(|root| *root = to[*root]);
        for (class, options) in problem.classes.iter().enumerate() {
            moved.classes[to[class]].clone_from(options);
            let choices = moved.classes[to[class]].iter_mut();
            choices.flat_map(|choice| &mut choice.children).for_each(|child| *child = to[*child]);
        }
        let second = extract(&moved, &Limits::default());
        assert_eq!(first.map(|answer| answer.cost).ok(), second.map(|answer| answer.cost).ok());
    }
}
