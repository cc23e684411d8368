//! From the caller's problem to the graph the reductions work on: only what
//! can be computed, is reachable and costs something.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::check::Costs;
use super::reduce::{Graph, Opt};
use super::{ExtractError, Problem};

/// Which classes can be computed by options that pass `allowed`, without a
/// cycle; for each, the option that did it first. Of the options that could be
/// next, an earlier of its class goes first.
fn derive(problem: &Problem, allowed: impl Fn(usize, usize) -> bool) -> Vec<Option<usize>> {
    let count = problem.classes.len();
    let mut first = vec![None; count];
    // Options by the class they still wait for; each waits for one at a time.
    let mut waiting: Vec<Vec<(usize, usize, usize)>> = vec![Vec::new(); count];
    let mut ready = BinaryHeap::new();
    for (class, options) in problem.classes.iter().enumerate() {
        let usable = (0..options.len()).filter(|&option| allowed(class, option));
        ready.extend(usable.map(|option| Reverse((option, class, 0))));
    }
    while let Some(Reverse((option, class, mut at))) = ready.pop() {
        let children = &problem.classes[class][option].children;
        while at < children.len() && first[children[at]].is_some() {
            at += 1;
        }
        if at < children.len() {
            waiting[children[at]].push((option, class, at));
        } else if first[class].is_none() {
            first[class] = Some(option);
            ready.extend(waiting[class].drain(..).map(Reverse));
        }
    }
    first
}

/// Drops options that can never be built, takes every class that is free, and
/// keeps what the roots reach.
pub(super) fn prepare(problem: &Problem, costs: &Costs) -> Result<Graph, ExtractError> {
    let buildable = derive(problem, |_, _| true);
    if let Some(&class) = problem.roots.iter().find(|&&root| buildable[root].is_none()) {
        return Err(ExtractError::Unbuildable { class });
    }
    // Weights, inputs and whatever comes of them at no cost. Taken in the
    // order of their derivation they form no cycle, and no other option of
    // theirs could be cheaper.
    let free = derive(problem, |class, option| costs[class][option] == 0);
    let count = problem.classes.len();
    let mut graph = Graph::new(count);
    let mut seen = vec![false; count];
    let mut stack: Vec<usize> = Vec::new();
    graph.decided.clone_from(&free);
    for &root in &problem.roots {
        graph.root[root] = free[root].is_none();
        stack.push(root);
    }
    while let Some(class) = stack.pop() {
        if free[class].is_some() || std::mem::replace(&mut seen[class], true) {
            continue;
        }
        for (index, choice) in problem.classes[class].iter().enumerate() {
            let usable = |&child: &usize| child != class && buildable[child].is_some();
            if choice.children.iter().all(usable) {
                let priced = |&child: &usize| free[child].is_none();
                let mut children: Vec<_> = choice.children.iter().copied().filter(priced).collect();
                children.sort_unstable();
                children.dedup();
                stack.extend(&children);
                graph.add(Opt { class, index, cost: costs[class][index], children });
            }
        }
    }
    Ok(graph)
}
