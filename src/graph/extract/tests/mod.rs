//! Tests of the extractor: `oracle` against exhaustive search, `shapes` on
//! graphs that defeat other extractors, `limits` at the edges.

mod limits;
mod oracle;
mod shapes;

use super::{extract, Choice, Extraction, Limits, Problem};

/// Xorshift; small, and the same everywhere.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 20) % end as u64) as usize
    }
}

fn choice(cost: f64, children: &[usize]) -> Choice {
    Choice { cost, children: children.to_vec() }
}

fn problem(roots: &[usize], classes: &[&[(f64, &[usize])]]) -> Problem {
    let class = |options: &&[(f64, &[usize])]| {
        options.iter().map(|&(cost, children)| choice(cost, children)).collect()
    };
    Problem { classes: classes.iter().map(class).collect(), roots: roots.to_vec() }
}

fn solve(problem: &Problem) -> Extraction {
    let answer = extract(problem, &Limits::default()).unwrap();
    assert_valid(problem, &answer);
    answer
}

/// Recomputes the answer in the plainest way.
fn assert_valid(problem: &Problem, answer: &Extraction) {
    let mut done = vec![false; problem.classes.len()];
    let mut cost = 0.0;
    loop {
        // Only classes whose children are done: what remains is on a cycle.
        let mut progress = false;
        for class in 0..done.len() {
            if let (false, Some(option)) = (done[class], answer.chosen[class]) {
                let choice = &problem.classes[class][option];
                if choice.children.iter().all(|&child| done[child]) {
                    (done[class], progress) = (true, true);
                    cost += choice.cost;
                }
            }
        }
        if !progress {
            break;
        }
    }
    for (class, done) in done.iter().enumerate() {
        assert_eq!(*done, answer.chosen[class].is_some(), "class {class} is on a cycle");
    }
    assert!(problem.roots.iter().all(|&root| done[root]), "a root is missing");
    assert!((cost - answer.cost).abs() <= 1e-6 * (1.0 + cost), "{cost} is not {}", answer.cost);
    assert!(answer.lower_bound <= answer.cost);
    assert_eq!(answer.exact, answer.lower_bound == answer.cost);
}
