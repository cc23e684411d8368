//! Lower bounds for a part, by relaxing it: a class shared by two children is
//! paid once only because nothing is added up, then landmark cuts collect what
//! every graph must pay somewhere.
//!
//! The cuts are those of LM-cut (Helmert and Domshlak, ICAPS 2009): computing
//! the roots is planning without deletes, and its cheapest plan is the
//! cheapest graph.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::part::Part;
use super::search::Steps;

/// The price of an option that may not be used.
pub(super) const NEVER: u128 = u128::MAX;

/// How the prices of an option's children combine.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Combine {
    /// The dearest: never too high.
    Max,
    /// All: what a tree would cost; too high where children share.
    Sum,
}

/// Prices of classes under given prices of options.
pub(super) struct Relaxed {
    /// Price of each class; [`NEVER`] if it cannot be computed.
    pub price: Vec<u128>,
    /// The option that gives it.
    pub best: Vec<Option<usize>>,
    /// Per option, the child that was computed last, one of the dearest.
    last: Vec<Option<usize>>,
    /// Per option, how many children cannot be computed.
    missing: Vec<usize>,
}

/// Dijkstra's algorithm, Knuth's form: classes from the cheapest up, so a best
/// option only needs classes computed before it, and there is no cycle.
pub(super) fn relax(part: &Part, prices: &[u128], combine: Combine, steps: &mut Steps) -> Relaxed {
    let (classes, options) = (part.classes(), part.options.len());
    steps.take(options as u64);
    let mut answer = Relaxed {
        price: vec![NEVER; classes],
        best: vec![None; classes],
        last: vec![None; options],
        missing: part.options.iter().map(|option| option.children.len()).collect(),
    };
    let mut sums = vec![0_u128; options];
    let mut heap = BinaryHeap::new();
    for (id, option) in part.options.iter().enumerate() {
        if option.children.is_empty() && prices[id] != NEVER {
            heap.push(Reverse((prices[id], id)));
        }
    }
    while let Some(Reverse((price, id))) = heap.pop() {
        let class = part.options[id].class;
        if answer.best[class].is_some() {
            continue;
        }
        answer.best[class] = Some(id);
        answer.price[class] = price;
        for &user in &part.users[class] {
            answer.missing[user] -= 1;
            answer.last[user] = Some(class);
            sums[user] = match combine {
                Combine::Max => price,
                Combine::Sum => sums[user].saturating_add(price),
            };
            if answer.missing[user] == 0 && prices[user] != NEVER {
                // One below NEVER: dear beyond counting, but possible.
                let price = sums[user].saturating_add(prices[user]).min(NEVER - 1);
                heap.push(Reverse((price, user)));
            }
        }
    }
    answer
}

/// A lower bound, and what is left of the options' prices: a graph with an
/// option costs at least the bound and the option's rest.
pub(super) struct Bound {
    /// The bound; [`NEVER`] if the goals cannot be computed.
    pub cost: u128,
    /// What the bound did not use of each price.
    pub rest: Vec<u128>,
}

/// Bounds the cost of computing all `goals`. Stops above `enough` and at the
/// end of the steps; the bound is then only lower.
pub(super) fn landmark_cuts(
    part: &Part,
    prices: Vec<u128>,
    goals: &[usize],
    enough: u128,
    steps: &mut Steps,
) -> Bound {
    let mut bound = Bound { cost: 0, rest: prices };
    loop {
        let relaxed = relax(part, &bound.rest, Combine::Max, steps);
        let Some(&goal) = goals.iter().max_by_key(|&&goal| relaxed.price[goal]) else { break };
        match relaxed.price[goal] {
            NEVER => return Bound { cost: NEVER, ..bound },
            0 => break,
            _ => {}
        }
        let cut = cut(part, &bound.rest, &relaxed, goal);
        let Some(least) = cut.iter().map(|&id| bound.rest[id]).min().filter(|&c| c > 0) else {
            break;
        };
        cut.iter().for_each(|&id| bound.rest[id] -= least);
        bound.cost += least;
        if bound.cost > enough || steps.is_over() {
            break;
        }
    }
    bound
}

/// Options of which every graph with `goal` contains one. Each option counts
/// as an edge to its class from its dearest child; the cut separates what is
/// computed for nothing beside the goal from what is reached before it.
fn cut(part: &Part, prices: &[u128], relaxed: &Relaxed, goal: usize) -> Vec<usize> {
    let usable = |id: usize| relaxed.missing[id] == 0 && prices[id] != NEVER;
    let mut zone = vec![false; part.classes()];
    let mut stack = vec![goal];
    zone[goal] = true;
    while let Some(class) = stack.pop() {
        for id in part.options_of(class).filter(|&id| usable(id) && prices[id] == 0) {
            if let Some(child) = relaxed.last[id] {
                if !std::mem::replace(&mut zone[child], true) {
                    stack.push(child);
                }
            }
        }
    }
    let mut reached = vec![false; part.classes()];
    let mut cut = Vec::new();
    let mut visit = |id: usize, stack: &mut Vec<usize>| {
        let class = part.options[id].class;
        if zone[class] {
            cut.push(id);
        } else if !std::mem::replace(&mut reached[class], true) {
            stack.push(class);
        }
    };
    for (id, option) in part.options.iter().enumerate() {
        if option.children.is_empty() && usable(id) {
            visit(id, &mut stack);
        }
    }
    while let Some(class) = stack.pop() {
        for &user in &part.users[class] {
            if usable(user) && relaxed.last[user] == Some(class) {
                visit(user, &mut stack);
            }
        }
    }
    cut
}
