//! Records → e-graph. A node that is known (`ops`) and movable becomes a term;
//! every other one stays where it is: its outputs are leaves, its inputs roots.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use egg::{EGraph, Id, Language};

use super::facts::{list, Facts, Graph};
use super::language::{Num, Op, Term};
use super::memory::{origins, Memory};
use super::ops::{self, Nature};
use super::records::{Block, Node, Origin, Value, ValueKind};

/// A block as terms.
#[derive(Debug)]
pub struct Imported {
    /// Where they are.
    pub graph: Graph,
    /// The block itself.
    pub block: Arc<Block>,
    /// Class of every value that has one.
    pub class_of: Vec<Option<Id>>,
    /// The term of every node that became one.
    pub terms: Vec<Option<Term>>,
    /// Evaluation-mode dropouts that were dropped: node numbers.
    pub identities: BTreeSet<usize>,
    /// Nodes that nothing needs: they go, draws excepted.
    pub dead: BTreeSet<usize>,
    /// Known operators that stayed, and why.
    pub skipped: Vec<(usize, String)>,
    /// Uses of each value by nodes and as a result.
    pub uses: Vec<u32>,
    /// The node that makes each value.
    pub producer: Vec<Option<usize>>,
    /// Where the memory of each value comes from ([`origins`]).
    pub memory: Vec<Memory>,
}

/// What makes a block impossible to read.
pub type Malformed = String;

/// Checks the records and makes terms of them, except of the nodes `apart`.
///
/// # Errors
/// If a record refers to a value that does not exist or is not made yet.
pub fn import(block: Arc<Block>, apart: &BTreeSet<usize>) -> Result<Imported, Malformed> {
    let uses = check(&block)?;
    let facts = Facts { block: Arc::clone(&block), conflict: None };
    let count = block.values.len();
    let mut this = Imported {
        graph: EGraph::new(facts),
        class_of: vec![None; count],
        terms: vec![None; block.nodes.len()],
        identities: BTreeSet::new(),
        dead: dead(&block),
        skipped: vec![],
        uses,
        producer: producers(&block),
        memory: vec![],
        block: Arc::clone(&block),
    };
    let mut identity: HashMap<u32, u32> = HashMap::new();
    for (number, value) in block.values.iter().enumerate() {
        let number = number as u32;
        let class = match (value.origin, scalar(value)) {
            (_, Some(num)) => this.graph.add(Term::new(Op::Num(num), vec![])),
            (Origin::Parameter | Origin::Constant, None) => {
                let first = *identity.entry(value.identity).or_insert(number);
                this.graph.add(Term::new(Op::Leaf(first), vec![]))
            }
            (Origin::Outside, None) => this.graph.add(Term::new(Op::Leaf(number), vec![])),
            (Origin::Computed, None) => continue,
        };
        this.name(number, class);
    }
    for index in 0..block.nodes.len() {
        this.import_node(index, apart.contains(&index));
    }
    // Readers that will be gone are none.
    for node in this.identities.iter().chain(&this.dead) {
        for input in &block.nodes[*node].inputs {
            this.uses[*input as usize] -= 1;
        }
    }
    this.memory = origins(&this);
    Ok(this)
}

fn producers(block: &Block) -> Vec<Option<usize>> {
    let mut producers = vec![None; block.values.len()];
    for (n, node) in block.nodes.iter().enumerate() {
        for &value in &node.outputs {
            producers[value as usize] = Some(n);
        }
    }
    producers
}

/// A compile-time scalar.
fn scalar(value: &Value) -> Option<Num> {
    let num = match value.kind {
        ValueKind::None => return Some(Num::None),
        _ if !value.known => return None,
        ValueKind::Int => Num::Int(value.int),
        ValueKind::Float => Num::Float(value.float.into()),
        ValueKind::Bool => Num::Bool(value.int != 0),
        ValueKind::Ints => Num::Ints(value.ints.clone()),
        _ => return None,
    };
    Some(num)
}

/// Nodes that could become terms and whose results nothing needs.
fn dead(block: &Block) -> BTreeSet<usize> {
    let mut needed: HashSet<u32> = block.outputs.iter().copied().collect();
    let mut dead = BTreeSet::new();
    for (n, node) in block.nodes.iter().enumerate().rev() {
        let free =
            |known: &&ops::Known| node.movable && !known.random && !updates_statistics(block, node);
        let known = ops::lookup(&node.kind).filter(free);
        if known.is_none() || node.outputs.iter().any(|value| needed.contains(value)) {
            needed.extend(&node.inputs);
        } else {
            dead.insert(n);
        }
    }
    dead
}

