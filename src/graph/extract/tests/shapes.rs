//! Graphs that other extractors get wrong or slowly.

use std::time::{Duration, Instant};

use super::super::Choice;
use super::{choice, problem, solve, Problem};

/// Adds a class, returns its index.
fn push(problem: &mut Problem, options: Vec<Choice>) -> usize {
    problem.classes.push(options);
    problem.classes.len() - 1
}

/// `ways` linears of one input, each its own or a slice of a merged one, and
/// their sum; returns the linears.
fn merge(ways: usize, own: f64, merged: f64) -> (Problem, Vec<usize>) {
    let mut problem = Problem::default();
    let x = push(&mut problem, vec![choice(1.0, &[])]);
    let m = push(&mut problem, vec![choice(merged, &[x])]);
    let outs: Vec<usize> = (0..ways)
        .map(|_| push(&mut problem, vec![choice(own, &[x]), choice(0.01, &[m])]))
        .collect();
    let sum = push(&mut problem, vec![choice(1.0, &outs)]);
    problem.roots = vec![sum];
    (problem, outs)
}

#[test]
fn merges_when_the_merged_one_is_cheaper() {
    for ways in [2, 4, 16] {
        for (merged, expected) in [(1.0, 1), (9.8 * ways as f64, 1), (10.0 * ways as f64, 0)] {
            let (problem, outs) = merge(ways, 10.0, merged);
            let answer = solve(&problem);
            assert!(answer.exact);
            assert!(
                outs.iter().all(|&out| answer.chosen[out] == Some(expected)),
                "{ways} {merged}"
            );
        }
    }
}

#[test]
fn merges_a_subset_when_that_is_cheapest() {
    // Three linears; pairs and all may merge, one of the pairs is a bargain.
    let problem = problem(
        &[0],
        &[
            &[(0.0, &[1, 2, 3])],
            &[(10.0, &[8]), (0.1, &[4]), (0.1, &[5]), (0.1, &[7])],
            &[(10.0, &[8]), (0.1, &[4]), (0.1, &[6]), (0.1, &[7])],
            &[(10.0, &[8]), (0.1, &[5]), (0.1, &[6]), (0.1, &[7])],
            &[(19.0, &[8])],
            &[(12.0, &[8])],
            &[(19.0, &[8])],
            &[(24.0, &[8])],
            &[(1.0, &[])],
        ],
    );
    let answer = solve(&problem);
    assert_eq!((answer.cost, answer.exact), (23.2, true));
    assert_eq!(answer.chosen[1..4], [Some(2), Some(0), Some(1)]);
}

/// `x + f(x)`, where `f` is linear and relu or both fused.
fn residual(blocks: usize) -> (Problem, Vec<usize>) {
    let mut problem = Problem::default();
    let (mut x, mut fused) = (push(&mut problem, vec![choice(0.0, &[])]), Vec::new());
    for _ in 0..blocks {
        let linear = push(&mut problem, vec![choice(10.0, &[x])]);
        fused.push(push(&mut problem, vec![choice(2.0, &[linear]), choice(11.0, &[x])]));
        x = push(&mut problem, vec![choice(1.0, &[x, fused[fused.len() - 1]])]);
    }
    problem.roots = vec![x];
    (problem, fused)
}

#[test]
fn all_of_128_residual_blocks_fuse() {
    let (problem, fused) = residual(128);
    let answer = solve(&problem);
    assert_eq!((answer.cost, answer.exact), (128.0 * 12.0, true));
    assert!(fused.iter().all(|&class| answer.chosen[class] == Some(1)));
}

/// Far above what a slow machine without optimization needs, far below what a
/// quadratic algorithm takes.
const LIMIT: Duration = Duration::from_secs(15);

/// Runs `work`, prints its time and holds it to the limit.
fn timed<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let time = start.elapsed();
    println!("{name}: {time:?}");
    assert!(time < LIMIT, "{name}: {time:?}");
    result
}

#[test]
fn long_chains_are_quick() {
    let layers = 10_000;
    let mut problem = Problem::default();
    let input = push(&mut problem, vec![choice(0.0, &[])]);
    let mut x = input;
    for _ in 0..layers {
        let weight = push(&mut problem, vec![choice(0.0, &[])]);
        let bias = push(&mut problem, vec![choice(0.0, &[])]);
        let linear = push(&mut problem, vec![choice(10.0, &[x, weight, bias])]);
        x = push(&mut problem, vec![choice(2.0, &[linear]), choice(11.0, &[x, weight, bias])]);
    }
    problem.roots = vec![x];
    let answer = timed("10,000 layers", || solve(&problem));
    assert_eq!((answer.cost, answer.exact), (11.0 * layers as f64, true));
    problem.classes[x].push(choice(100_000.0, &[input]));
    let answer = timed("10,000 layers or one", || solve(&problem));
    assert_eq!((answer.cost, answer.exact), (100_000.0, true));
    assert_eq!(answer.chosen[x], Some(2));
    let (problem, _) = residual(10_000);
    let answer = timed("10,000 residual blocks", || solve(&problem));
    assert!(answer.exact);
}

