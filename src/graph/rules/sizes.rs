//! Reading sizes must not keep a value alive that nobody else needs.

use super::{Found, Rule};
use crate::graph::language::{Op, Recipe, Term};
use egg::{Id, Language};

pub(super) const OF_LIKE: Rule = Rule {
    name: "sizes",
    sketch: "relu, dropout and batch norm keep every size, a layer keeps the number of \
             dimensions: ask whichever value exists",
    guards: &[],
    find: |site, found| {
        // Found at the value, stated for the question: `size(x)` of every
        // question about this term's input equals the one about the term.
        let keeps = match (&site.term.op, site.term.native()) {
            (Op::Relu, _) | (_, Some("aten::dropout" | "aten::batch_norm")) => Keeps::Sizes,
            (Op::Linear | Op::Fused, _) => Keeps::Rank,
            _ => return,
        };
        let x = site.arg(0);
        let graph = site.graph();
        let asked = |about: Id| -> Vec<(Id, Term)> {
            graph[about]
                .parents()
                .map(|id| (id, graph.id_to_node(id).clone().map_children(|id| graph.find(id))))
                .filter(|(_, term)| match term.native() {
                    Some("aten::dim") => true,
                    Some("aten::size") => keeps == Keeps::Sizes,
                    _ => false,
                })
                .filter(|(_, term)| graph.find(term.args[0]) == graph.find(about))
                .collect()
        };
        // Asking a random draw would make it earlier than it was made.
        let draws = |id: Id| {
            let mut terms = graph[id].nodes.iter();
            terms.any(|term| matches!(term.op, Op::Native { draw: Some(_), .. }))
        };
        let forward = !draws(x) && !draws(site.class);
        let pairs = [(site.class, x), (x, site.class)];
        for (about, other) in pairs.into_iter().take(if forward { 2 } else { 1 }) {
            for (question, term) in asked(about) {
                let mut recipe = Recipe::default();
                let rest = term.args[1..].iter().map(|id| (*id).into());
                recipe.add(term.op.clone(), std::iter::once(other.into()).chain(rest));
                found.push(Found::Several(recipe, vec![(question, 0)]));
            }
        }
    },
};

#[derive(PartialEq)]
enum Keeps {
    Sizes,
    Rank,
}