/// Batch norm on duty writes its running statistics, whatever its schema says.
fn updates_statistics(block: &Block, node: &Node) -> bool {
    let off = |value: &u32| {
        let value = &block.values[*value as usize];
        value.known && value.kind == ValueKind::Bool && value.int == 0
    };
    node.kind == "aten::batch_norm" && !node.inputs.get(5).is_some_and(off)
}

/// Every value is made once, before its uses. Returns how often each is used.
fn check(block: &Block) -> Result<Vec<u32>, Malformed> {
    let count = block.values.len();
    let mut made: Vec<bool> =
        block.values.iter().map(|value| value.origin != Origin::Computed).collect();
    let mut uses = vec![0u32; count];
    let mut read = |value: u32, made: &[bool], reader: &str| match made.get(value as usize) {
        Some(true) => {
            uses[value as usize] += 1;
            Ok(())
        }
        Some(false) => Err(format!("{reader} reads value {value} before it is made")),
        None => Err(format!("{reader} reads value {value} of {count}")),
    };
    for node in &block.nodes {
        for &input in &node.inputs {
            read(input, &made, &node.kind)?;
        }
        for &output in &node.outputs {
            let constant = matches!(
                block.values.get(output as usize).map(|value| value.origin),
                Some(Origin::Parameter | Origin::Constant)
            );
            match made.get_mut(output as usize) {
                Some(made) if !*made || constant => *made = true,
                _ => return Err(format!("{} makes value {output} a second time", node.kind)),
            }
        }
    }
    for &output in &block.outputs {
        read(output, &made, "the block's result")?;
    }
    Ok(uses)
}

impl Imported {
    /// States that `value` is what `class` is.
    fn name(&mut self, value: u32, class: Id) {
        let mut data = self.graph[class].data.clone();
        let record = &self.block.values[value as usize];
        if data.hint.is_none() && record.hint.is_some() {
            data.hint.clone_from(&record.hint);
        }
        if !data.values.contains(&value) {
            data.values.push(value);
        }
        self.graph.set_analysis_data(class, data);
        self.class_of[value as usize] = Some(class);
    }

    fn import_node(&mut self, index: usize, apart: bool) {
        let block = Arc::clone(&self.block);
        let node = &block.nodes[index];
        let fixed = |value: &u32| {
            matches!(block.values[*value as usize].origin, Origin::Parameter | Origin::Constant)
        };
        if !node.outputs.is_empty() && node.outputs.iter().all(fixed) {
            return;
        }
        if self.dead.contains(&index) {
            return;
        }
        if apart {
            return self.wall(node);
        }
        match self.term(index, node) {
            Ok(Some(Made::Term(term))) => {
                self.terms[index] = Some(term.clone());
                let class = self.graph.add(term);
                self.name(node.outputs[0], class);
            }
            Ok(Some(Made::Same(class))) => {
                self.identities.insert(index);
                self.name(node.outputs[0], class);
            }
            Ok(None) => self.wall(node),
            Err(reason) => {
                self.skipped.push((index, reason));
                self.wall(node);
            }
        }
    }

    /// A node that stays: what it makes is given.
    fn wall(&mut self, node: &Node) {
        for &output in &node.outputs {
            if self.class_of[output as usize].is_some() {
                continue;
            }
            let class = self.graph.add(Term::new(Op::Leaf(output), vec![]));
            self.name(output, class);
            if ops::never_negative(&node.kind) {
                let mut data = self.graph[class].data.clone();
                data.nonneg = true;
                self.graph.set_analysis_data(class, data);
            }
        }
    }

