//! Which rules a new block rests on and what each saved; what was left alone
//! and why.

use std::collections::{HashMap, HashSet};

use super::cost::Costs;
use super::import::Imported;
use super::language::{Op, Term};
use super::report::Rewrite;
use super::rewrite::Rewritten;
use super::saturate::Saturated;
use super::select::Selected;
use super::total;

/// A block's way from records to steps.
#[derive(Debug)]
pub struct Way<'a> {
    /// What came in.
    pub imported: &'a Imported,
    /// What the rules found.
    pub saturated: &'a Saturated,
    /// What was chosen of it.
    pub selected: &'a Selected,
    /// What came out.
    pub rewritten: &'a Rewritten,
    /// Which nodes were of use before.
    pub live: &'a [bool],
    /// Predictions.
    pub costs: &'a Costs<'a>,
}

impl Way<'_> {
    /// A line for every chosen term that a rule made. The cost of what went is
    /// credited to the first new term that replaces it.
    pub fn rewrites(&self) -> Vec<Rewrite> {
        let (imported, block) = (self.imported, &self.imported.block);
        let removed = self.rewritten.gone.iter().filter(|node| self.live[**node]);
        let mut gone: HashMap<usize, f64> =
            removed.map(|node| (*node, total::of_node(imported, self.costs, *node))).collect();
        let at = |what: &str| format!("{}: {what}", block.name);
        let name = |value: u32| block.values[value as usize].name.as_str();
        let mut rewrites = vec![];
        for (step, class, term) in &self.rewritten.made {
            if matches!(term.op, Op::Fold(_)) {
                continue;
            }
            let values = &imported.graph[*class].data.values;
            let mut delta = self.costs.of(*class, term) - self.replaced_by(values, &mut gone);
            let node = self.rewritten.edits.steps[*step].node as usize;
            let named = values.first().or_else(|| block.nodes.get(node)?.outputs.first());
            for rule in self.story(term) {
                rewrites.push(Rewrite {
                    rule,
                    at: at(named.map_or("?", |value| name(*value))),
                    cost_delta: std::mem::take(&mut delta),
                });
            }
        }
        for node in &imported.identities {
            let cost_delta = -gone.remove(node).unwrap_or(0.0);
            let at = at(name(block.nodes[*node].outputs[0]));
            rewrites.push(Rewrite { rule: "dropout_off".into(), at, cost_delta });
        }
        let dead: f64 = gone.values().sum();
        if dead > 0.0 {
            let at = at(&format!("{} nodes", gone.len()));
            rewrites.push(Rewrite { rule: "dead_or_shared".into(), at, cost_delta: -dead });
        }
        rewrites
    }

    /// Takes from `gone` everything that leads to `values`; returns its cost.
    fn replaced_by(&self, values: &[u32], gone: &mut HashMap<usize, f64>) -> f64 {
        let mut sum = 0.0;
        let mut stack = values.to_vec();
        while let Some(value) = stack.pop() {
            let Some(node) = self.imported.producer[value as usize] else { continue };
            if let Some(cost) = gone.remove(&node) {
                sum += cost;
                stack.extend(&self.imported.block.nodes[node].inputs);
            }
        }
        sum
    }

    /// The rules that led to a term: its own, then those of its constants.
    fn story(&self, term: &Term) -> Vec<String> {
        let mut rules: Vec<&str> = self.saturated.made_by.get(term).copied().into_iter().collect();
        let mut seen = HashSet::new();
        let mut stack = term.args.clone();
        while let Some(id) = stack.pop() {
            let class = self.imported.graph.find(id);
            if !seen.insert(class) {
                continue;
            }
            let Some(inner) = self.selected.chosen.get(&class) else { continue };
            if matches!(inner.op, Op::Fold(_)) {
                let rule = self.saturated.made_by.get(inner).copied();
                rules.extend(rule.filter(|rule| !rules.contains(rule)));
                stack.extend(&inner.args);
            }
        }
        if rules.is_empty() {
            rules.push("rebuilt");
        }
        rules.into_iter().map(str::to_owned).collect()
    }
}

/// What was left alone: where, and why.
pub fn skips(imported: &Imported, saturated: &Saturated) -> Vec<(String, String)> {
    let block = &imported.block;
    let name = |value: &u32| &block.values[*value as usize].name;
    let nodes = imported.skipped.iter().map(|(node, reason)| {
        let node = &block.nodes[*node];
        let made = node.outputs.first().map_or("", |value| name(value));
        (format!("{}: {made} = {}", block.name, node.kind), reason.clone())
    });
    let guards = saturated.skipped.iter().filter_map(|((class, rule), reason)| {
        let data = &imported.graph[imported.graph.find(*class)].data;
        // A class that only rules know has no name a user could find.
        let value = data.values.first()?;
        Some((format!("{}: {}", block.name, name(value)), format!("{rule}: {reason}")))
    });
    nodes.chain(guards).collect()
}
