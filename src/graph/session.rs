//! One call of optimize or explain: block after block, one report.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use egg::Language;

use super::cost::Costs;
use super::extract::RESOLUTION;
use super::import::{import, Imported};
use super::language::Op;
use super::ops;
use super::profile::Profile;
use super::records::{Block, Edits, Options, Origin, StepKind};
use super::report::{dot_cluster, Report, Rewrite};
use super::rewrite::{rewrite, Rewritten};
use super::rules::RULES;
use super::saturate::{saturate, Limits, Saturated, StopReason};
use super::select::{select, Selected};

/// See the module's description.
#[derive(Debug)]
pub struct Session {
    profile: Profile,
    rows: i64,
    limits: Limits,
    disabled: Option<String>,
    /// From 1; blocks that are given without a pass belong to the first.
    pass: usize,
    report: Report,
    before: String,
    after: String,
}

impl Session {
    /// For one machine.
    pub fn new(options: &Options) -> Self {
        let profile = Profile::new(options);
        let shapes = match options.rows {
            0 => "recorded where there are any, otherwise unknown: only what wins at every size",
            _ => "given",
        };
        let report =
            Report { profile: profile.name.into(), shapes: shapes.into(), ..Report::default() };
        Self {
            profile,
            rows: options.rows,
            limits: Limits::default(),
            disabled: None,
            pass: 0,
            report,
            before: String::new(),
            after: String::new(),
        }
    }

    /// With other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Without one guard (`rule/guard`): for tests that must then fail.
    #[cfg(test)]
    #[must_use]
    pub fn without_guard(mut self, guard: &str) -> Self {
        self.disabled = Some(guard.into());
        self
    }

    /// Starts over with blocks as earlier passes left them: counts are of the
    /// last pass, times and rewrites of all.
    pub fn begin_pass(&mut self) {
        self.pass += 1;
        let report = &mut self.report;
        report.nodes_after = 0;
        report.fused_ops.clear();
        report.skipped.clear();
        self.after.clear();
    }

    /// Everything so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// GraphViz text of all blocks, before and after.
    pub fn dot(&self) -> String {
        format!(
            "digraph hypatia {{\n  node [fontname=monospace];\n{}{}}}\n",
            self.before, self.after
        )
    }

    /// Notes a rewrite that was made elsewhere.
    pub fn note_rewrite(&mut self, rule: &str, at: &str) {
        let (rule, at) = (rule.to_owned(), at.to_owned());
        self.report.rewrites.push(Rewrite { rule, at, cost_delta: 0.0 });
    }

    /// Notes what was left alone.
    pub fn note_skipped(&mut self, at: &str, reason: &str) {
        let entry = (at.to_owned(), reason.to_owned());
        if !self.report.skipped.contains(&entry) {
            self.report.skipped.push(entry);
        }
    }

    /// The block's replacement.
    ///
    /// # Errors
    /// If the records are malformed or the search failed: the block stays.
    pub fn optimize(&mut self, block: Block) -> Result<Edits, String> {
        let block = Arc::new(block);
        let mut imported = import(Arc::clone(&block))?;
        let saturated = saturate(
            &mut imported,
            RULES,
            true,
            &self.profile,
            self.rows,
            self.limits,
            self.disabled.as_deref(),
        );
        if saturated.stop != StopReason::Saturated || self.report.stop_reason.is_empty() {
            self.report.stop_reason = saturated.stop.to_string();
        }
        let profile = self.profile.clone();
        let costs = Costs { graph: &imported.graph, profile: &profile, rows: self.rows };
        let outcome = if let StopReason::Unsound(what) = &saturated.stop {
            Err(what.clone())
        } else {
            select(&imported, &costs).and_then(|selected| {
                let rewritten = rewrite(&imported, &selected)?;
                Ok((selected, rewritten))
            })
        };
        let walls = self.walls(&imported);
        self.explain_skips(&imported, &saturated);
        let (selected, rewritten) = match outcome {
            Ok(outcome) => outcome,
            Err(reason) => {
                self.note_skipped(&block.name, &reason);
                let cost = walls + cost_before(&imported, &costs);
                self.predict(cost, cost);
                self.count(&block, None);
                return Ok(Edits::default());
            }
        };
        let (before, after) =
            (cost_before(&imported, &costs), cost_after(&imported, &costs, &rewritten));
        if !rewritten.edits.changed || after >= before - RESOLUTION {
            self.predict(walls + before, walls + before);
            self.count(&block, None);
            return Ok(Edits::default());
        }
        self.predict(walls + before, walls + after);
        self.explain_rewrites(&imported, &saturated, &costs, &selected, &rewritten);
        self.count(&block, Some(&rewritten));
        Ok(rewritten.edits)
    }

