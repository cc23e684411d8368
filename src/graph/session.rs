//! One call of optimize or explain: block after block, one report.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cost::Costs;
use super::draw::{self, Drawn};
use super::explain::{self, Way};
use super::extract::RESOLUTION;
use super::import::{import, Imported};
use super::profile::Profile;
use super::records::{Block, Edits, Options};
use super::report::{Report, Rewrite};
use super::rewrite::{rewrite, Rewritten};
use super::rules::RULES;
use super::saturate::{saturate, Limits, Saturated, StopReason};
use super::select::{select, Selected};
use super::total;

/// See the module's description.
#[derive(Debug)]
pub struct Session {
    profile: Profile,
    rows: i64,
    limits: Limits,
    disabled: Option<String>,
    /// From 1; blocks that are given without a pass belong to the first.
    pass: usize,
    noted: Noted,
    /// What was noted when the method that is being rewritten was begun.
    kept: Noted,
    keeping: bool,
}

/// What a call tells.
#[derive(Debug, Clone, Default)]
struct Noted {
    report: Report,
    /// Clusters of GraphViz.
    before: String,
    after: String,
}

impl Session {
    /// For one machine.
    pub fn new(options: &Options) -> Self {
        let profile = Profile::new(options);
        let shapes = match (options.example, options.rows) {
            (true, _) => "of the example",
            (false, 0) => {
                "recorded where there are any, otherwise unknown: only what wins at every size"
            }
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
            noted: Noted { report, ..Noted::default() },
            kept: Noted::default(),
            keeping: false,
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
        let Noted { report, after, .. } = &mut self.noted;
        report.nodes_after = 0;
        report.fused_ops.clear();
        report.skipped.clear();
        after.clear();
    }

    /// What is noted from here on is about one method, which may have to stay.
    pub fn begin_method(&mut self) {
        self.kept = self.noted.clone();
        self.keeping = false;
    }

    /// The method stays: forgets what was noted of it. Its blocks, given once
    /// more, are only counted.
    pub fn discard_method(&mut self) {
        self.noted = self.kept.clone();
        self.keeping = true;
    }

    /// Everything so far.
    pub fn report(&self) -> &Report {
        &self.noted.report
    }

    /// GraphViz text of all blocks, before and after.
    pub fn dot(&self) -> String {
        format!(
            "digraph hypatia {{\n  node [fontname=monospace];\n{}{}}}\n",
            self.noted.before, self.noted.after
        )
    }

    /// Notes a rewrite that was made elsewhere.
    pub fn note_rewrite(&mut self, rule: &str, at: &str) {
        let (rule, at) = (rule.to_owned(), at.to_owned());
        self.noted.report.rewrites.push(Rewrite { rule, at, cost_delta: 0.0 });
    }

    /// Notes what was left alone.
    pub fn note_skipped(&mut self, at: &str, reason: &str) {
        let entry = (at.to_owned(), reason.to_owned());
        if !self.noted.report.skipped.contains(&entry) {
            self.noted.report.skipped.push(entry);
        }
    }

    /// The block's replacement.
    ///
    /// # Errors
    /// If the records are malformed: the block stays, and is not counted.
    pub fn optimize(&mut self, block: Block) -> Result<Edits, String> {
        let block = Arc::new(block);
        let mut apart = BTreeSet::new();
        loop {
            match self.attempt(&block, &apart)? {
                Attempt::Done(edits) => return Ok(edits),
                // Each time more nodes: at the latest when all stay it ends.
                Attempt::Twins(nodes) => apart.extend(nodes),
            }
        }
    }

    /// Optimizes with the nodes `apart` left as they are.
    fn attempt(&mut self, block: &Arc<Block>, apart: &BTreeSet<usize>) -> Result<Attempt, String> {
        let mut imported = import(Arc::clone(block), apart)?;
        let profile = self.profile.clone();
        let saturated = saturate(&mut imported, RULES, true, self.limits, self.disabled.as_deref());
        let costs = Costs { graph: &imported.graph, profile: &profile, rows: self.rows };
        let live = imported.live();
        let before = total::before(&imported, &live, &costs);
        let mut after = before;
        let outcome = choose(&imported, &saturated, &live, &costs);
        let better = match outcome {
            _ if self.keeping => None,
            Ok((selected, rewritten)) => {
                let cost = total::after(&imported, &costs, &rewritten);
                if cost < before - RESOLUTION {
                    after = cost;
                    rewritten.edits.changed.then_some((selected, rewritten))
                } else if rewritten.twins.iter().all(|node| apart.contains(node)) {
                    None
                } else {
                    return Ok(Attempt::Twins(rewritten.twins));
                }
            }
            Err(reason) => {
                self.note_skipped(&block.name, &reason);
                None
            }
        };
        if saturated.stop != StopReason::Saturated || self.noted.report.stop_reason.is_empty() {
            self.noted.report.stop_reason = saturated.stop.to_string();
        }
        for (at, reason) in explain::skips(&imported, &saturated) {
            self.note_skipped(&at, &reason);
        }
        let walls = total::of_walls(&imported, profile.pointwise_us);
        self.predict(walls + before, walls + after);
        self.count(block, better.as_ref().map(|(_, rewritten)| rewritten));
        let Some((selected, rewritten)) = better else {
            return Ok(Attempt::Done(Edits::default()));
        };
        let way = Way {
            imported: &imported,
            saturated: &saturated,
            selected: &selected,
            rewritten: &rewritten,
            live: &live,
            costs: &costs,
        };
        self.noted.report.rewrites.append(&mut way.rewrites());
        Ok(Attempt::Done(rewritten.edits))
    }

    /// Adds a block's times. A later pass knows less of sizes: only what it
    /// saves counts.
    fn predict(&mut self, before: f64, after: f64) {
        if self.pass <= 1 {
            self.noted.report.cost_before += before;
            self.noted.report.cost_after += after;
        } else {
            self.noted.report.cost_after += after - before;
        }
    }

    /// Adds the block's nodes to the counts and to the drawing.
    fn count(&mut self, block: &Block, rewritten: Option<&Rewritten>) {
        let before = draw::original(block);
        let after = rewritten.map(|rewritten| draw::replacement(block, rewritten));
        let after = after.as_ref().unwrap_or(&before);
        let computing =
            |nodes: &[Drawn]| nodes.iter().filter(|node| total::computes(&node.kind)).count();
        self.noted.report.nodes_after += computing(after);
        for node in after.iter().filter(|node| node.kind.starts_with("hypatia::")) {
            *self.noted.report.fused_ops.entry(node.kind.clone()).or_default() += 1;
        }
        if self.pass <= 1 {
            self.noted.report.nodes_before += computing(&before);
            self.noted.before += &draw::cluster(&format!("{} before", block.name), &before);
        }
        self.noted.after += &draw::cluster(&format!("{} after", block.name), after);
    }
}

/// What came of one.
enum Attempt {
    Done(Edits),
    /// Equal results had to be computed twice, because they must not share
    /// memory, and that costs more than it saves: these nodes make them.
    Twins(Vec<usize>),
}

/// The cheapest graph and the steps that build it.
fn choose(
    imported: &Imported,
    saturated: &Saturated,
    live: &[bool],
    costs: &Costs<'_>,
) -> Result<(Selected, Rewritten), String> {
    if let StopReason::Unsound(what) = &saturated.stop {
        return Err(what.clone());
    }
    let selected = select(imported, live, costs)?;
    let rewritten = rewrite(imported, &selected)?;
    Ok((selected, rewritten))
}
