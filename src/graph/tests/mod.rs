//! Tests of the optimizer as a whole: blocks in, steps out, both evaluated by
//! a small interpreter in fp64 and compared.

mod builder;
mod corpus;
mod dag;
mod interpreter;
mod limits;
mod mutants;
mod orders;
mod random;
mod sharing;

use super::records::{Block, Edits, Options};
use super::session::Session;

/// A session for the CPU profile.
fn session() -> Session {
    Session::new(&Options { device: "cpu".into(), ..Options::default() })
}

/// Optimizes, and insists that nothing went wrong on the way.
fn optimize(block: &Block) -> (Edits, Session) {
    let mut session = session();
    let edits = session.optimize(block.clone()).expect("a well-formed block");
    let stop = session.report().stop_reason.clone();
    assert!(!stop.starts_with("unsound"), "{stop}");
    (edits, session)
}

/// Names of the nodes that compute in the result.
fn kinds(block: &Block, edits: &Edits) -> Vec<String> {
    use super::records::StepKind;
    let known = |kind: &String| kind != "prim::ListConstruct" && !kind.starts_with("prim::");
    if !edits.changed {
        return block.nodes.iter().map(|node| node.kind.clone()).filter(known).collect();
    }
    let steps = edits.steps.iter().filter_map(|step| match &step.kind {
        StepKind::Keep => Some(block.nodes[step.node as usize].kind.clone()),
        StepKind::Make(kind) => Some(kind.clone()),
        _ => None,
    });
    steps.filter(known).collect()
}
