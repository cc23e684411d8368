//! What is known of every class of equal terms. Facts hold in every run;
//! `hint` alone was merely seen in one and only feeds costs.

use std::sync::Arc;

use egg::{Analysis, DidMerge, EGraph, Id};

use super::language::{Fold, Num, Op, Term};
use super::records::{Block, Origin, ValueKind};

/// `c10::ScalarType` of the floating dtypes that the fused operators take.
pub mod dtypes {
    /// fp16
    pub const HALF: i32 = 5;
    /// fp32
    pub const FLOAT: i32 = 6;
    /// fp64
    pub const DOUBLE: i32 = 7;
    /// bf16
    pub const BFLOAT16: i32 = 15;

    /// Whether the fused operators take it.
    pub fn fused(dtype: i32) -> bool {
        matches!(dtype, HALF | FLOAT | DOUBLE | BFLOAT16)
    }

    /// Bytes of an element.
    pub fn bytes(dtype: i32) -> f64 {
        match dtype {
            HALF | BFLOAT16 => 2.0,
            DOUBLE => 8.0,
            _ => 4.0,
        }
    }
}

/// The e-graph of one block.
pub type Graph = EGraph<Term, Facts>;

/// Facts of one class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Data {
    /// A compile-time scalar.
    pub num: Option<Num>,
    /// Element type.
    pub dtype: Option<i32>,
    /// Number of dimensions.
    pub rank: Option<usize>,
    /// Last size.
    pub last: Option<i64>,
    /// All sizes, of parameters and constants.
    pub shape: Option<Vec<i64>>,
    /// Sizes of a recorded run.
    pub hint: Option<Vec<i64>>,
    /// A dense-layout tensor for sure.
    pub strided: bool,
    /// Never below zero, and zero gradient where zero.
    pub nonneg: bool,
    /// A constant that may be folded.
    pub bakeable: bool,
    /// With finite elements only.
    pub finite: bool,
    /// A gradient may be asked for.
    pub needs_grad: bool,
    /// Moving a ReLU in here may let it fuse.
    pub absorbs_relu: bool,
    /// Values of the block that are equal to this class.
    pub values: Vec<u32>,
    /// Those of its leaves.
    pub given: Vec<u32>,
}

impl Data {
    /// A tensor that may be folded into another constant.
    pub fn foldable(&self) -> bool {
        self.bakeable && self.finite && self.dtype.is_some_and(dtypes::fused)
    }

    /// `None` for sure.
    pub fn is_none(&self) -> bool {
        self.num == Some(Num::None)
    }

    /// Whether it is exactly the vector `[n]`.
    pub fn is_vector(&self, n: i64) -> bool {
        self.shape.as_deref() == Some(&[n])
    }

    /// `[N, K]` of a matrix.
    pub fn matrix(&self) -> Option<(i64, i64)> {
        match self.shape.as_deref() {
            Some(&[n, k]) => Some((n, k)),
            _ => None,
        }
    }

    /// Rows in the recorded run: the product of all sizes but the last.
    pub fn rows_hint(&self) -> Option<i64> {
        let hint = self.hint.as_deref()?;
        Some(hint.split_last().map_or(1, |(_, rest)| rest.iter().product()))
    }

    /// A compile-time number as a float.
    pub fn number(&self) -> Option<f64> {
        match self.num {
            Some(Num::Int(value)) => Some(value as f64),
            Some(Num::Float(value)) => Some(value.get()),
            _ => None,
        }
    }

    /// A compile-time integer.
    pub fn int(&self) -> Option<i64> {
        match self.num {
            Some(Num::Int(value)) => Some(value),
            _ => None,
        }
    }
}

/// The analysis: the block that leaves refer to, and what went wrong.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Where leaves come from.
    pub block: Arc<Block>,
    /// A merge of classes that cannot be equal: some rule is wrong.
    pub conflict: Option<String>,
}

impl Analysis<Term> for Facts {
    type Data = Data;

