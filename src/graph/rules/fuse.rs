//! linear, then ReLU → one operator.

use super::{Found, Rule, Site};
use crate::graph::facts::dtypes;
use crate::graph::language::{Op, Recipe};
use egg::Id;

pub(super) const LINEAR_RELU: Rule = Rule {
    name: "linear_relu",
    sketch: "fused_linear_relu is defined as relu(linear(x, w, b)); it takes [N, K] weights, [N] \
             biases and four dtypes, so nothing else may be given to it",
    guards: &["weight", "bias"],
    find: |site, found| {
        if site.term.op != Op::Relu {
            return;
        }
        for linear in site.with(site.arg(0), &Op::Linear) {
            let [x, w, b] = linear.args[..] else { continue };
            if fusible(site, w, b) {
                let mut recipe = Recipe::default();
                recipe.add(Op::Fused, [x.into(), w.into(), b.into()]);
                found.push(Found::Terms(recipe));
            }
        }
    },
};

/// Whether the fused operators take this layer.
pub(super) fn fusible(site: &Site<'_>, w: Id, b: Id) -> bool {
    let (weight, bias) = (site.data(w), site.data(b));
    let matrix = weight.matrix();
    let good = matrix.is_some() && weight.strided && weight.dtype.is_some_and(dtypes::fused);
    site.guard("weight", good, || "the weight is not known to be a strided floating matrix".into())
        && site.guard(
            "bias",
            bias.is_none()
                || matrix.is_some_and(|(n, _)| bias.is_vector(n)) && bias.dtype == weight.dtype,
            || "the bias is not known to be a vector of the weight's rows and dtype".into(),
        )
}
