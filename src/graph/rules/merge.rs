//! Layers that read the same input → one layer and slices of its result.

use std::collections::{BTreeMap, BTreeSet};

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
        for members in subsets(site, &group.into_iter().collect::<Vec<_>>()) {
            found.extend(merged(site, &op, x, &members));
        }
    },
};

/// Some members may not be needed once other rules have had their way. So: all
/// subsets of a small group; of a large one the whole and the part that no
/// other member was computed from.
fn subsets(site: &Site<'_>, group: &[(Id, Term)]) -> Vec<Vec<(Id, Term)>> {
    const SMALL: usize = 5;
    if group.len() <= SMALL {
        let masks = (0..1u32 << group.len()).rev().filter(|mask| mask.count_ones() > 1);
        let chosen = |mask: u32| {
            let members = group.iter().enumerate().filter(move |(n, _)| mask & 1 << n != 0);
            members.map(|(_, member)| member.clone()).collect()
        };
        return masks.map(chosen).collect();
    }
    let graph = site.graph();
    let members: BTreeSet<Id> = group.iter().map(|(class, _)| *class).collect();
    let read: BTreeSet<Id> = members
        .iter()
        .flat_map(|class| &graph[*class].nodes)
        .flat_map(|term| &term.args)
        .map(|id| graph.find(*id))
        .filter(|id| members.contains(id))
        .collect();
    let ends: Vec<_> = group.iter().filter(|(class, _)| !read.contains(class)).cloned().collect();
    let mut out = vec![group.to_vec()];
    if (2..group.len()).contains(&ends.len()) {
        out.push(ends);
    }
    out
}

/// The layer of all members, and each of them as a slice of it.
fn merged(site: &Site<'_>, op: &Op, x: Id, group: &[(Id, Term)]) -> Option<Found> {
    let mut recipe = Recipe::default();
    let column = |n: usize| -> Vec<Arg> { group.iter().map(|(_, t)| t.args[n].into()).collect() };
    let w = recipe.fold(Fold::Cat0, column(1));
    let b = if site.data(site.arg(2)).is_none() {
        recipe.num(Num::None)
    } else {
        recipe.fold(Fold::Cat0, column(2))
    };
    let merged = recipe.add(op.clone(), [x.into(), w, b]);
    let last = recipe.num(Num::Int(-1));
    let one = recipe.num(Num::Int(1));
    let mut start = 0;
    let mut results = vec![];
    for (class, term) in group {
        let (n, _) = site.data(term.args[1]).matrix()?;
        let from = recipe.num(Num::Int(start));
        let to = recipe.num(Num::Int(start + n));
        let Arg::New(slice) = recipe.native("aten::slice", [merged, last, from, to, one]) else {
            return None;
        };
        results.push((*class, slice));
        start += n;
    }
    Some(Found::Several(recipe, results))
}

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