    fn make(graph: &mut Graph, term: &Term, _: Id) -> Data {
        let arg = |i: usize| term.args.get(i).map(|id| &graph[*id].data);
        match &term.op {
            Op::Leaf(value) => Data { given: vec![*value], ..leaf(&graph.analysis.block, *value) },
            Op::Num(num) => Data { num: Some(num.clone()), ..Data::default() },
            Op::List => Data::default(),
            Op::Fold(fold) => {
                folded(fold, &term.args.iter().map(|id| &graph[*id].data).collect::<Vec<_>>())
            }
            Op::Relu => {
                let x = arg(0).cloned().unwrap_or_default();
                Data {
                    nonneg: true,
                    num: None,
                    shape: None,
                    bakeable: false,
                    absorbs_relu: false,
                    values: vec![],
                    given: vec![],
                    ..x
                }
            }
            Op::Linear => linear(arg(0), arg(1), false),
            Op::Fused => linear(arg(0), arg(1), true),
            Op::Mlp { relu_last } => {
                let last = term.args.len().saturating_sub(2);
                linear(arg(0), arg(last), *relu_last)
            }
            Op::Native { kind, .. } => {
                let args: Vec<&Data> = term.args.iter().map(|id| &graph[*id].data).collect();
                native(graph, kind, term, &args)
            }
        }
    }

    fn merge(&mut self, to: &mut Data, from: Data) -> DidMerge {
        let before = to.clone();
        let other = from.clone();
        let conflict = &mut self.conflict;
        fact("number", &mut to.num, from.num, conflict);
        fact("dtype", &mut to.dtype, from.dtype, conflict);
        fact("rank", &mut to.rank, from.rank, conflict);
        fact("last size", &mut to.last, from.last, conflict);
        fact("shape", &mut to.shape, from.shape, conflict);
        if to.hint.is_none() {
            to.hint = from.hint;
        }
        to.strided |= from.strided;
        to.nonneg |= from.nonneg;
        to.bakeable |= from.bakeable;
        to.finite |= from.finite;
        // Equal tensors, one of them without a gradient: either may be used
        // only if neither is asked for one, so the stricter fact stays.
        to.needs_grad |= from.needs_grad;
        to.absorbs_relu |= from.absorbs_relu;
        join(&mut to.values, from.values);
        join(&mut to.given, from.given);
        DidMerge(*to != before, *to != other)
    }
}

fn join(to: &mut Vec<u32>, from: Vec<u32>) {
    to.extend(from);
    to.sort_unstable();
    to.dedup();
}

/// Joins what two equal classes know of one thing; a disagreement means that
/// they are not equal, so a rule is wrong.
fn fact<T: PartialEq + std::fmt::Debug>(
    name: &str,
    to: &mut Option<T>,
    from: Option<T>,
    conflict: &mut Option<String>,
) {
    match (to.as_ref(), from) {
        (Some(a), Some(b)) if *a != b => {
            conflict.get_or_insert_with(|| format!("{name} {a:?} and {b:?} of one value"));
        }
        (None, from) => *to = from,
        _ => {}
    }
}

fn leaf(block: &Block, number: u32) -> Data {
    let Some(value) = block.values.get(number as usize) else { return Data::default() };
    let fixed = matches!(value.origin, Origin::Parameter | Origin::Constant);
    let shape = value.shape.clone().filter(|sizes| sizes.iter().all(|&n| n >= 0));
    Data {
        dtype: value.dtype,
        rank: value.shape.as_ref().map(Vec::len),
        last: value.shape.as_ref().and_then(|s| s.last().copied()).filter(|&n| n >= 0),
        hint: shape.clone().or_else(|| value.hint.clone()),
        shape: shape.filter(|_| fixed),
        strided: value.strided,
        bakeable: value.bakeable && value.origin == Origin::Constant,
        finite: value.finite,
        needs_grad: value.needs_grad && value.kind != ValueKind::None,
        ..Data::default()
    }
}

/// Of `[*, K] × [N, K]`.
fn linear(x: Option<&Data>, w: Option<&Data>, relu: bool) -> Data {
    let (Some(x), Some(w)) = (x, w) else { return Data::default() };
    let last = w.matrix().map(|(n, _)| n);
    let hint = x.hint.clone().and_then(|mut sizes| {
        *sizes.last_mut()? = last?;
        Some(sizes)
    });
    Data {
        dtype: w.dtype,
        rank: x.rank,
        last,
        hint,
        strided: true,
        nonneg: relu,
        needs_grad: true,
        absorbs_relu: !relu,
        ..Data::default()
    }
}

