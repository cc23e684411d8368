//! The e-graph's terms: an operator and the classes it reads.

use egg::{Id, Language};

/// A float that can be compared and hashed: by its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bits(u64);

impl From<f64> for Bits {
    fn from(value: f64) -> Self {
        Self(value.to_bits())
    }
}

impl Bits {
    /// The float.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

/// A compile-time scalar or list of integers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Num {
    /// `int`
    Int(i64),
    /// `float`
    Float(Bits),
    /// `bool`
    Bool(bool),
    /// `None`
    None,
    /// `int[]`
    Ints(Vec<i64>),
}

/// A tensor constant computed from tensor constants when the graph is
/// rewritten. Shapes: w `[N, K]`, v `[N]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fold {
    /// `a · b`
    Matmul,
    /// `w · v`
    Mv,
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a * factor`
    Times(Bits),
    /// `w * v[:, None]`
    ScaleRows,
    /// `w * v[None, :]`
    ScaleColumns,
    /// `1 / sqrt(v + eps)`
    Rsqrt(Bits),
    /// Rows of all inputs.
    Cat0,
    /// Columns of all inputs.
    Cat1,
    /// `w[:, start : start + length]`
    Columns(i64, i64),
    /// `wᵀ`
    Transpose,
    /// `[n]` copies of a number.
    Fill(i64, Bits),
    /// `[n]` copies of a tensor of one element.
    Broadcast(i64),
}

/// What a term does with its children.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Value `n` of the block: input, parameter, constant, or made by a node
    /// that stays as it is.
    Leaf(u32),
    /// A compile-time scalar.
    Num(Num),
    /// `[x, w, b]`: `x wᵀ + b`; the class of b may be `Num(None)`.
    Linear,
    /// `[x]`
    Relu,
    /// `[x, w, b]`: relu of the linear.
    Fused,
    /// `[x, w₁, b₁, …]`: layers with ReLU between them.
    Mlp {
        /// Also after the last.
        relu_last: bool,
    },
    /// A list of its children.
    List,
    /// Another operator of [`super::ops`], arguments as in its schema.
    Native {
        /// `aten::cat`
        kind: &'static str,
        /// Set for random operators: equal terms are then the same draw.
        draw: Option<u32>,
    },
    /// A constant computed at optimization time.
    Fold(Fold),
}

/// An operator and its children.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term {
    /// What it does.
    pub op: Op,
    /// What it reads.
    pub args: Vec<Id>,
}

impl Term {
    /// A term.
    pub fn new(op: Op, args: Vec<Id>) -> Self {
        Self { op, args }
    }

    /// Its ATen name, if it is a [`Op::Native`].
    pub fn native(&self) -> Option<&'static str> {
        match self.op {
            Op::Native { kind, .. } => Some(kind),
            _ => None,
        }
    }
}

impl Language for Term {
    type Discriminant = Op;

    fn discriminant(&self) -> Op {
        self.op.clone()
    }

    fn matches(&self, other: &Self) -> bool {
        self.op == other.op && self.args.len() == other.args.len()
    }

    fn children(&self) -> &[Id] {
        &self.args
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.args
    }
}

/// For new terms whose children may be new themselves: what a rule found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// A class that exists.
    Class(Id),
    /// The n-th term of the same recipe.
    New(usize),
}

impl From<Id> for Arg {
    fn from(id: Id) -> Self {
        Self::Class(id)
    }
}

/// Terms to add, in order; the last one equals the class it was found for.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    /// Operators with their arguments.
    pub terms: Vec<(Op, Vec<Arg>)>,
}

impl Recipe {
    /// Appends a term and names it.
    pub fn add(&mut self, op: Op, args: impl IntoIterator<Item = Arg>) -> Arg {
        self.terms.push((op, args.into_iter().collect()));
        Arg::New(self.terms.len() - 1)
    }

    /// Appends an operator without draws.
    pub fn native(&mut self, kind: &'static str, args: impl IntoIterator<Item = Arg>) -> Arg {
        self.add(Op::Native { kind, draw: None }, args)
    }

    /// Appends a constant.
    pub fn fold(&mut self, fold: Fold, args: impl IntoIterator<Item = Arg>) -> Arg {
        self.add(Op::Fold(fold), args)
    }

    /// Appends a scalar.
    pub fn num(&mut self, num: Num) -> Arg {
        self.add(Op::Num(num), [])
    }
}
