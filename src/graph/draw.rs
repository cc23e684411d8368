//! Blocks as GraphViz text, before and after.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use super::records::{Block, StepKind};
use super::rewrite::Rewritten;
use super::total::computes;

/// A node as it is drawn and counted.
#[derive(Debug, Clone)]
pub struct Drawn {
    /// `aten::relu`
    pub kind: String,
    /// Values read.
    pub inputs: Vec<u32>,
    /// Values made.
    pub outputs: Vec<u32>,
}

/// The block as it came.
pub fn original(block: &Block) -> Vec<Drawn> {
    (0..block.nodes.len()).map(|node| kept(block, node)).collect()
}

fn kept(block: &Block, node: usize) -> Drawn {
    let node = &block.nodes[node];
    Drawn { kind: node.kind.clone(), inputs: node.inputs.clone(), outputs: node.outputs.clone() }
}

/// Its replacement.
pub fn replacement(block: &Block, rewritten: &Rewritten) -> Vec<Drawn> {
    let renamed: HashMap<u32, u32> = rewritten.edits.replacements.iter().copied().collect();
    let steps = rewritten.edits.steps.iter().enumerate();
    let drawn = steps.filter_map(|(n, step)| {
        let kind = match &step.kind {
            StepKind::Keep => {
                let mut drawn = kept(block, step.node as usize);
                for value in &mut drawn.inputs {
                    *value = *renamed.get(value).unwrap_or(value);
                }
                return Some(drawn);
            }
            StepKind::Make(kind) => kind.as_str(),
            StepKind::Tensors | StepKind::OptionalTensors => LIST,
            _ => return None,
        };
        let outputs = vec![(block.values.len() + n) as u32];
        Some(Drawn { kind: kind.to_owned(), inputs: step.inputs.clone(), outputs })
    });
    drawn.collect()
}

const LIST: &str = "prim::ListConstruct";

/// One box of the drawing, with the nodes that compute.
pub fn cluster(title: &str, nodes: &[Drawn]) -> String {
    let mut out = String::new();
    let shown = || nodes.iter().filter(|node| computes(&node.kind) || node.kind == LIST);
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    // Writing to a String cannot fail.
    let _ = writeln!(out, "  subgraph \"cluster {0}\" {{\n    label=\"{0}\";", escape(title));
    let id = |value: u32| format!("\"{}:{value}\"", escape(title));
    let mut maker: BTreeMap<u32, u32> = BTreeMap::new();
    for node in shown() {
        if let Some(&first) = node.outputs.first() {
            let fill = if node.kind.starts_with("hypatia::") { ", style=filled" } else { "" };
            let (id, kind) = (id(first), escape(&node.kind));
            let _ = writeln!(out, "    {id} [label=\"{kind}\", shape=box{fill}];");
            maker.extend(node.outputs.iter().map(|value| (*value, first)));
        }
    }
    for node in shown() {
        let Some(&to) = node.outputs.first() else { continue };
        for &from in node.inputs.iter().filter_map(|input| maker.get(input)) {
            let _ = writeln!(out, "    {} -> {};", id(from), id(to));
        }
    }
    out.push_str("  }\n");
    out
}
