//! Branch and bound over one part, depth first, with its own stack.

use std::collections::BTreeSet;

use super::bound::{landmark_cuts, relax, Bound, Combine, NEVER};
use super::part::Part;
use super::{greedy, TIE_CLASSES};

/// The steps that are left.
pub(super) struct Steps(u64);

impl Steps {
    /// So many.
    pub fn new(steps: u64) -> Self {
        Self(steps)
    }

    /// Takes steps that were or will be made; work begun is finished.
    pub fn take(&mut self, steps: u64) {
        self.0 = self.0.saturating_sub(steps);
    }

    /// Whether none is left.
    pub fn is_over(&self) -> bool {
        self.0 == 0
    }

    /// Sets one in `parts` aside.
    pub fn split(&mut self, parts: u64) -> Self {
        let share = self.0 / parts;
        self.0 -= share;
        Self(share)
    }

    /// Takes back what is left of a share.
    pub fn join(&mut self, share: Self) {
        self.0 += share.0;
    }
}

/// The answer for a part.
pub(super) struct Solved {
    /// The option of each class that is needed.
    pub chosen: Vec<Option<usize>>,
    /// What it costs.
    pub cost: u128,
    /// No choice costs less.
    pub lower_bound: u128,
}

/// Solves a part, exactly unless the steps run out.
pub(super) fn solve(part: &Part, steps: &mut Steps) -> Solved {
    let prices: Vec<u128> = part.options.iter().map(|option| option.cost).collect();
    let paths = relax(part, &prices, Combine::Max, steps);
    let path = part.roots.iter().map(|&root| paths.price[root]).max().unwrap_or(0);
    let Some(start) = greedy::choose(part, &prices, paths, path, steps) else {
        // Unreachable while the reductions are right; the check will tell.
        return Solved { chosen: vec![None; part.classes()], cost: NEVER, lower_bound: 0 };
    };
    // Where options have one child each, the dearest path is all there is.
    if path == start.cost && part.classes() > TIE_CLASSES {
        return Solved { chosen: start.best, cost: path, lower_bound: path };
    }
    let mut search = Search::new(part, start);
    let lower_bound = search.run(steps).max(path);
    Solved { chosen: search.best, cost: search.best_cost, lower_bound }
}

/// A node whose options are being tried.
struct Frame {
    /// How many classes were decided when it was entered.
    decided: usize,
    /// Options to try, each with a lower bound, the last first.
    options: Vec<(usize, u128)>,
}

struct Search<'a> {
    part: &'a Part,
    decided: Vec<Option<usize>>,
    /// Classes in the order they were decided.
    trail: Vec<usize>,
    /// How many decided classes, and the roots, need a class.
    needed: Vec<usize>,
    /// Needed but not decided.
    open: BTreeSet<usize>,
    cost: u128,
    best: Vec<Option<usize>>,
    best_cost: u128,
    /// The best is the search's own; a first one of equal cost replaces the
    /// greedy one, which does not care for the order of options.
    found: bool,
    /// Marks of the last visits in `closes_cycle`.
    visited: Vec<usize>,
    visit: usize,
}

impl<'a> Search<'a> {
    fn new(part: &'a Part, start: greedy::Choice) -> Self {
        let mut needed = vec![0; part.classes()];
        part.roots.iter().for_each(|&root| needed[root] += 1);
        Self {
            part,
            decided: vec![None; part.classes()],
            trail: Vec::new(),
            needed,
            open: part.roots.iter().copied().collect(),
            cost: 0,
            best: start.best,
            best_cost: start.cost,
            found: false,
            visited: vec![0; part.classes()],
            visit: 0,
        }
    }

