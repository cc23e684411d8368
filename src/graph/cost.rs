//! Predicted time of one term.

use egg::Id;

use super::facts::{dtypes, list, Data, Graph};
use super::language::{Op, Term};
use super::ops::{self, Nature};
use super::profile::Profile;

/// Rows and columns where nothing is known: any size at which nothing is
/// negligible will do, since what depends on it is decided by guards.
const UNKNOWN_ROWS: i64 = 64;
const UNKNOWN_COLUMNS: i64 = 256;

/// Asks for the cost of terms of one graph.
#[derive(Debug, Clone, Copy)]
pub struct Costs<'a> {
    /// Facts.
    pub graph: &'a Graph,
    /// The machine.
    pub profile: &'a Profile,
    /// Rows of inputs without a recorded size; 0 for unknown.
    pub rows: i64,
}

impl Costs<'_> {
    fn data(&self, id: Id) -> &Data {
        &self.graph[id].data
    }

    fn rows_of(&self, id: Id) -> f64 {
        let known = self.data(id).rows_hint().or((self.rows > 0).then_some(self.rows));
        known.unwrap_or(UNKNOWN_ROWS) as f64
    }

    /// Bytes of a tensor.
    fn bytes_of(&self, id: Id) -> f64 {
        let data = self.data(id);
        let elements = match (&data.shape, &data.hint) {
            (Some(sizes), _) | (None, Some(sizes)) => sizes.iter().product::<i64>() as f64,
            _ => self.rows_of(id) * data.last.unwrap_or(UNKNOWN_COLUMNS) as f64,
        };
        elements * dtypes::bytes(data.dtype.unwrap_or(dtypes::FLOAT))
    }

    /// µs of a product `[m, k] × [k, n]`.
    fn product(&self, m: f64, n: f64, k: f64, dtype: i32) -> f64 {
        let moved = (m * k + n * k + m * n) * dtypes::bytes(dtype);
        (m * n * k / self.profile.products(dtype)).max(moved / self.profile.bytes)
    }

    fn layer(&self, m: f64, w: Id) -> f64 {
        let data = self.data(w);
        let (n, k) = data.matrix().unwrap_or((UNKNOWN_COLUMNS, UNKNOWN_COLUMNS));
        self.product(m, n as f64, k as f64, data.dtype.unwrap_or(dtypes::FLOAT))
    }

    /// The pass that a ReLU costs although it is fused.
    fn relu(&self, m: f64, w: Id) -> f64 {
        let data = self.data(w);
        let n = data.matrix().map_or(UNKNOWN_COLUMNS, |(n, _)| n) as f64;
        let bytes = m * n * dtypes::bytes(data.dtype.unwrap_or(dtypes::FLOAT));
        if self.profile.relu_pass {
            bytes / self.profile.bytes
        } else {
            0.0
        }
    }

    /// µs of one call of `term`, which makes `class`.
    pub fn of(&self, class: Id, term: &Term) -> f64 {
        let p = self.profile;
        let args = &term.args;
        match &term.op {
            Op::Leaf(_) | Op::Num(_) | Op::Fold(_) => 0.0,
            Op::List => 0.1 + 0.02 * args.len() as f64,
            Op::Linear => p.product_us + self.layer(self.rows_of(args[0]), args[1]),
            Op::Fused => {
                let m = self.rows_of(args[0]);
                p.fused_us + self.layer(m, args[1]) + self.relu(m, args[1])
            }
            Op::Mlp { relu_last } => {
                let m = self.rows_of(args[0]);
                let layers = args[1..].chunks_exact(2);
                let (count, lists) = (layers.len(), 2.0 * (0.1 + 0.02 * layers.len() as f64));
                let each = |(n, pair): (usize, &[Id])| {
                    let relu = n + 1 < count || *relu_last;
                    let pass = if relu { self.relu(m, pair[0]) } else { 0.0 };
                    p.layer_us + self.layer(m, pair[0]) + pass
                };
                p.mlp_us + lists + layers.enumerate().map(each).sum::<f64>()
            }
            Op::Relu => p.pointwise_us + 2.0 * self.bytes_of(class) / p.bytes,
            Op::Native { kind, .. } => self.native(class, kind, args),
        }
    }

    fn native(&self, class: Id, kind: &str, args: &[Id]) -> f64 {
        let p = self.profile;
        let passes = |reads: f64| p.pointwise_us + (reads + 1.0) * self.bytes_of(class) / p.bytes;
        let Some(known) = ops::lookup(kind) else { return p.pointwise_us };
        match (known.nature, kind) {
            (Nature::Product, "aten::addmm") => p.product_us + self.general(args[1], args[2]),
            (Nature::Product, _) => p.product_us + self.general(args[0], args[1]),
            (_, "aten::dropout") => passes(1.0) + p.pointwise_us,
            (_, "aten::batch_norm") => passes(1.0) + p.pointwise_us,
            (Nature::Pointwise, _) => passes(1.0),
            (Nature::View | Nature::PerhapsView, _) => p.view_us,
            (Nature::Metadata, _) => p.metadata_us,
            (Nature::Copy, "aten::cat") => {
                let parts = list(self.graph, args[0]).map_or(2, |parts| parts.len());
                passes(1.0) + 0.1 * parts as f64
            }
            (Nature::Copy, _) => passes(2.0),
        }
    }

    /// A product whose right side is a `[K, N]` matrix.
    fn general(&self, x: Id, a: Id) -> f64 {
        let data = self.data(a);
        let (k, n) = data.matrix().unwrap_or((UNKNOWN_COLUMNS, UNKNOWN_COLUMNS));
        self.product(self.rows_of(x), n as f64, k as f64, data.dtype.unwrap_or(dtypes::FLOAT))
    }
}