#[test]
fn long_chains_of_overlapping_windows_are_exact() {
    // Layer i alone, or up to 7 layers at once: a shortest path.
    let mut problem = Problem::default();
    push(&mut problem, vec![choice(1.0, &[])]);
    for layer in 1..=10_000_usize {
        let window =
            |n: usize| choice([0.0, 9.0, 17.0, 24.0, 33.0, 40.0, 47.0, 57.0][n], &[layer - n]);
        let options = (1..8.min(layer + 1)).map(window).collect();
        push(&mut problem, options);
    }
    problem.roots = vec![10_000];
    let answer = timed("10,000 layers in windows", || solve(&problem));
    assert!(answer.exact);
    let mut best = vec![1.0_f64; 10_001];
    for layer in 1..=10_000 {
        let through = |choice: &Choice| choice.cost + best[choice.children[0]];
        best[layer] = problem.classes[layer].iter().map(through).fold(f64::INFINITY, f64::min);
    }
    assert_eq!(answer.cost, best[10_000]);
}

#[test]
fn a_thousand_attention_blocks_are_quick() {
    // q, k and v of one input, merged or not, then an output that adds x.
    let mut problem = Problem::default();
    let mut x = push(&mut problem, vec![choice(1.0, &[])]);
    let mut outs: Vec<usize> = Vec::new();
    for block in 0..1000 {
        let m = push(&mut problem, vec![choice(if block % 2 == 0 { 20.0 } else { 40.0 }, &[x])]);
        let qkv: Vec<usize> = (0..3)
            .map(|_| {
                let linear = push(&mut problem, vec![choice(10.0, &[x])]);
                push(&mut problem, vec![choice(1.0, &[linear]), choice(0.5, &[m])])
            })
            .collect();
        outs.extend(&qkv);
        let attention = push(&mut problem, vec![choice(5.0, &qkv)]);
        x = push(&mut problem, vec![choice(1.0, &[x, attention])]);
    }
    problem.roots = vec![x];
    let answer = timed("1,000 attention blocks", || solve(&problem));
    assert_eq!((answer.cost, answer.exact), (1.0 + 500.0 * (27.5 + 39.0), true));
    for (at, &out) in outs.iter().enumerate() {
        assert_eq!(answer.chosen[out], Some(usize::from(at / 3 % 2 == 0)));
    }
}

#[test]
fn merges_inside_windows_are_exact() {
    // Blocks as above, of which two or three may also run as one: no block's
    // input is certain, and no tree cost sees the merges.
    let mut problem = Problem::default();
    let mut ends = vec![push(&mut problem, vec![choice(1.0, &[])])];
    for block in 1..=1000 {
        let x = ends[block - 1];
        let m = push(&mut problem, vec![choice(20.0, &[x])]);
        let qkv = [(); 3].map(|()| push(&mut problem, vec![choice(10.0, &[x]), choice(0.0, &[m])]));
        let attention = push(&mut problem, vec![choice(5.0, &qkv)]);
        let mut options = vec![choice(1.0, &[attention])];
        for (blocks, cost) in [(2, 51.0), (3, 79.0)] {
            options.extend(block.checked_sub(blocks).map(|end| choice(cost, &[ends[end]])));
        }
        ends.push(push(&mut problem, options));
    }
    problem.roots = vec![ends[1000]];
    let answer = timed("1,000 windowed blocks", || solve(&problem));
    assert_eq!((answer.cost, answer.exact), (1.0 + 500.0 * 51.0, true));
}

#[test]
fn cycles_are_left_out() {
    // As in egg's issue 207: each of two classes is cheapest by the other.
    let both =
        problem(&[0], &[&[(1.0, &[1]), (10.0, &[2])], &[(1.0, &[0]), (10.0, &[2])], &[(1.0, &[])]]);
    assert_eq!(solve(&both).cost, 11.0);
    let Problem { classes, .. } = both;
    let answer = solve(&Problem { classes, roots: vec![0, 1] });
    assert_eq!((answer.cost, answer.exact), (12.0, true));
    assert_eq!(answer.chosen, [Some(0), Some(1), Some(0)]);
    // A longer cycle, entered at the dear end or the cheap one.
    let ring = problem(
        &[0, 2],
        &[
            &[(0.0, &[0]), (1.0, &[1]), (50.0, &[])],
            &[(1.0, &[2]), (0.0, &[1, 0])],
            &[(1.0, &[3]), (9.0, &[])],
            &[(1.0, &[0]), (60.0, &[])],
        ],
    );
    let answer = solve(&ring);
    assert_eq!((answer.cost, answer.exact), (11.0, true));
    assert_eq!(answer.chosen, [Some(1), Some(0), Some(1), None]);
}
