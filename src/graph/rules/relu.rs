//! Other spellings of ReLU, and moving it to where it can fuse.

use super::{Found, Rule, Site};
use crate::graph::facts::{dtypes, list};
use crate::graph::language::{Op, Recipe};

pub(super) const FROM_CLAMP: Rule = Rule {
    name: "relu_from_clamp",
    sketch: "clamp_min(x, 0) = relu(x), NaN included; where x is exactly 0 clamp passes a \
             gradient on and relu does not, so only where no weight trains",
    guards: &["zero", "training"],
    find: |site, found| {
        let limits = match site.term.native() {
            Some("aten::clamp_min") => site.data(site.arg(1)).number() == Some(0.0),
            Some("aten::clamp") => {
                site.data(site.arg(1)).number() == Some(0.0) && site.data(site.arg(2)).is_none()
            }
            _ => return,
        };
        let x = site.data(site.arg(0));
        if !x.absorbs_relu || !x.dtype.is_some_and(dtypes::fused) {
            return;
        }
        if site.guard("zero", limits, || "the limits are not 0 and none".into())
            && site.guard("training", !trains(site), || {
                "its gradient at exactly 0 is not relu's, and a weight trains".into()
            })
        {
            let mut recipe = Recipe::default();
            recipe.add(Op::Relu, [site.arg(0).into()]);
            found.push(Found::Terms(recipe));
        }
    },
};

/// Whether a layer right before this term has parameters that want gradients.
fn trains(site: &Site<'_>) -> bool {
    let wants = |id: &egg::Id| site.data(*id).needs_grad;
    let class = &site.graph()[site.arg(0)];
    let mut linears = class.nodes.iter().filter(|term| term.op == Op::Linear).peekable();
    linears.peek().is_none() || linears.any(|term| term.args[1..].iter().any(wants))
}

pub(super) const FROM_THRESHOLD: Rule = Rule {
    name: "relu_from_threshold",
    sketch: "threshold(x, 0, 0) is relu(x), with the same gradient: zero where x <= 0",
    guards: &["zero"],
    find: |site, found| {
        if site.term.native() != Some("aten::threshold") || !site.data(site.arg(0)).absorbs_relu {
            return;
        }
        let zero = |n| site.data(site.arg(n)).number() == Some(0.0);
        if site.guard("zero", zero(1) && zero(2), || "threshold or value is not 0".into()) {
            let mut recipe = Recipe::default();
            recipe.add(Op::Relu, [site.arg(0).into()]);
            found.push(Found::Terms(recipe));
        }
    },
};

pub(super) const OF_NONNEG: Rule = Rule {
    name: "relu_of_nonnegative",
    sketch: "relu(x) = x where x is never negative; the gradient too, because what makes such an \
             x has zero gradient where x is 0",
    guards: &["nonnegative"],
    find: |site, found| {
        if site.term.op != Op::Relu {
            return;
        }
        let x = site.arg(0);
        let inner = &site.graph()[x];
        // Silent where a ReLU is simply an ordinary one.
        let nested = inner.data.nonneg || inner.nodes.iter().any(|term| term.native().is_some());
        if nested && site.guard("nonnegative", inner.data.nonneg, || "may be negative".into()) {
            found.push(Found::Same(x));
        }
    },
};

pub(super) const PAST_VIEW: Rule = Rule {
    name: "relu_past_view",
    sketch: "an element-wise function commutes with moving elements",
    guards: &[],
    find: |site, found| {
        if site.term.op != Op::Relu || !site.data(site.arg(0)).absorbs_relu {
            return;
        }
        for view in &site.graph()[site.arg(0)].nodes {
            let Some(
                kind @ ("aten::view" | "aten::reshape" | "aten::flatten" | "aten::unsqueeze"
                | "aten::squeeze" | "aten::transpose" | "aten::permute"
                | "aten::contiguous"),
            ) = view.native()
            else {
                continue;
            };
            let mut recipe = Recipe::default();
            let inner = recipe.add(Op::Relu, [view.args[0].into()]);
            let rest = view.args[1..].iter().map(|id| (*id).into());
            recipe.native(kind, std::iter::once(inner).chain(rest));
            found.push(Found::Terms(recipe));
        }
    },
};

pub(super) const PAST_CAT: Rule = Rule {
    name: "relu_past_cat",
    sketch: "an element-wise function commutes with concatenation",
    guards: &[],
    find: |site, found| {
        if site.term.op != Op::Relu || !site.data(site.arg(0)).absorbs_relu {
            return;
        }
        for cat in site.native(site.arg(0), "aten::cat") {
            let Some(parts) = list(site.graph(), cat.args[0]) else { continue };
            let mut recipe = Recipe::default();
            let parts: Vec<_> =
                parts.iter().map(|part| recipe.add(Op::Relu, [(*part).into()])).collect();
            let parts = recipe.add(Op::List, parts);
            recipe.native("aten::cat", [parts, cat.args[1].into()]);
            found.push(Found::Terms(recipe));
        }
    },
};

pub(super) const PAST_MAX_POOL: Rule = Rule {
    name: "relu_past_max_pool",
    sketch: "relu is monotone, so it commutes with a maximum; where the maximum is not positive \
             both gradients are zero, elsewhere the place of the maximum is the same; padding never wins a window",
    guards: &[],
    find: |site, found| {
        if site.term.op != Op::Relu || !site.data(site.arg(0)).absorbs_relu {
            return;
        }
        for pool in &site.graph()[site.arg(0)].nodes {
            let kind = match pool.native() {
                Some(kind @ ("aten::max_pool1d" | "aten::max_pool2d" | "aten::amax")) => kind,
                _ => continue,
            };
            let mut recipe = Recipe::default();
            let inner = recipe.add(Op::Relu, [pool.args[0].into()]);
            let rest = pool.args[1..].iter().map(|id| (*id).into());
            recipe.native(kind, std::iter::once(inner).chain(rest));
            found.push(Found::Terms(recipe));
        }
    },
};
