//! Predicted time of whole blocks: the sum over their nodes.

use super::cost::Costs;
use super::import::Imported;
use super::ops;
use super::records::StepKind;
use super::rewrite::Rewritten;

/// µs of a node that became a term; 0 of one that stays anyway.
pub fn of_node(imported: &Imported, costs: &Costs<'_>, node: usize) -> f64 {
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

/// µs of the block as it came; `live` of its nodes run.
pub fn before(imported: &Imported, live: &[bool], costs: &Costs<'_>) -> f64 {
    let nodes = (0..imported.block.nodes.len()).filter(|node| live[*node]);
    nodes.map(|node| of_node(imported, costs, node)).sum()
}

/// µs of its replacement.
pub fn after(imported: &Imported, costs: &Costs<'_>, rewritten: &Rewritten) -> f64 {
    let kept = rewritten.edits.steps.iter().filter(|step| step.kind == StepKind::Keep);
    let kept: f64 = kept.map(|step| of_node(imported, costs, step.node as usize)).sum();
    let made = rewritten.made.iter().map(|(_, class, term)| costs.of(*class, term));
    kept + made.sum::<f64>()
}

/// µs of the nodes that stay in any case: a guess, the same on both sides.
pub fn of_walls(imported: &Imported, pointwise_us: f64) -> f64 {
    let nodes = imported.block.nodes.iter().enumerate();
    let computing = nodes.filter(|(n, node)| imported.is_wall(*n) && computes(&node.kind));
    computing.count() as f64 * pointwise_us
}

/// Whether a node does work when the graph runs.
pub fn computes(kind: &str) -> bool {
    ops::lookup(kind)
        .map_or_else(|| !kind.starts_with("prim::"), |known| known.kind != "prim::ListConstruct")
}