    /// The node as a term; `None` if it is not known, an error if it is but
    /// cannot be used.
    fn term(&self, index: usize, node: &Node) -> Result<Option<Made>, String> {
        let Some(known) = ops::lookup(&node.kind) else { return Ok(None) };
        if !node.movable {
            return if matters(known) { Err(node.reason.clone()) } else { Ok(None) };
        }
        if updates_statistics(&self.block, node) {
            return Err("it may update its statistics (evaluation is not certain)".into());
        }
        let [output] = node.outputs[..] else { return Ok(None) };
        let expected = match (known.nature, node.kind.as_str()) {
            (_, "prim::ListConstruct") => &[ValueKind::Tensors, ValueKind::Ints][..],
            (Nature::Metadata, _) => &[ValueKind::Int, ValueKind::Ints],
            _ => &[ValueKind::Tensor],
        };
        let made = &self.block.values[output as usize];
        if !expected.contains(&made.kind) || made.origin != Origin::Computed {
            return Ok(None);
        }
        if known.kind != "prim::ListConstruct" && !known.inputs.contains(&node.inputs.len()) {
            return Err(format!("{} arguments are not understood", node.inputs.len()));
        }
        let args: Option<Vec<Id>> =
            node.inputs.iter().map(|value| self.class_of[*value as usize]).collect();
        let Some(args) = args else { return Ok(None) };
        let args: Vec<Id> = args.into_iter().map(|id| self.graph.find(id)).collect();
        let data = |i: usize| &self.graph[args[i]].data;
        let term = match known.kind {
            "aten::linear" => Term::new(Op::Linear, args),
            "aten::relu" => Term::new(Op::Relu, args),
            "hypatia::fused_linear_relu" => Term::new(Op::Fused, args),
            "prim::ListConstruct" => Term::new(Op::List, args),
            "hypatia::fused_mlp" => match self.mlp(&args) {
                Some(term) => term,
                None => return Ok(None),
            },
            "aten::dropout" => match data(2).num {
                Some(Num::Bool(false)) => return Ok(Some(Made::Same(args[0]))),
                _ => {
                    let draw = Some(index as u32);
                    Term::new(Op::Native { kind: known.kind, draw }, args)
                }
            },
            kind => Term::new(Op::Native { kind, draw: None }, args),
        };
        Ok(Some(Made::Term(term)))
    }

    /// Input, lists of weights and biases, flag → one flat term.
    fn mlp(&self, args: &[Id]) -> Option<Term> {
        let Some(Num::Bool(relu_last)) = self.graph[args[3]].data.num else { return None };
        let weights = list(&self.graph, args[1])?;
        let biases = list(&self.graph, args[2])?;
        if weights.is_empty() || weights.len() != biases.len() {
            return None;
        }
        let layers = weights.iter().zip(&biases).flat_map(|(w, b)| [*w, *b]);
        let args = std::iter::once(args[0]).chain(layers).collect();
        Some(Term::new(Op::Mlp { relu_last }, args))
    }

    /// Whether node `n` stays where it is.
    pub fn is_wall(&self, n: usize) -> bool {
        self.terms[n].is_none() && !self.identities.contains(&n) && !self.dead.contains(&n)
    }

    /// Whether a value is there whatever the block becomes: no term makes it.
    pub fn is_given(&self, value: u32) -> bool {
        let producer = self.producer.get(value as usize);
        producer.is_some_and(|node| node.is_none_or(|node| self.is_wall(node)))
    }

    /// Which of the block's nodes its results, or nodes that stay, need.
    pub fn live(&self) -> Vec<bool> {
        let mut needed: HashSet<u32> = self.block.outputs.iter().copied().collect();
        let mut live = vec![false; self.block.nodes.len()];
        for (n, node) in self.block.nodes.iter().enumerate().rev() {
            if self.is_wall(n) || node.outputs.iter().any(|value| needed.contains(value)) {
                live[n] = true;
                needed.extend(&node.inputs);
            }
        }
        live
    }

    /// Whether something outside holds one of `values` that shares no memory
    /// with any of the given values `given`.
    pub fn hands_out(&self, values: &[u32], given: &[u32]) -> bool {
        let memory = |value: &u32| self.memory[*value as usize];
        values.iter().any(|value| {
            let record = &self.block.values[*value as usize];
            let tensor = record.kind == ValueKind::Tensor && record.escapes;
            tensor && !given.iter().any(|given| memory(given) == memory(value))
        })
    }

    /// Whether two classes must not become one, although they are equal: a
    /// given value would be handed out in place of a fresh one.
    pub fn keeps_apart(&self, a: Id, b: Id) -> bool {
        let (a, b) = (&self.graph[a].data, &self.graph[b].data);
        !a.given.is_empty() && self.hands_out(&b.values, &a.given)
            || !b.given.is_empty() && self.hands_out(&a.values, &b.given)
    }

    /// Original uses of all values that a class stands for.
    pub fn uses_of(&self, class: Id) -> u32 {
        let values = &self.graph[class].data.values;
        values.iter().map(|value| self.uses[*value as usize]).sum()
    }

    /// The canonical form of a term.
    pub fn canonical(&self, term: &Term) -> Term {
        term.clone().map_children(|id| self.graph.find(id))
    }
}

enum Made {
    Term(Term),
    /// The same value, and the same memory, as that class.
    Same(Id),
}

/// Whether a user would want to know that such a node was left alone.
fn matters(known: &ops::Known) -> bool {
    matches!(known.nature, Nature::Product | Nature::Pointwise) || known.random
}
