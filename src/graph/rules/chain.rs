//! Fused layers in a row → `fused_mlp`. Runs after the other rules: only then
//! is it known which layers there are.

use std::collections::BTreeMap;

use egg::{Id, Language};

use super::fuse::fusible;
use super::{Context, Found, Site};
use crate::graph::language::{Op, Recipe, Term};

/// Name in reports.
pub const NAME: &str = "fused_mlp";
/// Why both sides are equal.
pub const SKETCH: &str = "fused_mlp is defined as these layers one after the other";
/// Ways through one chain that are tried (several where layers have variants).
const WAYS: usize = 16;

/// Layers behind one whose input is there already: further on, doing it twice
/// is not considered (else every such place would make all longer chains).
const REPEATED: usize = 8;

/// One layer of a chain: weight, bias.
type Layers = Vec<(Id, Id)>;

/// Longest chains that end in a class which is read otherwise than by the next
/// layer alone. Chains inside those are never cheaper.
pub fn find(context: &Context<'_>) -> Vec<(Id, Found)> {
    let graph = &context.imported.graph;
    let mut classes: Vec<Id> = graph.classes().map(|class| class.id).collect();
    classes.sort_unstable();
    // What only a fused ReLU reads is not needed itself; chains that end there
    // would be as many, and as long, as the chain has layers.
    let passes = |class: Id| {
        let mut parents = graph[class].parents().peekable();
        parents.peek().is_some()
            && context.imported.uses_of(class) <= 1
            && parents.all(|parent| {
                graph.id_to_node(parent).op == Op::Relu
                    && layers(context, graph.find(parent)).next().is_some()
            })
    };
    let mut next: BTreeMap<Id, Vec<Id>> = BTreeMap::new();
    for &class in classes.iter().filter(|class| !passes(**class)) {
        for term in layers(context, class) {
            next.entry(graph.find(term.args[0])).or_default().push(class);
        }
    }
    let continues = |class: Id| {
        // Its only reader is a layer, in whatever forms. A last layer without
        // ReLU cannot be followed by another.
        let readers = next.get(&class);
        let one_reader = if graph[class].data.values.is_empty() {
            readers.is_some_and(|readers| readers.iter().all(|r| *r == readers[0]))
        } else {
            readers.is_some() && context.imported.uses_of(class) <= 1
        };
        one_reader && layers(context, class).any(ends_in_relu)
    };
    // Its input is read otherwise too: a ReLU instead of the layer would do.
    let half_done = |class: Id| {
        let relus = graph[class].nodes.iter().filter(|term| term.op == Op::Relu);
        relus.map(|term| graph.find(term.args[0])).any(|input| !passes(input))
    };
    let mut found = vec![];
    for &class in &classes {
        if continues(class) || passes(class) {
            continue;
        }
        for last in layers(context, class) {
            let mut ways: Vec<(Id, Layers, bool)> =
                vec![(last.args[0], pairs(last), ends_in_relu(last))];
            // Ways that end before a ReLU whose input is read anyway.
            let mut ended: Vec<(Id, Layers, bool)> = vec![];
            // Grown backwards until no way grows.
            loop {
                let mut grown = vec![];
                let mut more = false;
                for (x, layers_after, relu) in std::mem::take(&mut ways) {
                    let x = graph.find(x);
                    let before: Vec<&Term> = if continues(x) {
                        layers(context, x).filter(|term| ends_in_relu(term)).collect()
                    } else {
                        vec![]
                    };
                    // The last comparison ends a chain that an e-graph's cycle
                    // would make endless.
                    if before.is_empty()
                        || grown.len() + before.len() > WAYS
                        || layers_after.len() > classes.len()
                    {
                        grown.push((x, layers_after, relu));
                        continue;
                    }
                    if half_done(x) {
                        ended.push((x, layers_after.clone(), relu));
                        if layers_after.len() >= REPEATED {
                            continue;
                        }
                    }
                    more = true;
                    if let [only] = before[..] {
                        // Lists are kept back to front: growing is cheap.
                        let mut all = layers_after;
                        all.extend(pairs(only));
                        grown.push((only.args[0], all, relu));
                        continue;
                    }
                    for term in before {
                        let mut all = layers_after.clone();
                        all.extend(pairs(term));
                        grown.push((term.args[0], all, relu));
                    }
                }
                ways = grown;
                if !more {
                    break;
                }
            }
            for (x, back_to_front, relu_last) in ways.into_iter().chain(ended) {
                if back_to_front.len() < 2 {
                    continue;
                }
                let mut recipe = Recipe::default();
                let layers = back_to_front.iter().rev().flat_map(|(w, b)| [*w, *b]);
                let args = std::iter::once(x).chain(layers).map(Into::into);
                recipe.add(Op::Mlp { relu_last }, args);
                found.push((class, Found::Terms(recipe)));
            }
        }
    }
    found
}

/// Weights and biases of a term, last layer first.
fn pairs(term: &Term) -> Layers {
    term.args[1..].chunks_exact(2).rev().map(|pair| (pair[0], pair[1])).collect()
}

fn ends_in_relu(term: &Term) -> bool {
    matches!(term.op, Op::Fused | Op::Mlp { relu_last: true })
}

/// Terms of a class that `fused_mlp` can hold.
fn layers<'a>(context: &'a Context<'a>, class: Id) -> impl Iterator<Item = &'a Term> {
    let graph = &context.imported.graph;
    graph[class].nodes.iter().filter(move |term| {
        matches!(term.op, Op::Linear | Op::Fused | Op::Mlp { .. }) && {
            let site = Site { context, rule: NAME, class, term };
            term.children()[1..].chunks_exact(2).all(|pair| fusible(&site, pair[0], pair[1]))
        }
    })
}
