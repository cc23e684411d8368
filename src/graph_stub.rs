//! Stands in for the optimizer: one rewrite, `relu(linear(x, w, b))`, so that
//! the C++ side has something to apply.

use crate::bridge::graph::ffi::{Block, Edits, Options, Replacement, Step, StepKind, ValueKind};
use crate::error::{guarded, Error};

/// One call of optimize or explain.
pub struct Session {
    rewrites: Vec<String>,
    skipped: Vec<String>,
}

pub(crate) fn new_session(_options: &Options) -> Box<Session> {
    Box::new(Session { rewrites: Vec::new(), skipped: Vec::new() })
}

impl Session {
    pub(crate) fn optimize_block(&mut self, block: &Block) -> Result<Edits, Error> {
        guarded("optimize", || Ok(self.fuse(block)))
    }

    pub(crate) fn note_rewrite(&mut self, rule: &str, at: &str) {
        self.rewrites.push(format!("{{\"rule\":{rule:?},\"at\":{at:?},\"cost_delta\":0}}"));
    }

    pub(crate) fn note_skipped(&mut self, at: &str, reason: &str) {
        self.skipped.push(format!("{{\"at\":{at:?},\"reason\":{reason:?}}}"));
    }

    pub(crate) fn report(&self) -> String {
        let fused = self.rewrites.iter().filter(|r| r.contains("linear_relu")).count();
        format!(
            "{{\"stop_reason\":\"stub\",\"nodes_before\":0,\"nodes_after\":0,\"cost_before\":0,\
             \"cost_after\":0,\"rewrites\":[{}],\"skipped\":[{}],\
             \"fused_ops\":{{\"hypatia::fused_linear_relu\":{fused}}}}}",
            self.rewrites.join(","),
            self.skipped.join(",")
        )
    }

    pub(crate) fn dot(&self) -> String {
        String::new()
    }

    fn fuse(&mut self, block: &Block) -> Edits {
        let mut uses = vec![0; block.values.len()];
        let mut maker = vec![None; block.values.len()];
        for (number, node) in block.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&input| uses[input as usize] += 1);
            node.outputs.iter().for_each(|&output| maker[output as usize] = Some(number));
        }
        block.outputs.iter().for_each(|&output| uses[output as usize] += 1);
        // relu → linear
        let pairs: std::collections::BTreeMap<usize, usize> = block
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.kind == "aten::relu" && node.movable)
            .filter_map(|(relu, node)| {
                let input = node.inputs[0] as usize;
                let linear = maker[input].filter(|_| uses[input] == 1)?;
                let found = &block.nodes[linear];
                let weight = &block.values[*found.inputs.get(1)? as usize];
                let supported = weight.strided && matches!(weight.dtype, 5 | 6 | 7 | 15);
                (found.kind == "aten::linear" && found.movable && supported)
                    .then_some((relu, linear))
            })
            .collect();
        let gone: std::collections::BTreeSet<usize> = pairs.values().copied().collect();
        let mut edits =
            Edits { changed: !pairs.is_empty(), steps: Vec::new(), replacements: Vec::new() };
        for (number, node) in block.nodes.iter().enumerate() {
            if gone.contains(&number) {
                continue;
            }
            let mut step = Step {
                kind: StepKind::Keep,
                node: number as u32,
                op: String::new(),
                inputs: Vec::new(),
                ints: Vec::new(),
                float: 0.0,
                dtype: -1,
            };
            if let Some(&linear) = pairs.get(&number) {
                step.kind = StepKind::Make;
                step.op = "hypatia::fused_linear_relu".to_owned();
                step.inputs.clone_from(&block.nodes[linear].inputs);
                let new = (block.values.len() + edits.steps.len()) as u32;
                edits.replacements.push(Replacement { old: node.outputs[0], new });
                let at = &block.values[node.outputs[0] as usize].name;
                self.note_rewrite("linear_relu", &format!("{}: %{at}", block.name));
            }
            edits.steps.push(step);
        }
        debug_assert!(block.values.iter().all(|v| v.kind != ValueKind::None || v.known));
        edits
    }
}
