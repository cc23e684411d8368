//! Batch normalisation in evaluation → into the layer before it.

use super::{Found, Rule};
use crate::graph::language::{Fold, Op, Recipe};

pub(super) const FOLD: Rule = Rule {
    name: "fold_batch_norm",
    sketch: "on [M, N] evaluation-mode batch norm is y·s + t with s = γ/√(var + ε) and \
             t = β − mean·s a column, so linear(x, s·w, s·b + t); of more dimensions it \
             normalises the second one, which is not the columns",
    guards: &["constant", "rank"],
    find: |site, found| {
        if site.term.native() != Some("aten::batch_norm") {
            return;
        }
        // On duty it never becomes a term (`import`).
        let [y, gamma, beta, mean, var, _, _, eps, _] = site.term.args[..] else { return };
        for linear in site.with(y, &Op::Linear) {
            let [x, w, b] = linear.args[..] else { continue };
            let Some((n, _)) = site.data(w).matrix() else { continue };
            let vector = |id| site.data(id).foldable() && site.data(id).is_vector(n);
            let optional = |id| site.data(id).is_none() || vector(id);
            let Some(eps) = site.data(eps).number() else { continue };
            let constant = site.data(w).foldable()
                && optional(b)
                && optional(gamma)
                && optional(beta)
                && vector(mean)
                && vector(var);
            if !site.guard("constant", constant, || {
                "a weight or a statistic is not a finite constant (freeze the module)".into()
            }) || !site.guard("rank", site.data(y).rank == Some(2), || {
                "the layer's output is not known to be [M, N]".into()
            }) {
                continue;
            }
            let mut recipe = Recipe::default();
            let mut scale = recipe.fold(Fold::Rsqrt(eps.into()), [var.into()]);
            if !site.data(gamma).is_none() {
                scale = recipe.fold(Fold::Mul, [gamma.into(), scale]);
            }
            let centred = if site.data(b).is_none() {
                recipe.fold(Fold::Times((-1.0).into()), [mean.into()])
            } else {
                recipe.fold(Fold::Sub, [b.into(), mean.into()])
            };
            let mut bias = recipe.fold(Fold::Mul, [centred, scale]);
            if !site.data(beta).is_none() {
                bias = recipe.fold(Fold::Add, [bias, beta.into()]);
            }
            let weight = recipe.fold(Fold::ScaleRows, [w.into(), scale]);
            recipe.add(Op::Linear, [x.into(), weight, bias]);
            found.push(Found::Terms(recipe));
        }
    },
};