    /// Searches; returns a lower bound, the best cost if the search ended.
    fn run(&mut self, steps: &mut Steps) -> u128 {
        let mut frames = Vec::new();
        frames.extend(self.expand(0, steps));
        while let Some(frame) = frames.last_mut() {
            if steps.is_over() {
                let untried = frames.iter().flat_map(|frame| &frame.options);
                return untried.map(|&(_, bound)| bound).min().unwrap_or(NEVER).min(self.best_cost);
            }
            let before = frame.decided;
            while self.trail.len() > before {
                self.undo();
            }
            match frame.options.pop() {
                None => {
                    frames.pop();
                }
                Some((_, bound)) if self.is_pruned(bound) => {}
                Some((id, bound)) => {
                    self.decide(id);
                    frames.extend(self.expand(bound, steps));
                }
            }
        }
        self.best_cost
    }

    fn is_pruned(&self, bound: u128) -> bool {
        bound > self.best_cost || (bound == self.best_cost && self.found)
    }

    /// Decides what has no alternative, bounds the rest and lists the options
    /// of the next class; `None` if there is nothing to try below.
    fn expand(&mut self, inherited: u128, steps: &mut Steps) -> Option<Frame> {
        let viable = self.propagate(steps)?;
        if self.open.is_empty() {
            if self.cost < self.best_cost || (self.cost == self.best_cost && !self.found) {
                self.best.clone_from(&self.decided);
                (self.best_cost, self.found) = (self.cost, true);
            }
            return None;
        }
        let price =
            |(id, option): (usize, &super::part::PartOption)| match self.decided[option.class] {
                Some(chosen) if chosen == id => 0,
                Some(_) => NEVER,
                None => option.cost,
            };
        let prices = self.part.options.iter().enumerate().map(price).collect();
        let goals: Vec<usize> = self.open.iter().copied().collect();
        let enough = self.best_cost.saturating_sub(self.cost);
        let Bound { cost, rest } = landmark_cuts(self.part, prices, &goals, enough, steps);
        if cost == NEVER {
            return None;
        }
        let bound = |id: usize| inherited.max(self.cost + cost + rest[id]);
        let options = viable.into_iter().rev().map(|id| (id, bound(id)));
        let options: Vec<_> = options.filter(|&(_, bound)| !self.is_pruned(bound)).collect();
        Some(Frame { decided: self.trail.len(), options })
    }

    /// Decides open classes with one option left; returns the options of the
    /// first other, none if there is no other, or `None` if a class has none.
    fn propagate(&mut self, steps: &mut Steps) -> Option<Vec<usize>> {
        'again: loop {
            let mut first = None;
            for class in self.open.clone() {
                let range = self.part.options_of(class);
                steps.take(range.len() as u64);
                let viable: Vec<usize> = range.filter(|&id| !self.closes_cycle(id)).collect();
                match viable[..] {
                    [] => return None,
                    [only] => {
                        self.decide(only);
                        continue 'again;
                    }
                    _ => first = first.or(Some(viable)),
                }
            }
            return Some(first.unwrap_or_default());
        }
    }

    /// Whether an option needs, by what is decided, its own class.
    fn closes_cycle(&mut self, id: usize) -> bool {
        let option = &self.part.options[id];
        self.visit += 1;
        let mut stack = option.children.clone();
        while let Some(class) = stack.pop() {
            if class == option.class {
                return true;
            }
            if std::mem::replace(&mut self.visited[class], self.visit) != self.visit {
                if let Some(chosen) = self.decided[class] {
                    stack.extend(&self.part.options[chosen].children);
                }
            }
        }
        false
    }

    fn decide(&mut self, id: usize) {
        let option = &self.part.options[id];
        self.decided[option.class] = Some(id);
        self.trail.push(option.class);
        self.open.remove(&option.class);
        self.cost += option.cost;
        for &child in &option.children {
            self.needed[child] += 1;
            if self.decided[child].is_none() {
                self.open.insert(child);
            }
        }
    }

    fn undo(&mut self) {
        let Some(class) = self.trail.pop() else { return };
        let Some(id) = self.decided[class].take() else { return };
        let option = &self.part.options[id];
        self.cost -= option.cost;
        for &child in &option.children {
            self.needed[child] -= 1;
            if self.needed[child] == 0 {
                self.open.remove(&child);
            }
        }
        if self.needed[class] > 0 {
            self.open.insert(class);
        }
    }
}
