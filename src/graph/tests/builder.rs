//! Blocks for tests, as C++ would export them, with the data to run them on.

use std::collections::HashMap;

use super::interpreter::Tensor;
use crate::graph::facts::dtypes;
use crate::graph::ops;
use crate::graph::records::{Block, Node, Origin, Value, ValueKind};

/// Builds a block node by node.
#[derive(Default)]
pub struct Builder {
    pub block: Block,
    /// Values of inputs, parameters and constants.
    pub data: HashMap<u32, Tensor>,
    seed: u64,
    /// Parameters are constants, as after freezing.
    pub frozen: bool,
}

impl Builder {
    pub fn new(frozen: bool) -> Self {
        Self { frozen, seed: 0x9e37_79b9_7f4a_7c15, ..Self::default() }
    }

    pub fn seeded(frozen: bool, seed: u64) -> Self {
        Self { seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, ..Self::new(frozen) }
    }

    /// xorshift64*: the tests need no more.
    pub fn next(&mut self) -> u64 {
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n.max(1)
    }

    fn random(&mut self, shape: &[i64]) -> Tensor {
        let count = shape.iter().product::<i64>() as usize;
        let data = (0..count).map(|_| (self.below(4001) as f64 - 2000.0) / 1000.0).collect();
        Tensor { shape: shape.to_vec(), data }
    }

    fn value(&mut self, value: Value) -> u32 {
        let number = self.block.values.len() as u32;
        let name = if value.name.is_empty() { format!("v{number}") } else { value.name.clone() };
        self.block.values.push(Value { name, identity: number, storage: number, ..value });
        number
    }

    /// A graph input of these sizes in this run; nothing about it is a fact.
    pub fn input(&mut self, shape: &[i64]) -> u32 {
        let data = self.random(shape);
        let number = self.value(Value {
            kind: ValueKind::Tensor,
            origin: Origin::Outside,
            needs_grad: true,
            escapes: true,
            ..Value::default()
        });
        self.data.insert(number, data);
        number
    }

    /// A weight, bias or other tensor of the module.
    pub fn parameter(&mut self, shape: &[i64]) -> u32 {
        let data = self.random(shape);
        self.tensor(data)
    }

    pub fn tensor(&mut self, data: Tensor) -> u32 {
        let frozen = self.frozen;
        let number = self.value(Value {
            kind: ValueKind::Tensor,
            origin: if frozen { Origin::Constant } else { Origin::Parameter },
            dtype: Some(dtypes::FLOAT),
            shape: Some(data.shape.clone()),
            strided: true,
            needs_grad: !frozen,
            bakeable: frozen,
            finite: data.data.iter().all(|x| x.is_finite()),
            escapes: true,
            ..Value::default()
        });
        self.data.insert(number, data);
        let kind = if frozen { "prim::Constant" } else { "prim::GetAttr" };
        self.push(kind, vec![], vec![number]);
        number
    }

    fn constant(&mut self, value: Value) -> u32 {
        let number = self.value(Value { origin: Origin::Constant, known: true, ..value });
        self.push("prim::Constant", vec![], vec![number]);
        number
    }

    pub fn int(&mut self, int: i64) -> u32 {
        self.constant(Value { kind: ValueKind::Int, int, ..Value::default() })
    }

    pub fn float(&mut self, float: f64) -> u32 {
        self.constant(Value { kind: ValueKind::Float, float, ..Value::default() })
    }

    pub fn flag(&mut self, flag: bool) -> u32 {
        self.constant(Value { kind: ValueKind::Bool, int: flag.into(), ..Value::default() })
    }

    pub fn none(&mut self) -> u32 {
        self.constant(Value { kind: ValueKind::None, ..Value::default() })
    }

    pub fn ints(&mut self, ints: &[i64]) -> u32 {
        let ints = ints.to_vec();
        self.constant(Value { kind: ValueKind::Ints, ints, ..Value::default() })
    }

    /// A flag that is only known when the graph runs.
    pub fn dynamic_flag(&mut self) -> u32 {
        self.value(Value { kind: ValueKind::Bool, origin: Origin::Outside, ..Value::default() })
    }

    fn push(&mut self, kind: &str, inputs: Vec<u32>, outputs: Vec<u32>) {
        self.block.nodes.push(Node {
            kind: kind.into(),
            inputs,
            outputs,
            movable: true,
            ..Node::default()
        });
    }

    /// A node with one output. Views share their input's memory.
    pub fn node(&mut self, kind: &str, inputs: &[u32]) -> u32 {
        let output = match kind {
            "aten::size" | "aten::dim" => ValueKind::Int,
            "prim::ListConstruct" => ValueKind::Tensors,
            _ => ValueKind::Tensor,
        };
        let number = self.value(Value {
            kind: output,
            origin: Origin::Computed,
            needs_grad: true,
            ..Value::default()
        });
        if ops::lookup(kind).is_some_and(|known| known.nature.may_view()) {
            self.block.values[number as usize].storage =
                self.block.values[inputs[0] as usize].storage;
        }
        self.push(kind, inputs.to_vec(), vec![number]);
        number
    }

    /// A node that nobody may look into or move.
    pub fn wall(&mut self, kind: &str, inputs: &[u32]) -> u32 {
        let number = self.node(kind, inputs);
        if let Some(node) = self.block.nodes.last_mut() {
            node.movable = false;
            node.reason = "a test's wall".into();
        }
        number
    }

    pub fn linear(&mut self, x: u32, n: i64, k: i64) -> u32 {
        let (w, b) = (self.parameter(&[n, k]), self.parameter(&[n]));
        self.node("aten::linear", &[x, w, b])
    }

    pub fn bare_linear(&mut self, x: u32, n: i64, k: i64) -> u32 {
        let (w, b) = (self.parameter(&[n, k]), self.none());
        self.node("aten::linear", &[x, w, b])
    }

    pub fn relu(&mut self, x: u32) -> u32 {
        self.node("aten::relu", &[x])
    }

    pub fn layer(&mut self, x: u32, n: i64, k: i64) -> u32 {
        let y = self.linear(x, n, k);
        self.relu(y)
    }

    pub fn cat(&mut self, parts: &[u32], dim: i64) -> u32 {
        let list = self.node("prim::ListConstruct", parts);
        let dim = self.int(dim);
        self.node("aten::cat", &[list, dim])
    }

    pub fn batch_norm(&mut self, x: u32, n: i64, training: bool) -> u32 {
        let (gamma, beta, mean) =
            (self.parameter(&[n]), self.parameter(&[n]), self.parameter(&[n]));
        let mut var = self.random(&[n]);
        var.data.iter_mut().for_each(|v| *v = v.abs() + 0.1);
        let var = self.tensor(var);
        let (training, momentum, eps) = (self.flag(training), self.float(0.1), self.float(1e-5));
        let cudnn = self.flag(true);
        self.node("aten::batch_norm", &[x, gamma, beta, mean, var, training, momentum, eps, cudnn])
    }

    pub fn dropout(&mut self, x: u32, training: u32) -> u32 {
        let p = self.float(0.5);
        self.node("aten::dropout", &[x, p, training])
    }

    /// Ends the block; results, and what shares memory with them, escape.
    pub fn returns(mut self, outputs: &[u32]) -> Self {
        self.block.outputs = outputs.to_vec();
        self.block.name = "test".into();
        let storages: Vec<u32> =
            outputs.iter().map(|v| self.block.values[*v as usize].storage).collect();
        for value in &mut self.block.values {
            value.escapes |= storages.contains(&value.storage);
        }
        self
    }
}
