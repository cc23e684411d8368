//! Constant scales, shifts and whole layers → into the next layer's constants.

use egg::Id;

use super::{Found, Rule, Site};
use crate::graph::facts::{dtypes, list};
use crate::graph::language::{Arg, Fold, Num, Op, Recipe};

/// A layer whose weight and bias are foldable constants, and its sizes.
struct Layer {
    x: Id,
    w: Id,
    /// `None` for no bias.
    b: Option<Id>,
    n: i64,
    k: i64,
}

fn layers<'a>(site: &'a Site<'a>, class: Id) -> impl Iterator<Item = Layer> + 'a {
    site.with(class, &Op::Linear).filter_map(|term| layer(site, &term.args))
}

fn layer(site: &Site<'_>, args: &[Id]) -> Option<Layer> {
    let &[x, w, b] = args else { return None };
    let (n, k) = site.data(w).matrix()?;
    let bias = site.data(b);
    let good = bias.is_none() || bias.foldable() && bias.is_vector(n);
    let b = (!bias.is_none()).then_some(b);
    (site.data(w).foldable() && good).then_some(Layer { x, w, b, n, k })
}

/// A constant that is one value for each of `n` columns.
enum Columns {
    Number(f64),
    Vector(Id),
    One(Id),
}

/// `None` if the constant is not, or not surely, one value a column.
fn columns(site: &Site<'_>, c: Id, n: i64, dtype: Option<i32>) -> Option<Columns> {
    let data = site.data(c);
    if let Some(number) = data.number() {
        return number.is_finite().then_some(Columns::Number(number));
    }
    if !data.foldable() || data.dtype != dtype {
        return None;
    }
    match data.shape.as_deref()? {
        [] | [1] => Some(Columns::One(c)),
        &[size] if size == n => Some(Columns::Vector(c)),
        _ => None,
    }
}

impl Columns {
    /// As a vector of `n`; numbers take the dtype of `like`.
    fn vector(&self, recipe: &mut Recipe, n: i64, like: Id) -> Arg {
        match *self {
            Self::Number(number) => recipe.fold(Fold::Fill(n, number.into()), [like.into()]),
            Self::One(c) => recipe.fold(Fold::Broadcast(n), [c.into()]),
            Self::Vector(c) => c.into(),
        }
    }
}

/// Both orders of a commutative operator's operands; one of any other's.
fn operands(site: &Site<'_>, commutes: bool) -> Vec<(Id, Id)> {
    let (a, b) = (site.arg(0), site.arg(1));
    if commutes {
        vec![(a, b), (b, a)]
    } else {
        vec![(a, b)]
    }
}

fn is_constant(site: &Site<'_>, id: Id) -> bool {
    site.data(id).number().is_some() || site.data(id).bakeable
}

pub(super) const SCALE: Rule = Rule {
    name: "fold_scale",
    sketch: "c·(x wᵀ + b) = x (c·w)ᵀ + c·b for finite constants, one a column",
    guards: &["columns"],
    find: |site, found| {
        let inverse = match site.term.native() {
            Some("aten::mul") => false,
            Some("aten::div") => true,
            _ => return,
        };
        for (y, c) in operands(site, !inverse) {
            for layer in layers(site, y) {
                if !is_constant(site, c)
                    || inverse && site.data(c).number().is_none_or(|c| c == 0.0)
                {
                    continue;
                }
                let scale = columns(site, c, layer.n, site.data(layer.w).dtype);
                if !site.guard("columns", scale.is_some(), || not_columns("factor")) {
                    continue;
                }
                let scale = match scale.unwrap_or(Columns::Vector(c)) {
                    Columns::Number(number) if inverse => Columns::Number(1.0 / number),
                    scale => scale,
                };
                let mut recipe = Recipe::default();
                let scale = scale.vector(&mut recipe, layer.n, layer.w);
                let w = recipe.fold(Fold::ScaleRows, [layer.w.into(), scale]);
                let b = match layer.b {
                    Some(b) => recipe.fold(Fold::Mul, [b.into(), scale]),
                    None => recipe.num(Num::None),
                };
                recipe.add(Op::Linear, [layer.x.into(), w, b]);
                found.push(Found::Terms(recipe));
            }
        }
    },
};

