//! Which of all equal terms to keep: the cheapest graph, shared terms counted
//! once.

use std::collections::{BTreeSet, HashMap};

use egg::Id;

use super::cost::Costs;
use super::extract::{extract, Choice, Limits, Problem, RESOLUTION};
use super::import::Imported;
use super::language::{Op, Term};

/// One term for each class that is needed.
#[derive(Debug)]
pub struct Selected {
    /// The choice.
    pub chosen: HashMap<Id, Term>,
    /// The choice is the cheapest there is.
    pub exact: bool,
}

/// Values that the new block must have: inputs of nodes that stay, results, and
/// draws that nobody reads, because they move the generator on. `live` of its
/// nodes are of use ([`Imported::live`]).
pub fn roots(imported: &Imported, live: &[bool]) -> BTreeSet<u32> {
    let block = &imported.block;
    let dead_draw = |n: usize| {
        let draws =
            matches!(imported.terms[n], Some(Term { op: Op::Native { draw: Some(_), .. }, .. }));
        draws && !live[n]
    };
    let nodes = || block.nodes.iter().enumerate();
    let read = nodes().filter(|(n, _)| imported.is_wall(*n)).flat_map(|(_, node)| &node.inputs);
    let drawn = nodes().filter(|(n, _)| dead_draw(*n)).flat_map(|(_, node)| &node.outputs);
    read.chain(drawn)
        .chain(&block.outputs)
        .copied()
        .filter(|value| imported.class_of[*value as usize].is_some())
        .collect()
}

/// Chooses.
///
/// # Errors
/// If no choice is legal: the block stays as it is.
pub fn select(imported: &Imported, live: &[bool], costs: &Costs<'_>) -> Result<Selected, String> {
    let graph = &imported.graph;
    let original: HashMap<Term, usize> = originals(imported);
    let mut classes: Vec<Id> = graph.classes().map(|class| class.id).collect();
    classes.sort_unstable();
    let number: HashMap<Id, usize> = classes.iter().enumerate().map(|(n, id)| (*id, n)).collect();
    let index = |id: Id| number.get(&graph.find(id)).copied().ok_or("a class without a number");

    let mut terms: Vec<Vec<Term>> = Vec::with_capacity(classes.len());
    let mut problem = Problem { classes: Vec::with_capacity(classes.len()), roots: vec![] };
    for &class in &classes {
        let mut options: Vec<Term> =
            graph[class].nodes.iter().map(|term| imported.canonical(term)).collect();
        // What was there comes first, so that ties leave it alone.
        options
            .sort_by_key(|term| (original.get(term).copied().unwrap_or(usize::MAX), term.clone()));
        options.dedup();
        let leafless = must_be_fresh(imported, class);
        options.retain(|term| !leafless || !matches!(term.op, Op::Leaf(_)));
        let mut choices = Vec::with_capacity(options.len());
        for term in &options {
            let mut children = Vec::with_capacity(term.args.len());
            for &arg in &term.args {
                children.push(index(arg)?);
            }
            // As exact as the extractor is, so that both sums agree.
            let cost = (costs.of(class, term) / RESOLUTION).round() * RESOLUTION;
            choices.push(Choice { cost, children });
        }
        terms.push(options);
        problem.classes.push(choices);
    }
    let roots = roots(imported, live);
    let mut needed = BTreeSet::new();
    for value in &roots {
        if let Some(class) = imported.class_of[*value as usize] {
            needed.insert(index(class)?);
        }
    }
    problem.roots = needed.into_iter().collect();

    // The block as it came: what is given, else the first node of each class.
    let start: Vec<Option<usize>> = terms
        .iter()
        .map(|options| {
            let given = |term: &Term| matches!(term.op, Op::Leaf(_) | Op::Num(_));
            let first = options.iter().position(given);
            first.or_else(|| options.iter().position(|term| original.contains_key(term)))
        })
        .collect();
    let extraction = extract(&problem, &Limits { start: Some(start), ..Limits::default() })
        .map_err(|error| error.to_string())?;
    let chosen = extraction
        .chosen
        .iter()
        .enumerate()
        .filter_map(|(n, choice)| Some((classes[n], terms[n].get((*choice)?)?.clone())))
        .collect();
    Ok(Selected { chosen, exact: extraction.exact })
}

/// The nodes that each term came from.
pub fn originals(imported: &Imported) -> HashMap<Term, usize> {
    let mut originals = HashMap::new();
    for (node, term) in imported.terms.iter().enumerate() {
        if let Some(term) = term {
            originals.entry(imported.canonical(term)).or_insert(node);
        }
    }
    originals
}

/// Whether something outside holds a value of this class that was not, before,
/// some given value or a view of it: handing out the given one would let the
/// holder write into it. The search does not join such classes (`keeps_apart`);
/// this is for those that came equal.
fn must_be_fresh(imported: &Imported, class: Id) -> bool {
    let data = &imported.graph[class].data;
    !data.given.is_empty() && imported.hands_out(&data.values, &data.given)
}
