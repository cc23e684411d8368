//! Layers that read the same input → one layer and slices of its result.

use std::collections::BTreeMap;

use egg::{Id, Language};

use super::fuse::fusible;
use super::{Found, Rule, Site};
use crate::graph::language::{Arg, Fold, Num, Op, Recipe, Term};
use crate::graph::ops;

pub(super) const PARALLEL: Rule = Rule {
    name: "merge_parallel",
    sketch: "x [w₁; w₂]ᵀ holds x w₁ᵀ and x w₂ᵀ side by side; the results are views into one \
             tensor, so only where no reader minds strides and nothing outside holds them",
    guards: &["readers"],
    find: |site, found| {
        let op = match site.term.op {
            Op::Linear => Op::Linear,
            Op::Fused => Op::Fused,
            _ => return,
        };
        let graph = site.graph();
        let x = graph.find(site.arg(0));
        // As they came: layers that other rules made would combine endlessly.
        let mut group: BTreeMap<Id, Term> = BTreeMap::new();
        for parent in graph[x].parents() {
            let term = graph.id_to_node(parent).clone().map_children(|id| graph.find(id));
            let class = graph.find(parent);
            if term.op == op
                && term.args[0] == x
                && like(site, &term)
                && !graph[class].data.values.is_empty()
            {
                group.entry(class).or_insert(term);
            }
        }
        // Once a group: its first member speaks.
        let first = group.first_key_value();
        if group.len() < 2
            || first.is_none_or(|(class, term)| *class != site.class || term != site.term)
        {
            return;
        }
        group.retain(|class, _| {
            site.guard("readers", readers_take_slices(site, *class), || {
                "a reader of it may not take a slice, or something outside may hold it".into()
            })
        });
        if group.len() < 2 {
            return;
        }
        let mut recipe = Recipe::default();
        let column = |n: usize| -> Vec<Arg> { group.values().map(|t| t.args[n].into()).collect() };
        let w = recipe.fold(Fold::Cat0, column(1));
        let b = if site.data(site.arg(2)).is_none() {
            recipe.num(Num::None)
        } else {
            recipe.fold(Fold::Cat0, column(2))
        };
        let merged = recipe.add(op, [x.into(), w, b]);
        let last = recipe.num(Num::Int(-1));
        let one = recipe.num(Num::Int(1));
        let mut start = 0;
        let mut results = vec![];
        for (class, term) in &group {
            let Some((n, _)) = site.data(term.args[1]).matrix() else { return };
            let from = recipe.num(Num::Int(start));
            let to = recipe.num(Num::Int(start + n));
            let Arg::New(slice) = recipe.native("aten::slice", [merged, last, from, to, one])
            else {
                return;
            };
            results.push((*class, slice));
            start += n;
        }
        found.push(Found::Several(recipe, results));
    },
};

/// Same dtype, bias or none like the site's layer, constant weights.
fn like(site: &Site<'_>, term: &Term) -> bool {
    let &[_, w, b] = &term.args[..] else { return false };
    let bias = |id: Id| site.data(id).is_none();
    let constant = site.data(w).foldable() && (bias(b) || site.data(b).foldable());
    constant
        && site.data(w).dtype == site.data(site.arg(1)).dtype
        && bias(b) == bias(site.arg(2))
        && fusible(site, w, b)
}

fn readers_take_slices(site: &Site<'_>, class: Id) -> bool {
    let imported = site.context.imported;
    let values = &site.data(class).values;
    values.iter().all(|value| !imported.block.values[*value as usize].escapes)
        && imported.block.nodes.iter().all(|node| {
            ops::accepts_any_strides(&node.kind)
                || !node.inputs.iter().any(|input| values.contains(input))
        })
}
