//! A rewriter without an e-graph: one plain graph at a time, the same rules.
//! What it reaches is what the optimizer is measured against.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use egg::{EGraph, Id};

use crate::graph::cost::Costs;
use crate::graph::facts::Facts;
use crate::graph::import::{import, Imported};
use crate::graph::language::{Arg, Op, Term};
use crate::graph::memory::Memory;
use crate::graph::profile::Profile;
use crate::graph::records::{Block, Options};
use crate::graph::rules::{chain, Context, Found, Rule, Site, RULES};
use crate::graph::select::roots;

/// Terms in topological order, equal ones once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dag {
    terms: Vec<(Op, Vec<usize>)>,
    /// Values of the block that each term stands for.
    values: Vec<Vec<u32>>,
    roots: Vec<usize>,
}

/// Names of everything that can be applied, chains last.
pub fn names() -> Vec<&'static str> {
    RULES.iter().map(|rule| rule.name).chain([chain::NAME]).collect()
}

pub struct Rewriter {
    block: Arc<Block>,
    uses: Vec<u32>,
    profile: Profile,
}

impl Rewriter {
    /// With the block as it came.
    pub fn new(block: &Block) -> (Self, Dag) {
        let imported =
            import(Arc::new(block.clone()), &Default::default()).expect("a well-formed block");
        let mut dag = Dag { terms: vec![], values: vec![], roots: vec![] };
        let mut place: HashMap<Id, usize> = HashMap::new();
        // Classes are made children first.
        let mut classes: Vec<Id> = imported.graph.classes().map(|class| class.id).collect();
        classes.sort_unstable();
        for class in classes {
            let term = &imported.graph[class].nodes[0];
            let args = term.args.iter().map(|id| place[&imported.graph.find(*id)]).collect();
            place.insert(class, dag.terms.len());
            dag.terms.push((term.op.clone(), args));
            dag.values.push(imported.graph[class].data.values.clone());
        }
        for value in roots(&imported, &imported.live()) {
            let class = imported.class_of[value as usize].expect("a root has a class");
            let root = place[&imported.graph.find(class)];
            if !dag.roots.contains(&root) {
                dag.roots.push(root);
            }
        }
        let profile = Profile::new(&Options { device: "cpu".into(), ..Options::default() });
        let this = Self { block: Arc::new(block.clone()), uses: imported.uses, profile };
        let dag = normal(&dag.terms, &dag.values, &dag.roots);
        (this, dag)
    }

    /// Predicted µs.
    pub fn cost(&self, dag: &Dag) -> f64 {
        let (imported, ids) = self.graph(dag);
        let costs = Costs { graph: &imported.graph, profile: &self.profile, rows: 0 };
        let terms = ids.iter().map(|id| costs.of(*id, &imported.graph[*id].nodes[0]));
        terms.sum()
    }

    /// The graph as classes of one term each.
    fn graph(&self, dag: &Dag) -> (Imported, Vec<Id>) {
        let facts = Facts { block: Arc::clone(&self.block), conflict: None };
        let mut graph = EGraph::new(facts);
        let mut class_of = vec![None; self.block.values.len()];
        let mut ids = vec![];
        for (n, (op, args)) in dag.terms.iter().enumerate() {
            let args = args.iter().map(|n| ids[*n]).collect();
            let id = graph.add(Term::new(op.clone(), args));
            let mut data = graph[id].data.clone();
            data.values.clone_from(&dag.values[n]);
            let seen =
                dag.values[n].iter().find_map(|v| self.block.values[*v as usize].hint.clone());
            data.hint = data.hint.or(seen);
            graph.set_analysis_data(id, data);
            for value in &dag.values[n] {
                class_of[*value as usize] = Some(id);
            }
            ids.push(id);
        }
        graph.rebuild();
        let imported = Imported {
            graph,
            block: Arc::clone(&self.block),
            class_of,
            terms: vec![None; self.block.nodes.len()],
            identities: Default::default(),
            dead: Default::default(),
            skipped: vec![],
            uses: self.uses.clone(),
            producer: vec![None; self.block.values.len()],
            memory: (0..self.block.values.len() as u32).map(Memory::own).collect(),
        };
        (imported, ids)
    }

    /// Every graph one application of rule `n` away.
    pub fn steps(&self, dag: &Dag, rule: usize) -> Vec<Dag> {
        let (imported, ids) = self.graph(dag);
        let skipped = RefCell::new(BTreeMap::new());
        let context = Context { imported: &imported, disabled: None, skipped: &skipped };
        let place: HashMap<Id, usize> = ids.iter().enumerate().map(|(n, id)| (*id, n)).collect();
        let found: Vec<(Id, Found)> = match RULES.get(rule) {
            None => chain::find(&context),
            Some(rule) => ids.iter().flat_map(|id| Self::look(&context, rule, *id)).collect(),
        };
        let mut out = vec![];
        for (class, found) in found {
            match found {
                Found::Same(other) => {
                    out.push(replaced(dag, &[(place[&class], place[&other])], &[], &place))
                }
                Found::Terms(recipe) => {
                    let last = dag.terms.len() + recipe.terms.len() - 1;
                    out.push(replaced(dag, &[(place[&class], last)], &recipe.terms, &place));
                }
                Found::Several(recipe, results) => {
                    let to = |(class, n): &(Id, usize)| (place[class], dag.terms.len() + n);
                    let pairs: Vec<_> = results.iter().map(to).collect();
                    out.push(replaced(dag, &pairs, &recipe.terms, &place));
                }
            }
        }
        out.retain(|next| next != dag);
        out
    }