pub(super) const SHIFT: Rule = Rule {
    name: "fold_shift",
    sketch: "(x wᵀ + b) + c = x wᵀ + (b + c) for a constant c, one value a column",
    guards: &["columns", "alpha"],
    find: |site, found| {
        let minus = match site.term.native() {
            Some("aten::add") => false,
            Some("aten::sub") => true,
            _ => return,
        };
        let one = site.data(site.arg(2)).number() == Some(1.0);
        for (y, c) in operands(site, !minus) {
            for layer in layers(site, y) {
                if !is_constant(site, c) {
                    continue;
                }
                let shift = columns(site, c, layer.n, site.data(layer.w).dtype);
                if !site.guard("columns", shift.is_some(), || not_columns("summand"))
                    || !site.guard("alpha", one, || "alpha is not 1".into())
                {
                    continue;
                }
                let mut recipe = Recipe::default();
                let shift = shift.unwrap_or(Columns::Vector(c));
                let mut shift = shift.vector(&mut recipe, layer.n, layer.w);
                let b = match (layer.b, minus) {
                    (Some(b), false) => recipe.fold(Fold::Add, [b.into(), shift]),
                    (Some(b), true) => recipe.fold(Fold::Sub, [b.into(), shift]),
                    (None, false) => shift,
                    (None, true) => {
                        shift = recipe.fold(Fold::Times((-1.0).into()), [shift]);
                        shift
                    }
                };
                recipe.add(Op::Linear, [layer.x.into(), layer.w.into(), b]);
                found.push(Found::Terms(recipe));
            }
        }
    },
};

fn not_columns(what: &str) -> String {
    format!("the constant {what} is not known to be finite, of the layer's dtype and one value a column")
}

/// The input of a layer without a constant operation `kind` on its columns.
fn input_constant(site: &Site<'_>, kind: &'static str) -> Option<(Layer, Id, Columns)> {
    if site.term.op != Op::Linear {
        return None;
    }
    let layer = layer(site, &site.term.args)?;
    for term in site.native(layer.x, kind) {
        let (a, b) = (term.args[0], term.args[1]);
        for (x, c) in [(a, b), (b, a)] {
            if !is_constant(site, c) || is_constant(site, x) {
                continue;
            }
            if kind == "aten::add" && site.data(term.args[2]).number() != Some(1.0) {
                continue;
            }
            let Some(columns) = columns(site, c, layer.k, site.data(layer.w).dtype) else {
                continue;
            };
            // A column of one would be spread over all of c's.
            let wide = matches!(columns, Columns::Number(_) | Columns::One(_))
                || site.data(x).last == Some(layer.k);
            let same = site.data(x).dtype == site.data(layer.w).dtype;
            if site.guard("columns", wide && same, || {
                "the input is not known to have the weight's dtype and as many columns".into()
            }) {
                return Some((layer, x, columns));
            }
        }
    }
    None
}

pub(super) const INPUT_SCALE: Rule = Rule {
    name: "fold_input_scale",
    sketch: "(c·x) wᵀ = x (w·c)ᵀ with c on w's columns",
    guards: &["columns"],
    find: |site, found| {
        let Some((layer, x, scale)) = input_constant(site, "aten::mul") else { return };
        let mut recipe = Recipe::default();
        let scale = scale.vector(&mut recipe, layer.k, layer.w);
        let w = recipe.fold(Fold::ScaleColumns, [layer.w.into(), scale]);
        recipe.add(Op::Linear, [x.into(), w, site.arg(2).into()]);
        found.push(Found::Terms(recipe));
    },
};

pub(super) const INPUT_SHIFT: Rule = Rule {
    name: "fold_input_shift",
    sketch: "(x + c) wᵀ + b = x wᵀ + (b + w c)",
    guards: &["columns"],
    find: |site, found| {
        let Some((layer, x, shift)) = input_constant(site, "aten::add") else { return };
        let mut recipe = Recipe::default();
        let shift = shift.vector(&mut recipe, layer.k, layer.w);
        let mut b = recipe.fold(Fold::Mv, [layer.w.into(), shift]);
        if let Some(bias) = layer.b {
            b = recipe.fold(Fold::Add, [bias.into(), b]);
        }
        recipe.add(Op::Linear, [x.into(), layer.w.into(), b]);
        found.push(Found::Terms(recipe));
    },
};

pub(super) const LINEARS: Rule = Rule {
    name: "fold_linears",
    sketch: "(x w₁ᵀ + b₁) w₂ᵀ + b₂ = x (w₂w₁)ᵀ + (w₂b₁ + b₂), where that takes fewer operations",
    guards: &["operations"],
    find: |site, found| {
        if site.term.op != Op::Linear {
            return;
        }
        let Some(outer) = layer(site, &site.term.args) else { return };
        for (variant, inner) in layers(site, outer.x).enumerate() {
            // Long chains are folded from their start, which finds every fold
            // in linear time; inside a chain only so many are tried.
            let few = variant < VARIANTS || layers(site, inner.x).next().is_none();
            if !same_dtype(site, inner.w, outer.w) || !few {
                continue;
            }
            let (before, after) = (inner.n * inner.k + outer.n * outer.k, outer.n * inner.k);
            if !site.guard("operations", after < before, || {
                format!("one layer would take {after} products a row instead of {before}")
            }) {
                continue;
            }
            let mut recipe = Recipe::default();
            let w = recipe.fold(Fold::Matmul, [outer.w.into(), inner.w.into()]);
            let b = through(&mut recipe, outer.w.into(), inner.b, outer.b);
            recipe.add(Op::Linear, [inner.x.into(), w, b]);
            found.push(Found::Terms(recipe));
        }
    },
};