fn folded(fold: &Fold, args: &[&Data]) -> Data {
    let shape = |i: usize| args.get(i).and_then(|data| data.shape.clone());
    let sum = |axis: usize| -> Option<Vec<i64>> {
        let mut total = shape(0)?;
        let sizes: Option<Vec<i64>> =
            args.iter().map(|data| data.shape.as_ref()?.get(axis).copied()).collect();
        *total.get_mut(axis)? = sizes?.iter().sum();
        Some(total)
    };
    let shape = match fold {
        Fold::Matmul => match (shape(0).as_deref(), shape(1).as_deref()) {
            (Some(&[n, _]), Some(&[_, k])) => Some(vec![n, k]),
            _ => None,
        },
        Fold::Mv => shape(0).and_then(|s| s.first().map(|n| vec![*n])),
        Fold::Cat0 => sum(0),
        Fold::Cat1 => sum(1),
        Fold::Columns(_, length) => shape(0).and_then(|s| s.first().map(|n| vec![*n, *length])),
        Fold::Transpose => shape(0).map(|s| s.into_iter().rev().collect()),
        Fold::Fill(n, _) | Fold::Broadcast(n) => Some(vec![*n]),
        _ => shape(0),
    };
    Data {
        dtype: args.first().and_then(|data| data.dtype),
        rank: shape.as_ref().map(Vec::len),
        last: shape.as_ref().and_then(|s| s.last().copied()),
        hint: shape.clone(),
        shape,
        strided: true,
        bakeable: true,
        // Checked when it is computed; the rewrite is given up otherwise.
        finite: true,
        ..Data::default()
    }
}

/// Of the operators in `ops`; unknown where the arguments do not say.
fn native(graph: &Graph, kind: &str, term: &Term, args: &[&Data]) -> Data {
    let unknown = Data { needs_grad: true, ..Data::default() };
    let Some(&x) = args.first() else { return unknown };
    // The same sizes and dtype as the first argument.
    let like = || Data {
        num: None,
        shape: None,
        bakeable: false,
        finite: false,
        nonneg: false,
        absorbs_relu: false,
        values: vec![],
        given: vec![],
        ..x.clone()
    };
    let known = |i: usize| args.get(i).and_then(|data| data.int());
    match kind {
        "aten::clamp_min" | "aten::clamp" | "aten::threshold" => like(),
        "aten::dropout" => {
            Data { nonneg: x.nonneg, absorbs_relu: x.absorbs_relu, needs_grad: true, ..like() }
        }
        "aten::batch_norm" => Data { needs_grad: true, absorbs_relu: x.absorbs_relu, ..like() },
        "aten::contiguous" => Data { nonneg: x.nonneg, absorbs_relu: x.absorbs_relu, ..like() },
        "aten::addmm" => Data { rank: Some(2), strided: true, absorbs_relu: true, ..unknown },
        "aten::mm" => Data { rank: Some(2), strided: true, absorbs_relu: true, ..unknown },
        "aten::matmul" => {
            let matrix = args.get(1).and_then(|w| w.matrix());
            let rank = x.rank.filter(|_| matrix.is_some());
            let last = matrix.map(|(_, n)| n);
            Data { rank, last, strided: true, absorbs_relu: true, ..unknown }
        }
        "aten::add" | "aten::sub" | "aten::mul" | "aten::div" => {
            let mut data = broadcast(x, args.get(1).copied());
            data.absorbs_relu = args.iter().any(|a| a.absorbs_relu);
            data
        }
        "aten::t" | "aten::numpy_T" => transposed(x),
        "aten::transpose" => match (x.rank, known(1), known(2)) {
            (Some(2), Some(a), Some(b)) if (a - b).rem_euclid(2) == 1 => transposed(x),
            _ => Data { rank: x.rank, dtype: x.dtype, ..view_of(x) },
        },
        "aten::permute" => Data { rank: x.rank, ..view_of(x) },
        "aten::view" | "aten::reshape" => {
            let sizes = args.get(1).and_then(|data| match &data.num {
                Some(Num::Ints(sizes)) => Some(sizes.clone()),
                _ => None,
            });
            let listed = term.args.get(1).and_then(|id| list(graph, *id)).map(|l| l.len());
            let last = sizes.as_ref().and_then(|s| s.last().copied()).filter(|&n| n >= 0);
            let rank = sizes.as_ref().map(Vec::len).or(listed);
            Data { rank, last, ..view_of(x) }
        }
        "aten::flatten" => {
            // From dimension d to the last: d + 1 dimensions; a tensor with
            // fewer than d + 1 is an error, not another rank.
            let rank = match (known(1), known(2)) {
                (Some(from @ 0..), Some(-1)) => Some(from as usize + 1),
                _ => None,
            };
            let last = x
                .hint
                .as_ref()
                .zip(rank)
                .and_then(|(s, r)| s.get(r - 1..))
                .map(|s| s.iter().product());
            let hint = x.hint.as_ref().zip(rank).zip(last).and_then(|((s, r), last)| {
                let mut sizes = s.get(..r - 1)?.to_vec();
                sizes.push(last);
                Some(sizes)
            });
            Data { rank, hint, ..view_of(x) }
        }
        "aten::unsqueeze" => Data { rank: x.rank.map(|rank| rank + 1), ..view_of(x) },
        "aten::squeeze" => view_of(x),
        "aten::slice" => Data { rank: x.rank, ..view_of(x) },
        "aten::max_pool1d" | "aten::max_pool2d" | "aten::amax" => {
            Data { dtype: x.dtype, nonneg: x.nonneg, absorbs_relu: x.absorbs_relu, ..unknown }
        }
        "aten::cat" => {
            let parts = term.args.first().and_then(|id| list(graph, *id)).unwrap_or_default();
            let parts: Vec<&Data> = parts.iter().map(|id| &graph[*id].data).collect();
            concatenated(&parts, known(1))
        }
        "aten::size" | "aten::dim" => Data::default(),
        _ => unknown,
    }
}

