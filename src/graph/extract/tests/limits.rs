//! Malformed input, ties, starts and the end of the steps.

use super::super::{ExtractError, MAX_COST};
use super::{assert_valid, choice, extract, problem, solve, Limits, Problem, Rng};

fn error(problem: &Problem) -> ExtractError {
    extract(problem, &Limits::default()).unwrap_err()
}

#[test]
fn malformed_input_is_an_error() {
    let missing = ExtractError::NoSuchClass { index: 9, classes: 1 };
    assert_eq!(error(&problem(&[9], &[&[(1.0, &[])]])), missing);
    assert_eq!(error(&problem(&[0], &[&[(1.0, &[]), (1.0, &[9])]])), missing);
    assert_eq!(missing.to_string(), "extract: expected a class below 1, got 9");
    for cost in [-1.0, f64::NAN, f64::INFINITY, MAX_COST * 1.1] {
        let bad = ExtractError::BadCost { class: 0, option: 1 };
        assert_eq!(error(&problem(&[0], &[&[(1.0, &[]), (cost, &[])]])), bad);
    }
    let unbuildable = ExtractError::Unbuildable { class: 0 };
    assert_eq!(error(&problem(&[0], &[&[]])), unbuildable);
    assert_eq!(error(&problem(&[0], &[&[(0.0, &[0])]])), unbuildable);
    assert_eq!(error(&problem(&[0], &[&[(0.0, &[1])], &[(0.0, &[0])]])), unbuildable);
    let start = |start: &[Option<usize>]| {
        let cyclic = problem(&[0], &[&[(1.0, &[1]), (2.0, &[])], &[(1.0, &[0]), (5.0, &[])]]);
        extract(&cyclic, &Limits { start: Some(start.to_vec()), ..Limits::default() })
    };
    let bad = |class| Err(ExtractError::BadStart { class });
    assert_eq!(start(&[]), bad(0));
    assert_eq!(start(&[Some(0)]), bad(1));
    assert_eq!(start(&[Some(2), Some(1)]), bad(0));
    assert_eq!(start(&[Some(0), Some(0)]), bad(0));
    assert_eq!(start(&[Some(0), Some(1)]).unwrap().cost, 2.0);
}

#[test]
fn nothing_to_do_is_done() {
    let answer = solve(&Problem::default());
    assert_eq!((answer.cost, answer.exact), (0.0, true));
    let answer = solve(&problem(&[], &[&[(1.0, &[])]]));
    assert_eq!(answer.chosen, [None]);
    let answer = solve(&problem(&[0, 0], &[&[(MAX_COST, &[1, 1, 1])], &[(MAX_COST, &[])]]));
    assert_eq!((answer.cost, answer.exact), (2.0 * MAX_COST, true));
}

#[test]
fn the_earlier_option_wins_ties() {
    // The same graphs with the options either way round.
    let one = solve(&problem(&[0], &[&[(2.0, &[]), (1.0, &[1])], &[(1.0, &[])]]));
    assert_eq!(one.chosen, [Some(0), None]);
    let other = solve(&problem(&[0], &[&[(1.0, &[1]), (2.0, &[])], &[(1.0, &[])]]));
    assert_eq!(other.chosen, [Some(0), Some(0)]);
    // Two linears of 5, or slices of a merged one of 10.
    let own: (f64, &[usize]) = (5.0, &[3]);
    let slice: (f64, &[usize]) = (0.0, &[2]);
    for options in [[own, slice], [slice, own]] {
        let tied = problem(&[0, 1], &[&options, &options, &[(10.0, &[3])], &[(1.0, &[])]]);
        assert_eq!(solve(&tied).chosen[..2], [Some(0), Some(0)]);
    }
    // Free ones too.
    let views = solve(&problem(&[0], &[&[(0.0, &[1]), (0.0, &[])], &[(0.0, &[])]]));
    assert_eq!(views.chosen, [Some(0), Some(0)]);
}

#[test]
fn sums_do_not_depend_on_order() {
    // 0.1 + 0.2 and 0.3 are equal here, so the earlier option wins.
    let tied = problem(&[0], &[&[(0.1, &[1]), (0.3, &[])], &[(0.2, &[])]]);
    assert_eq!(solve(&tied).chosen, [Some(0), Some(0)]);
}

/// Sets that cover things: hard for branch and bound, nothing reduces.
fn cover(rng: &mut Rng, things: usize, sets: usize) -> Problem {
    let mut all = vec![vec![choice(0.0, &(1..=things).collect::<Vec<_>>())]];
    let thing =
        |rng: &mut Rng| (0..3).map(|_| choice(0.0, &[1 + things + rng.below(sets)])).collect();
    all.extend((0..things).map(|_| thing(rng)));
    all.extend((0..sets).map(|_| vec![choice(100.0 + rng.below(9) as f64, &[])]));
    Problem { classes: all, roots: vec![0] }
}

#[test]
fn the_end_of_the_steps_leaves_a_bound() {
    let hard = cover(&mut Rng(3), 150, 75);
    let first: Vec<_> = hard.classes.iter().map(|_| Some(0)).collect();
    let start = hard.classes[1..=150].iter().map(|options| options[0].children[0]);
    let start: std::collections::BTreeSet<usize> = start.collect();
    let dear: f64 = start.iter().map(|&set| hard.classes[set][0].cost).sum();
    for steps in [0, 1, 100_000, 1_000_000] {
        let limits = Limits { steps, start: Some(first.clone()) };
        let answer = extract(&hard, &limits).unwrap();
        assert_valid(&hard, &answer);
        println!("{steps} steps: {} to {}", answer.lower_bound, answer.cost);
        assert!(!answer.exact && answer.cost <= dear);
        assert!(steps < 100_000 || answer.lower_bound > 1500.0);
        assert_eq!(answer, extract(&hard, &limits).unwrap());
    }
}

#[test]
fn never_dearer_than_the_start() {
    // Few steps, so the answer is often not the cheapest; the start is.
    let mut rng = Rng(11);
    for _ in 0..50 {
        let hard = cover(&mut rng, 24, 12);
        let best = extract(&hard, &Limits::default()).unwrap();
        assert!(best.exact);
        let limits = Limits { steps: 0, start: Some(best.chosen.clone()) };
        let answer = extract(&hard, &limits).unwrap();
        assert_eq!(answer.cost, best.cost);
        let alone = extract(&hard, &Limits { steps: 0, start: None }).unwrap();
        assert!(alone.lower_bound <= best.cost && alone.cost >= best.cost);
    }
}

#[test]
fn a_region_that_was_not_solved_leaves_the_bound_alone() {
    // The cover lies below one option of a class that has another.
    let mut rng = Rng(5);
    for steps in [500, 2_000, 8_000, 32_000] {
        let mut hard = cover(&mut rng, 36, 18);
        hard.roots = vec![hard.classes.len()];
        hard.classes.push(vec![choice(1.0, &[0]), choice(100_000.0, &[])]);
        let best = extract(&hard, &Limits::default()).unwrap();
        assert!(best.exact);
        let answer = extract(&hard, &Limits { steps, start: None }).unwrap();
        assert_valid(&hard, &answer);
        println!("{steps} steps: {} to {}, {}", answer.lower_bound, answer.cost, best.cost);
        assert!(answer.lower_bound <= best.cost && best.cost <= answer.cost);
        assert!(!answer.exact || answer.cost == best.cost);
    }
}