/// Forms of one layer that the next is folded into.
const VARIANTS: usize = 4;

fn same_dtype(site: &Site<'_>, a: Id, b: Id) -> bool {
    site.data(a).dtype == site.data(b).dtype && site.data(a).dtype.is_some_and(dtypes::fused)
}

/// `w·b₁ + b₂` where either may be missing.
fn through(recipe: &mut Recipe, w: Arg, inner: Option<Id>, outer: Option<Id>) -> Arg {
    let Some(inner) = inner else {
        return outer.map_or_else(|| recipe.num(Num::None), Arg::Class);
    };
    let b = recipe.fold(Fold::Mv, [w, inner.into()]);
    match outer {
        Some(outer) => recipe.fold(Fold::Add, [b, outer.into()]),
        None => b,
    }
}

pub(super) const THROUGH_CAT: Rule = Rule {
    name: "fold_through_cat",
    sketch: "cat(x w₁ᵀ + b₁, v) [u₁ u₂]ᵀ = cat(x, v) [u₁w₁ u₂]ᵀ + u₁b₁, where that takes fewer \
             operations",
    guards: &["last dimension", "operations"],
    find: |site, found| {
        if site.term.op != Op::Linear {
            return;
        }
        let Some(outer) = layer(site, &site.term.args) else { return };
        for cat in site.native(outer.x, "aten::cat") {
            let Some(parts) = list(site.graph(), cat.args[0]) else { continue };
            for (place, part) in parts.iter().enumerate() {
                for inner in layers(site, *part) {
                    if same_dtype(site, inner.w, outer.w) {
                        through_cat(site, found, &outer, &inner, &parts, place, cat.args[1]);
                    }
                }
            }
        }
    },
};

fn through_cat(
    site: &Site<'_>,
    found: &mut Vec<Found>,
    outer: &Layer,
    inner: &Layer,
    parts: &[Id],
    place: usize,
    dim: Id,
) {
    let axis = site.data(dim).int();
    let rank = site.data(outer.x).rank;
    let last = axis == Some(-1) || rank.is_some_and(|rank| axis == Some(rank as i64 - 1));
    if !site.guard("last dimension", last, || {
        "the parts are not known to be joined along the last dimension".into()
    }) {
        return;
    }
    let width = |parts: &[Id]| parts.iter().map(|part| site.data(*part).last).sum::<Option<i64>>();
    let Some(start) =
        width(&parts[..place]).or_else(|| Some(outer.k - inner.n - width(&parts[place + 1..])?))
    else {
        return;
    };
    let rest = outer.k - start - inner.n;
    if start < 0 || rest < 0 {
        return;
    }
    let before = inner.n * inner.k + outer.n * outer.k;
    let after = outer.n * (outer.k - inner.n + inner.k);
    if !site.guard("operations", after < before, || {
        format!("it would take {after} products a row instead of {before}")
    }) {
        return;
    }
    let mut recipe = Recipe::default();
    let own = recipe.fold(Fold::Columns(start, inner.n), [outer.w.into()]);
    let mut columns = vec![];
    if start > 0 {
        columns.push(recipe.fold(Fold::Columns(0, start), [outer.w.into()]));
    }
    columns.push(recipe.fold(Fold::Matmul, [own, inner.w.into()]));
    if rest > 0 {
        columns.push(recipe.fold(Fold::Columns(start + inner.n, rest), [outer.w.into()]));
    }
    let w = recipe.fold(Fold::Cat1, columns);
    let b = through(&mut recipe, own, inner.b, outer.b);
    let inputs: Vec<Arg> = parts
        .iter()
        .enumerate()
        .map(|(n, part)| if n == place { inner.x.into() } else { (*part).into() })
        .collect();
    let inputs = recipe.add(Op::List, inputs);
    let joined = recipe.native("aten::cat", [inputs, dim.into()]);
    recipe.add(Op::Linear, [joined, w, b]);
    found.push(Found::Terms(recipe));
}
