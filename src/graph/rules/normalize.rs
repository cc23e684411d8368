//! Every spelling of a linear layer → `linear`.

use super::{Found, Rule};
use crate::graph::facts::dtypes;
use crate::graph::language::{Fold, Op, Recipe};

pub(super) const ADDMM: Rule = Rule {
    name: "linear_from_addmm",
    sketch: "addmm(b, x, a) = x a + b = linear(x, aᵀ, b) for alpha = beta = 1 and a bias that is \
             one value a column",
    guards: &["factors", "bias"],
    find: |site, found| {
        if site.term.native() != Some("aten::addmm") {
            return;
        }
        let [b, x, a, beta, alpha] = site.term.args[..] else { return };
        let one = |id| site.data(id).number() == Some(1.0);
        let Some((_, n)) = site.data(a).matrix() else { return };
        if !site.guard("factors", one(beta) && one(alpha), || "alpha or beta is not 1".into())
            || !site.guard("bias", site.data(b).is_vector(n), || {
                "the bias is not known to be one value a column".into()
            })
        {
            return;
        }
        let mut recipe = Recipe::default();
        let w = recipe.native("aten::t", [a.into()]);
        recipe.add(Op::Linear, [x.into(), w, b.into()]);
        found.push(Found::Terms(recipe));
    },
};

pub(super) const MATMUL: Rule = Rule {
    name: "linear_from_matmul",
    sketch: "matmul(x, a) = linear(x, aᵀ) for a matrix a: both contract x's last dimension and \
             treat the others as rows",
    guards: &["matrix"],
    find: |site, found| {
        if !matches!(site.term.native(), Some("aten::matmul" | "aten::mm")) {
            return;
        }
        let (x, a) = (site.arg(0), site.arg(1));
        // Neither a product of two activations nor one whose left side is the
        // weight is a layer: no word about those.
        if site.data(a).shape.is_none() {
            return;
        }
        if !site.guard("matrix", site.data(a).matrix().is_some(), || {
            "the right factor is not a matrix".into()
        }) {
            return;
        }
        let mut recipe = Recipe::default();
        let w = recipe.native("aten::t", [a.into()]);
        let none = recipe.num(crate::graph::language::Num::None);
        recipe.add(Op::Linear, [x.into(), w, none]);
        found.push(Found::Terms(recipe));
    },
};

pub(super) const BIAS: Rule = Rule {
    name: "linear_bias",
    sketch: "linear(x, w) + b = linear(x, w, b) if b is a vector of w's rows and dtype; the sum \
             is rounded once instead of twice",
    guards: &["vector", "alpha"],
    find: |site, found| {
        if site.term.native() != Some("aten::add") {
            return;
        }
        let [left, right, alpha] = site.term.args[..] else { return };
        for (product, b, swapped) in [(left, right, false), (right, left, true)] {
            for linear in site.with(product, &Op::Linear) {
                let [x, w, none] = linear.args[..] else { continue };
                if !site.data(none).is_none() || site.data(b).num.is_some() {
                    continue;
                }
                let (Some((n, _)), bias) = (site.data(w).matrix(), site.data(b)) else { continue };
                let vector = bias.is_vector(n) && bias.dtype == site.data(w).dtype;
                if !site.guard("vector", vector, || {
                    "what is added is not known to be one value a column".into()
                }) || !site.guard("alpha", site.data(alpha).number() == Some(1.0), || {
                    let side = if swapped { "product" } else { "bias" };
                    format!("the {side} is scaled by alpha")
                }) {
                    continue;
                }
                let mut recipe = Recipe::default();
                recipe.add(Op::Linear, [x.into(), w.into(), b.into()]);
                found.push(Found::Terms(recipe));
            }
        }
    },
};

pub(super) const TRANSPOSED_CONSTANT: Rule = Rule {
    name: "transposed",
    sketch: "(aᵀ)ᵀ = a, for every way to swap a matrix's two dimensions; of a constant it can be \
             computed now",
    guards: &["matrix"],
    find: |site, found| {
        let Some(a) = transposed(site, site.term) else { return };
        if site.data(a).foldable() && site.data(a).dtype.is_some_and(dtypes::fused) {
            let mut recipe = Recipe::default();
            recipe.fold(Fold::Transpose, [a.into()]);
            found.push(Found::Terms(recipe));
        }
        for inner in &site.graph()[a].nodes {
            if let Some(original) = transposed(site, inner) {
                found.push(Found::Same(original));
            }
        }
    },
};

/// What a term swaps the dimensions of, if it is a matrix.
fn transposed(site: &super::Site<'_>, term: &crate::graph::language::Term) -> Option<egg::Id> {
    let a = *term.args.first()?;
    let rank = site.data(a).rank;
    let int = |n: usize| term.args.get(n).and_then(|id| site.data(*id).int());
    let swaps = match term.native()? {
        "aten::t" => true,
        "aten::numpy_T" => true,
        "aten::transpose" => (int(1)? - int(2)?).rem_euclid(2) == 1,
        "aten::permute" => {
            let dims = &site.data(*term.args.get(1)?).num;
            matches!(dims, Some(crate::graph::language::Num::Ints(d)) if matches!(d[..], [1 | -1, 0 | -2]))
        }
        _ => return None,
    };
    (swaps && site.guard("matrix", rank == Some(2), || "not known to be a matrix".into()))
        .then_some(a)
}