    /// Adds a block's times. A later pass knows less of sizes: only what it
    /// saves counts.
    fn predict(&mut self, before: f64, after: f64) {
        if self.pass <= 1 {
            self.report.cost_before += before;
            self.report.cost_after += after;
        } else {
            self.report.cost_after += after - before;
        }
    }

    /// Time of the nodes that stay in any case: a guess, the same on both sides.
    fn walls(&self, imported: &Imported) -> f64 {
        let nodes = imported.block.nodes.iter().enumerate();
        let computing = nodes.filter(|(n, node)| imported.is_wall(*n) && computes(&node.kind));
        computing.count() as f64 * self.profile.pointwise_us
    }

    /// Adds the block's nodes to the counts and to the drawing.
    fn count(&mut self, block: &Block, rewritten: Option<&Rewritten>) {
        type Drawn = (String, Vec<u32>, Vec<u32>);
        let original = |n: usize| -> Drawn {
            let node = &block.nodes[n];
            (node.kind.clone(), node.inputs.clone(), node.outputs.clone())
        };
        let before: Vec<Drawn> = (0..block.nodes.len()).map(original).collect();
        let after: Vec<Drawn> = match rewritten {
            None => before.clone(),
            Some(rewritten) => {
                let renamed: HashMap<u32, u32> =
                    rewritten.edits.replacements.iter().copied().collect();
                let steps = rewritten.edits.steps.iter().enumerate();
                let drawn = steps.filter_map(|(n, step)| {
                    let result = vec![(block.values.len() + n) as u32];
                    match &step.kind {
                        StepKind::Keep => {
                            let (kind, inputs, outputs) = original(step.node as usize);
                            let inputs =
                                inputs.iter().map(|v| *renamed.get(v).unwrap_or(v)).collect();
                            Some((kind, inputs, outputs))
                        }
                        StepKind::Make(kind) => Some((kind.clone(), step.inputs.clone(), result)),
                        StepKind::Tensors | StepKind::OptionalTensors => {
                            Some(("prim::ListConstruct".into(), step.inputs.clone(), result))
                        }
                        _ => None,
                    }
                });
                drawn.collect()
            }
        };
        let computing =
            |nodes: &[Drawn]| nodes.iter().filter(|(kind, _, _)| computes(kind)).count();
        if self.pass <= 1 {
            self.report.nodes_before += computing(&before);
        }
        self.report.nodes_after += computing(&after);
        for (kind, _, _) in &after {
            if kind.starts_with("hypatia::") {
                *self.report.fused_ops.entry(kind.clone()).or_default() += 1;
            }
        }
        let shown = |nodes: Vec<Drawn>| -> Vec<Drawn> {
            nodes
                .into_iter()
                .filter(|(kind, _, _)| computes(kind) || kind == "prim::ListConstruct")
                .collect()
        };
        if self.pass <= 1 {
            self.before += &dot_cluster(&format!("{} before", block.name), &shown(before));
        }
        self.after += &dot_cluster(&format!("{} after", block.name), &shown(after));
    }