/// Children of the list that a class is, if one of its terms says so.
pub fn list(graph: &Graph, class: Id) -> Option<Vec<Id>> {
    graph[class].nodes.iter().find(|term| term.op == Op::List).map(|term| term.args.clone())
}

fn view_of(x: &Data) -> Data {
    Data {
        dtype: x.dtype,
        strided: x.strided,
        nonneg: x.nonneg,
        needs_grad: x.needs_grad,
        absorbs_relu: x.absorbs_relu,
        finite: x.finite,
        ..Data::default()
    }
}

fn transposed(x: &Data) -> Data {
    let reversed =
        |s: &Option<Vec<i64>>| s.clone().map(|s| s.into_iter().rev().collect::<Vec<_>>());
    let shape = reversed(&x.shape);
    let last = shape.as_ref().and_then(|s| s.last().copied());
    Data { rank: x.rank, shape, last, hint: reversed(&x.hint), ..view_of(x) }
}

/// Of an element-wise operator with two operands.
fn broadcast(a: &Data, b: Option<&Data>) -> Data {
    let mut data = Data { needs_grad: true, ..Data::default() };
    let Some(b) = b else { return data };
    let narrow = |d: &Data| d.num.is_some() || d.rank == Some(0);
    // The sizes are those of the wider operand where it is known to cover the
    // other: a number, or a vector against the same last size.
    let wider = if narrow(b)
        || b.rank == Some(1) && b.last.is_some() && a.last == b.last && a.rank.is_none_or(|r| r > 0)
    {
        a
    } else if narrow(a) || a.rank == Some(1) && a.last.is_some() && a.last == b.last {
        b
    } else {
        return data;
    };
    let other = if std::ptr::eq(wider, a) { b } else { a };
    // A number, or the same dtype, leaves a floating dtype as it is.
    let floating = wider.dtype.is_some_and(dtypes::fused);
    if floating && (other.num.is_some() || other.dtype == wider.dtype) {
        data.dtype = wider.dtype;
    }
    data.rank = wider.rank;
    data.last = wider.last;
    data.hint.clone_from(&wider.hint);
    data.strided = wider.strided && (other.strided || other.num.is_some());
    data
}

fn concatenated(parts: &[&Data], dim: Option<i64>) -> Data {
    // cat skips empty vectors beside matrices: all must be known to agree.
    let rank =
        parts.first().and_then(|d| d.rank).filter(|r| parts.iter().all(|d| d.rank == Some(*r)));
    let along_last = dim == Some(-1) || rank.is_some_and(|r| dim == Some(r as i64 - 1));
    let last = if along_last {
        parts.iter().map(|data| data.last).sum()
    } else {
        parts
            .iter()
            .find_map(|data| data.last)
            .filter(|_| rank.is_some() || dim.is_some_and(|d| d < -1))
    };
    let dtype =
        parts.first().and_then(|d| d.dtype).filter(|t| parts.iter().all(|d| d.dtype == Some(*t)));
    let hint = parts.iter().find_map(|data| data.hint.clone()).and_then(|mut sizes| {
        if along_last {
            *sizes.last_mut()? = parts
                .iter()
                .map(|data| data.hint.as_ref()?.last().copied())
                .sum::<Option<i64>>()?;
        }
        Some(sizes)
    });
    Data {
        dtype,
        rank,
        last,
        hint,
        strided: parts.iter().all(|data| data.strided),
        nonneg: !parts.is_empty() && parts.iter().all(|data| data.nonneg),
        absorbs_relu: parts.iter().any(|data| data.absorbs_relu),
        needs_grad: true,
        ..Data::default()
    }
}