    fn look(context: &Context<'_>, rule: &Rule, class: Id) -> Vec<(Id, Found)> {
        let term = &context.imported.graph[class].nodes[0];
        let mut found = vec![];
        (rule.find)(&Site { context, rule: rule.name, class, term }, &mut found);
        found.into_iter().map(|found| (class, found)).collect()
    }
}

/// The graph in which terms `from` are terms `to`; `new` come after the old.
fn replaced(
    dag: &Dag,
    pairs: &[(usize, usize)],
    new: &[(Op, Vec<Arg>)],
    place: &HashMap<Id, usize>,
) -> Dag {
    let old = dag.terms.len();
    let renamed = |n: usize| pairs.iter().find(|(from, _)| *from == n).map_or(n, |(_, to)| *to);
    let mut terms: Vec<(Op, Vec<usize>)> = dag
        .terms
        .iter()
        .map(|(op, args)| (op.clone(), args.iter().map(|n| renamed(*n)).collect()))
        .collect();
    // A recipe reads what was there: its own class only through others.
    for (op, args) in new {
        let args = args.iter().map(|arg| match arg {
            Arg::Class(id) => place[id],
            Arg::New(n) => old + n,
        });
        terms.push((op.clone(), args.collect()));
    }
    let mut values = dag.values.clone();
    values.resize(terms.len(), vec![]);
    for (from, to) in pairs {
        let moved = std::mem::take(&mut values[*from]);
        values[*to].extend(moved);
    }
    let roots: Vec<usize> = dag.roots.iter().map(|n| renamed(*n)).collect();
    normal(&terms, &values, &roots)
}

/// Only what the roots need, children first, equal terms once.
fn normal(terms: &[(Op, Vec<usize>)], values: &[Vec<u32>], roots: &[usize]) -> Dag {
    let mut out = Dag { terms: vec![], values: vec![], roots: vec![] };
    let mut place: HashMap<usize, usize> = HashMap::new();
    let mut known: HashMap<(Op, Vec<usize>), usize> = HashMap::new();
    let mut open = HashSet::new();
    let mut stack: Vec<usize> = roots.iter().rev().copied().collect();
    while let Some(&top) = stack.last() {
        if place.contains_key(&top) {
            stack.pop();
            continue;
        }
        let missing: Vec<usize> =
            terms[top].1.iter().filter(|n| !place.contains_key(n)).copied().collect();
        if !missing.is_empty() {
            assert!(open.insert(top), "a rule made a circle");
            stack.extend(missing.into_iter().rev());
            continue;
        }
        let term =
            (terms[top].0.clone(), terms[top].1.iter().map(|n| place[n]).collect::<Vec<_>>());
        let n = *known.entry(term.clone()).or_insert_with(|| {
            out.terms.push(term);
            out.values.push(vec![]);
            out.terms.len() - 1
        });
        for value in &values[top] {
            if !out.values[n].contains(value) {
                out.values[n].push(*value);
            }
        }
        out.values[n].sort_unstable();
        place.insert(top, n);
        stack.pop();
    }
    out.roots = roots.iter().map(|n| place[n]).collect();
    out
}

/// Applies rules in that order wherever they lower the cost, until none does.
pub fn greedy(rewriter: &Rewriter, start: &Dag, order: &[usize]) -> f64 {
    let (mut dag, mut cost) = (start.clone(), rewriter.cost(start));
    'again: loop {
        for &rule in order {
            for next in rewriter.steps(&dag, rule) {
                let after = rewriter.cost(&next);
                if after < cost - 1e-9 {
                    (dag, cost) = (next, after);
                    continue 'again;
                }
            }
        }
        return cost;
    }
}

/// The cheapest graph that any sequence of rules reaches; `None` if there are
/// more than `limit`.
pub fn cheapest(rewriter: &Rewriter, start: &Dag, limit: usize) -> Option<(f64, Dag)> {
    let mut seen = HashSet::from([start.clone()]);
    let mut queue = vec![start.clone()];
    let mut best = (rewriter.cost(start), start.clone());
    while let Some(dag) = queue.pop() {
        for rule in 0..=RULES.len() {
            for next in rewriter.steps(&dag, rule) {
                if seen.insert(next.clone()) {
                    if seen.len() > limit {
                        return None;
                    }
                    let cost = rewriter.cost(&next);
                    if cost < best.0 {
                        best = (cost, next.clone());
                    }
                    queue.push(next);
                }
            }
        }
    }
    Some(best)
}