    /// A line for every chosen term that a rule made. The cost of what went is
    /// credited to the first new term that replaces it.
    fn explain_rewrites(
        &mut self,
        imported: &Imported,
        saturated: &Saturated,
        costs: &Costs<'_>,
        selected: &Selected,
        rewritten: &Rewritten,
    ) {
        let block = &imported.block;
        let live = imported.live();
        let removed = rewritten.gone.iter().filter(|node| live[**node]);
        let mut gone: HashMap<u32, f64> =
            removed.map(|node| (*node as u32, node_cost(imported, costs, *node))).collect();
        let producer: HashMap<u32, u32> = block
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(n, node)| node.outputs.iter().map(move |value| (*value, n as u32)))
            .collect();
        let mut rewrites = vec![];
        for (step, class, term) in &rewritten.made {
            if matches!(term.op, Op::Fold(_)) {
                continue;
            }
            // Everything that is gone and leads to this value.
            let mut delta = costs.of(*class, term);
            let mut stack: Vec<u32> = imported.graph[*class].data.values.clone();
            while let Some(value) = stack.pop() {
                let Some(node) = producer.get(&value) else { continue };
                if let Some(cost) = gone.remove(node) {
                    delta -= cost;
                    stack.extend(&block.nodes[*node as usize].inputs);
                }
            }
            let node = rewritten.edits.steps[*step].node as usize;
            let values = &imported.graph[*class].data.values;
            let named = values.first().or_else(|| block.nodes.get(node)?.outputs.first());
            let name = named.map_or("?", |value| block.values[*value as usize].name.as_str());
            let at = format!("{}: {name}", block.name);
            for rule in self.story(imported, saturated, selected, term) {
                rewrites.push(Rewrite {
                    rule,
                    at: at.clone(),
                    cost_delta: std::mem::take(&mut delta),
                });
            }
        }
        for &node in &imported.identities {
            let name = &block.values[block.nodes[node].outputs[0] as usize].name;
            let at = format!("{}: {name}", block.name);
            let cost_delta = -gone.remove(&(node as u32)).unwrap_or(0.0);
            rewrites.push(Rewrite { rule: "dropout_off".into(), at, cost_delta });
        }
        let dead: f64 = gone.values().sum();
        if dead > 0.0 {
            let at = format!("{}: {} nodes", block.name, gone.len());
            rewrites.push(Rewrite { rule: "dead_or_shared".into(), at, cost_delta: -dead });
        }
        self.report.rewrites.append(&mut rewrites);
    }

    /// The rules that led to a term: its own, then those of its constants and
    /// of the terms that it took the place of.
    fn story(
        &self,
        imported: &Imported,
        saturated: &Saturated,
        selected: &Selected,
        term: &super::language::Term,
    ) -> Vec<String> {
        let mut rules: Vec<String> = vec![];
        let own = saturated.made_by.get(term);
        rules.extend(own.map(|rule| (*rule).to_owned()));
        let mut seen = HashSet::new();
        let mut stack: Vec<_> = term.children().to_vec();
        while let Some(id) = stack.pop() {
            let class = imported.graph.find(id);
            if !seen.insert(class) {
                continue;
            }
            if let Some(inner @ super::language::Term { op: Op::Fold(_), .. }) =
                selected.chosen.get(&class)
            {
                if let Some(rule) = saturated.made_by.get(inner) {
                    if !rules.iter().any(|known| known == rule) {
                        rules.push((*rule).to_owned());
                    }
                }
                stack.extend(&inner.args);
            }
        }
        if rules.is_empty() {
            rules.push("rebuilt".into());
        }
        rules
    }

    fn explain_skips(&mut self, imported: &Imported, saturated: &Saturated) {
        let block = &imported.block;
        for (node, reason) in &imported.skipped {
            let node = &block.nodes[*node];
            let name = node.outputs.first().map_or("", |v| block.values[*v as usize].name.as_str());
            self.note_skipped(&format!("{}: {name} = {}", block.name, node.kind), reason);
        }
        for ((class, rule), reason) in &saturated.skipped {
            let data = &imported.graph[imported.graph.find(*class)].data;
            // A class that only rules know has no name a user could find.
            let Some(value) = data.values.first() else { continue };
            let name = &block.values[*value as usize].name;
            self.note_skipped(&format!("{}: {name}", block.name), &format!("{rule}: {reason}"));
        }
    }
}

/// Predicted µs of a node that became a term; 0 of one that stays anyway.
fn node_cost(imported: &Imported, costs: &Costs<'_>, node: usize) -> f64 {
    match &imported.terms[node] {
        Some(term) => {
            let value = imported.block.nodes[node].outputs[0];
            let class = imported.class_of[value as usize].map(|id| imported.graph.find(id));
            class.map_or(0.0, |class| costs.of(class, &imported.canonical(term)))
        }
        None if imported.is_wall(node) => 0.0,
        None => costs.profile.view_us,
    }
}

fn cost_before(imported: &Imported, costs: &Costs<'_>) -> f64 {
    let live = imported.live();
    let nodes = (0..imported.block.nodes.len()).filter(|node| live[*node]);
    nodes.map(|node| node_cost(imported, costs, node)).sum()
}

fn cost_after(imported: &Imported, costs: &Costs<'_>, rewritten: &Rewritten) -> f64 {
    let kept = rewritten.edits.steps.iter().filter(|step| step.kind == StepKind::Keep);
    let kept: f64 = kept.map(|step| node_cost(imported, costs, step.node as usize)).sum();
    let made = rewritten.made.iter().map(|(_, class, term)| costs.of(*class, term));
    kept + made.sum::<f64>()
}

/// Whether a node does work when the graph runs.
fn computes(kind: &str) -> bool {
    ops::lookup(kind)
        .map_or_else(|| !kind.starts_with("prim::"), |known| known.kind != "prim::ListConstruct")
}

/// For tests and drawings: whether a value is given before the block runs.
pub fn is_given(block: &Block, value: u32) -> bool {
    block.values.get(value as usize).is_some_and(|value| value.origin != Origin::Computed)
}
