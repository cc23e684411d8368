//! `graph::session` behind the bridge: records are translated, panics become
//! errors, nothing is decided.

use super::graph::ffi;
use crate::error::{guarded, Error};
use crate::graph::records::{self as pure, StepKind};
use crate::graph::report::Report;
use crate::graph::session::Session as Optimizer;
use crate::launch;

/// One call of optimize or explain.
pub struct Session {
    optimizer: Optimizer,
    options: ffi::Options,
}

/// A session with the report as data, for programs in Rust.
impl Session {
    /// Everything so far.
    pub fn details(&self) -> &Report {
        self.optimizer.report()
    }
}

pub(crate) fn new_session(options: &ffi::Options) -> Box<Session> {
    let optimizer = Optimizer::new(&pure::Options {
        device: profiled(&options.device),
        cpu_gflops: options.cpu_gflops,
        cpu_gbytes: options.cpu_gbytes,
        cpu_dispatch_us: options.cpu_dispatch_us,
        rows: options.rows,
        example: options.example,
    });
    Box::new(Session { optimizer, options: options.clone() })
}

/// Which profile predicts: of any CUDA device, the one that the first is.
fn profiled(device: &str) -> String {
    let hopper = || launch::device::device(0).is_ok_and(|device| device.capability / 10 == 9);
    if device == "cuda" && hopper() {
        return "h100".into();
    }
    device.into()
}

impl Session {
    pub(crate) fn optimize_block(&mut self, block: &ffi::Block) -> Result<ffi::Edits, Error> {
        guarded("optimize", || {
            let values = block.values.len();
            let edits = self.optimizer.optimize(block.into()).map_err(|got| Error::Argument {
                op: "optimize",
                expected: "a well-formed block".into(),
                got,
            })?;
            Ok(translate(edits, values))
        })
    }

    pub(crate) fn options(&self) -> &ffi::Options {
        &self.options
    }

    pub(crate) fn begin_pass(&mut self) {
        self.optimizer.begin_pass();
    }

    pub(crate) fn begin_method(&mut self) {
        self.optimizer.begin_method();
    }

    pub(crate) fn discard_method(&mut self) {
        self.optimizer.discard_method();
    }

    pub(crate) fn note_rewrite(&mut self, rule: &str, at: &str) {
        self.optimizer.note_rewrite(rule, at);
    }

    pub(crate) fn note_skipped(&mut self, at: &str, reason: &str) {
        self.optimizer.note_skipped(at, reason);
    }

    pub(crate) fn report(&self) -> String {
        self.optimizer.report().json()
    }

    pub(crate) fn dot(&self) -> String {
        self.optimizer.dot()
    }
}

impl From<&ffi::Block> for pure::Block {
    fn from(block: &ffi::Block) -> Self {
        Self {
            name: block.name.clone(),
            values: block.values.iter().map(Into::into).collect(),
            nodes: block.nodes.iter().map(Into::into).collect(),
            outputs: block.outputs.clone(),
        }
    }
}

impl From<&ffi::Node> for pure::Node {
    fn from(node: &ffi::Node) -> Self {
        Self {
            kind: node.kind.clone(),
            overload: node.overload.clone(),
            inputs: node.inputs.clone(),
            outputs: node.outputs.clone(),
            movable: node.movable,
            reason: node.reason.clone(),
        }
    }
}

impl From<&ffi::Value> for pure::Value {
    fn from(value: &ffi::Value) -> Self {
        let kind = match value.kind {
            ffi::ValueKind::Tensor => pure::ValueKind::Tensor,
            ffi::ValueKind::Int => pure::ValueKind::Int,
            ffi::ValueKind::Float => pure::ValueKind::Float,
            ffi::ValueKind::Bool => pure::ValueKind::Bool,
            ffi::ValueKind::None => pure::ValueKind::None,
            ffi::ValueKind::Ints => pure::ValueKind::Ints,
            ffi::ValueKind::Tensors => pure::ValueKind::Tensors,
            _ => pure::ValueKind::Other,
        };
        let origin = match value.origin {
            ffi::Origin::Computed => pure::Origin::Computed,
            ffi::Origin::Parameter => pure::Origin::Parameter,
            ffi::Origin::Constant => pure::Origin::Constant,
            _ => pure::Origin::Outside,
        };
        Self {
            name: value.name.clone(),
            kind,
            origin,
            known: value.known,
            int: value.int,
            float: value.float,
            ints: value.ints.clone(),
            dtype: (value.dtype >= 0).then_some(value.dtype),
            shape: value.has_shape.then(|| value.shape.clone()),
            hint: value.has_hint.then(|| value.hint.clone()),
            strided: value.strided,
            needs_grad: value.needs_grad,
            bakeable: value.bakeable,
            finite: value.finite,
            identity: value.identity,
            escapes: value.escapes,
            storage: value.storage,
        }
    }
}

fn translate(edits: pure::Edits, values: usize) -> ffi::Edits {
    let replacements = edits.replacements.into_iter();
    ffi::Edits {
        // Numbers of values that no u32 holds cannot have come in.
        changed: edits.changed && u32::try_from(values + edits.steps.len()).is_ok(),
        steps: edits.steps.into_iter().map(step).collect(),
        replacements: replacements.map(|(old, new)| ffi::Replacement { old, new }).collect(),
    }
}

fn step(step: pure::Step) -> ffi::Step {
    let mut out = ffi::Step {
        kind: ffi::StepKind::Keep,
        node: step.node,
        op: String::new(),
        inputs: step.inputs,
        ints: vec![],
        float: 0.0,
        dtype: -1,
    };
    out.kind = match step.kind {
        StepKind::Keep => ffi::StepKind::Keep,
        StepKind::Int(value) => {
            out.ints = vec![value];
            ffi::StepKind::Int
        }
        StepKind::Float(value) => {
            out.float = value;
            ffi::StepKind::Float
        }
        StepKind::Bool(value) => {
            out.ints = vec![value.into()];
            ffi::StepKind::Bool
        }
        StepKind::None => ffi::StepKind::None,
        StepKind::Ints(values) => {
            out.ints = values;
            ffi::StepKind::Ints
        }
        StepKind::Tensors => ffi::StepKind::Tensors,
        StepKind::OptionalTensors => ffi::StepKind::OptionalTensors,
        StepKind::Fold { op, ints, float, dtype } => {
            out.op = op;
            out.ints = ints;
            out.float = float;
            out.dtype = dtype;
            ffi::StepKind::Fold
        }
        StepKind::Make(op) => {
            out.op = op;
            ffi::StepKind::Make
        }
    };
    out
}
