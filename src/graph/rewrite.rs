//! The chosen terms → steps that build the new block. Nodes that stay keep
//! their order; a term is built right before the first of them that needs it,
//! random draws at their old place.

use std::collections::{HashMap, HashSet};

use egg::Id;

use super::facts::dtypes;
use super::import::Imported;
use super::language::{Fold, Num, Op, Term};
use super::memory::{nature, Claims, Memory};
use super::ops::Nature;
use super::records::{Edits, Origin, Step, StepKind, ValueKind};
use super::select::{originals, Selected};

/// Builds the steps.
///
/// # Errors
/// If the choice cannot be put in order: the block stays as it is.
pub fn rewrite(imported: &Imported, selected: &Selected) -> Result<Rewritten, String> {
    let mut writer = Writer::new(imported, selected);
    writer.walk()?;
    Ok(writer.finish())
}

/// New steps and what they mean.
#[derive(Debug, Default)]
pub struct Rewritten {
    /// For C++.
    pub edits: Edits,
    /// New nodes and constants: step, its class, its term.
    pub made: Vec<(usize, Id, Term)>,
    /// Original nodes that are gone.
    pub gone: Vec<usize>,
    /// Original nodes whose results equal others but had to be computed again,
    /// to be memory of their own.
    pub twins: Vec<usize>,
}

struct Writer<'a> {
    imported: &'a Imported,
    selected: &'a Selected,
    originals: HashMap<Term, usize>,
    /// Values that exist at this point of the new block.
    available: HashSet<u32>,
    /// The value that stands for a class.
    built: HashMap<Id, u32>,
    replaced: HashMap<u32, u32>,
    /// What stands for memory that something outside may hold.
    claims: Claims<'a>,
    /// Further instances of a class, by the memory they stand for.
    copies: HashMap<(Id, Memory), u32>,
    numbers: HashMap<Num, u32>,
    kept: HashSet<usize>,
    /// Node being written, for source locations.
    here: usize,
    out: Rewritten,
}

impl<'a> Writer<'a> {
    fn new(imported: &'a Imported, selected: &'a Selected) -> Self {
        let block = &imported.block;
        let mut numbers = HashMap::new();
        let mut available = HashSet::new();
        for (number, value) in block.values.iter().enumerate() {
            let number = number as u32;
            if value.origin != Origin::Computed {
                available.insert(number);
            }
            if value.origin == Origin::Constant {
                let class = imported.class_of[number as usize];
                if let Some(num) = class.and_then(|class| imported.graph[class].data.num.clone()) {
                    numbers.entry(num).or_insert(number);
                }
            }
        }
        Self {
            imported,
            selected,
            originals: originals(imported),
            available,
            built: HashMap::new(),
            replaced: HashMap::new(),
            claims: Claims::new(imported),
            copies: HashMap::new(),
            numbers,
            kept: HashSet::new(),
            here: 0,
            out: Rewritten::default(),
        }
    }

    fn walk(&mut self) -> Result<(), String> {
        let block = &self.imported.block;
        let draws: HashMap<u32, Id> = self
            .selected
            .chosen
            .iter()
            .filter_map(|(class, term)| match term.op {
                Op::Native { draw: Some(draw), .. } => Some((draw, *class)),
                _ => None,
            })
            .collect();
        for (n, node) in block.nodes.iter().enumerate() {
            self.here = n;
            if self.imported.is_wall(n) {
                for &input in &node.inputs {
                    self.need(input)?;
                }
                self.keep(n);
            } else if let Some(class) = draws.get(&(n as u32)) {
                self.build(*class)?;
            }
        }
        // The first made comes first, whatever the order of the results: what
        // was computed from it can be again.
        let mut outputs = block.outputs.clone();
        outputs.sort_unstable();
        for output in outputs {
            self.need(output)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Rewritten {
        let imported = self.imported;
        self.out.gone = (0..imported.block.nodes.len())
            .filter(|n| !self.imported.is_wall(*n) && !self.kept.contains(n))
            .collect();
        let mut replacements: Vec<_> =
            self.replaced.into_iter().filter(|(old, new)| old != new).collect();
        replacements.sort_unstable();
        self.out.edits.changed = !self.out.made.is_empty() || !self.out.gone.is_empty();
        self.out.edits.replacements = replacements;
        self.out
    }

    /// A value that a kept node or the result reads.
    fn need(&mut self, value: u32) -> Result<(), String> {
        let Some(class) = self.imported.class_of[value as usize] else { return Ok(()) };
        if self.replaced.contains_key(&value) {
            return Ok(());
        }
        let id = self.build(class)?;
        self.assign(value, class, id)
    }

    /// States that `value` is now `id`, of the same class, or a copy of it.
    fn assign(&mut self, value: u32, class: Id, mut id: u32) -> Result<(), String> {
        if self.replaced.contains_key(&value) {
            return Ok(());
        }
        let record = &self.imported.block.values[value as usize];
        let memory = self.imported.memory[value as usize];
        if record.kind == ValueKind::Tensor && record.escapes && !self.claims.claim(id, memory) {
            // Two values that were apart in memory stay apart, and two that
            // shared it share it.
            self.out.twins.extend(self.producer(value));
            let class = self.imported.graph.find(class);
            id = match self.copy(class, memory) {
                Err(reason) => self.again(value, class).ok_or(reason)?,
                Ok(id) => id,
            };
        }
        self.replaced.insert(value, id);
        Ok(())
    }

    fn producer(&self, value: u32) -> Option<usize> {
        *self.imported.producer.get(value as usize)?
    }

    /// The value of a class, built if need be. No recursion: chains are long.
    fn build(&mut self, class: Id) -> Result<u32, String> {
        let class = self.imported.graph.find(class);
        let mut stack = vec![class];
        let mut open = HashSet::new();
        while let Some(&top) = stack.last() {
            if self.built.contains_key(&top) {
                stack.pop();
                continue;
            }
            let term = self.choice(top)?;
            let missing: Vec<Id> =
                self.reads(&term).into_iter().filter(|id| !self.built.contains_key(id)).collect();
            if missing.is_empty() {
                let id = self.write(top, &term)?;
                self.built.insert(top, id);
                stack.pop();
            } else if open.insert(top) {
                // First argument first.
                stack.extend(missing.into_iter().rev());
            } else {
                return Err("the choice reads itself".into());
            }
        }
        self.built.get(&class).copied().ok_or_else(|| "a term was not built".into())
    }

    fn choice(&self, class: Id) -> Result<Term, String> {
        if let Some(term) = self.selected.chosen.get(&class) {
            return Ok(term.clone());
        }
        // Lists and numbers of nodes that are kept: the search knows their
        // contents only.
        let nodes = &self.imported.graph[class].nodes;
        let terms = || nodes.iter().map(|term| self.imported.canonical(term));
        terms()
            .find(|term| matches!(term.op, Op::Leaf(_) | Op::Num(_)))
            .or_else(|| terms().find(|term| self.originals.contains_key(term)))
            .ok_or_else(|| "a class that nothing was chosen for".into())
    }

    /// Classes that must exist before a term: for one that is kept, those of
    /// its node's inputs.
    fn reads(&self, term: &Term) -> Vec<Id> {
        let graph = &self.imported.graph;
        match self.original(term) {
            Some(node) => {
                let inputs = &self.imported.block.nodes[node].inputs;
                let classes = inputs.iter().filter_map(|v| self.imported.class_of[*v as usize]);
                classes.map(|id| graph.find(id)).collect()
            }
            None => term.args.iter().map(|id| graph.find(*id)).collect(),
        }
    }

    /// The node that a term came from, if it can still be kept.
    fn original(&self, term: &Term) -> Option<usize> {
        self.originals.get(term).copied().filter(|node| !self.kept.contains(node))
    }

    fn keep(&mut self, node: usize) {
        self.kept.insert(node);
        self.out.edits.steps.push(Step { kind: StepKind::Keep, node: node as u32, inputs: vec![] });
        self.available.extend(&self.imported.block.nodes[node].outputs);
    }

    fn write(&mut self, class: Id, term: &Term) -> Result<u32, String> {
        match &term.op {
            Op::Leaf(value) => {
                return if self.available.contains(value) {
                    Ok(*value)
                } else {
                    Err(format!("value {value} is needed before it is made"))
                };
            }
            Op::Num(num) => return Ok(self.number(num)),
            _ => {}
        }
        if let Op::Native { draw: Some(draw), .. } = term.op {
            if draw as usize != self.here {
                return Err("a random draw would be made at another place".into());
            }
        }
        if let Some(node) = self.original(term) {
            let record = &self.imported.block.nodes[node];
            for &input in &record.inputs {
                let class = self.imported.class_of[input as usize];
                let class = class.map(|id| self.imported.graph.find(id));
                if let Some((class, &id)) = class.and_then(|c| Some((c, self.built.get(&c)?))) {
                    self.assign(input, class, id)?;
                }
            }
            self.keep(node);
            let id = record.outputs[0];
            let first = record.inputs.first().and_then(|v| self.replaced.get(v)).copied();
            self.claims.note(id, term, first);
            // Its own name first: standing for another, it could not be
            // replaced itself.
            self.assign(id, class, id)?;
            return Ok(*self.replaced.get(&id).unwrap_or(&id));
        }
        let inputs = term.args.iter().map(|arg| self.value_of(*arg)).collect::<Result<_, _>>()?;
        Ok(self.make(class, term, inputs))
    }

    fn value_of(&self, class: Id) -> Result<u32, String> {
        let class = self.imported.graph.find(class);
        self.built.get(&class).copied().ok_or_else(|| "an argument was not built".into())
    }

    /// Another instance of a class, in memory that stands for `memory`.
    fn copy(&mut self, class: Id, memory: Memory) -> Result<u32, String> {
        if let Some(&id) = self.copies.get(&(class, memory)) {
            return Ok(id);
        }
        let term = self.choice(class)?;
        match term.op {
            Op::Leaf(_) => {
                return Err("a given value would be handed out in place of a fresh one".into())
            }
            Op::Native { draw: Some(_), .. } => return Err("a draw cannot be made twice".into()),
            _ => {}
        }
        let mut inputs: Vec<u32> =
            term.args.iter().map(|arg| self.value_of(*arg)).collect::<Result<_, _>>()?;
        let of = || self.imported.graph.find(term.args[0]);
        match nature(&term) {
            Some(Nature::View) => inputs[0] = self.copy(of(), memory)?,
            Some(Nature::PerhapsView) if self.claims.root_fits(inputs[0], memory) => {}
            Some(Nature::PerhapsView) => {
                inputs[0] = self.copy(of(), Memory::own(memory.root))?;
            }
            _ if self.claims.is_free(memory) => {}
            _ => return Err("values that share memory would not any more".into()),
        }
        let id = self.make(class, &term, inputs);
        self.copies.insert((class, memory), id);
        self.claims.claim(id, memory);
        Ok(id)
    }

    /// The value as it was computed before, if all that it reads exists.
    fn again(&mut self, value: u32, class: Id) -> Option<u32> {
        let node = self.producer(value).filter(|node| !self.kept.contains(node))?;
        let imported = self.imported;
        let record = &imported.block.nodes[node];
        let term = imported.terms[node].as_ref().filter(|term| !views(term))?;
        let exists = |input: &u32| {
            let class = imported.class_of[*input as usize].map(|id| imported.graph.find(id));
            class.is_some_and(|class| self.built.contains_key(&class))
        };
        if matches!(term.op, Op::Native { draw: Some(_), .. }) || !record.inputs.iter().all(exists)
        {
            return None;
        }
        for input in &record.inputs {
            let class = imported.graph.find(imported.class_of[*input as usize]?);
            let id = *self.built.get(&class)?;
            self.assign(*input, class, id).ok()?;
        }
        self.keep(node);
        let memory = imported.memory[value as usize];
        self.copies.insert((class, memory), value);
        self.claims.claim(value, memory).then_some(value)
    }

    /// Appends the steps of a new term.
    fn make(&mut self, class: Id, term: &Term, inputs: Vec<u32>) -> u32 {
        let first = inputs.first().copied();
        let values = &self.imported.graph[class].data.values;
        let like = values.iter().find_map(|value| self.producer(*value));
        let here = like.unwrap_or(self.here);
        let (kind, inputs) = match &term.op {
            Op::Linear => (StepKind::Make("aten::linear".into()), inputs),
            Op::Relu => (StepKind::Make("aten::relu".into()), inputs),
            Op::Fused => (StepKind::Make("hypatia::fused_linear_relu".into()), inputs),
            Op::List => (StepKind::Tensors, inputs),
            Op::Native { kind, .. } => (StepKind::Make((*kind).into()), inputs),
            Op::Fold(fold) => {
                let dtype = self.imported.graph[class].data.dtype.unwrap_or(dtypes::FLOAT);
                // A fill's argument only says which dtype it takes.
                let inputs = if matches!(fold, Fold::Fill(..)) { vec![] } else { inputs };
                (fold_step(fold, dtype), inputs)
            }
            Op::Mlp { relu_last } => {
                let layers = inputs[1..].chunks_exact(2);
                let weights = layers.clone().map(|pair| pair[0]).collect();
                let biases = layers.map(|pair| pair[1]).collect();
                let weights = self.push(StepKind::Tensors, here, weights);
                let biases = self.push(StepKind::OptionalTensors, here, biases);
                let flag = self.number(&Num::Bool(*relu_last));
                let kind = StepKind::Make("hypatia::fused_mlp".into());
                (kind, vec![inputs[0], weights, biases, flag])
            }
            // Handled by the callers.
            Op::Leaf(_) | Op::Num(_) => return first.unwrap_or_default(),
        };
        let id = self.push(kind, here, inputs);
        self.out.made.push((self.out.edits.steps.len() - 1, class, term.clone()));
        self.claims.note(id, term, first);
        id
    }

    fn push(&mut self, kind: StepKind, node: usize, inputs: Vec<u32>) -> u32 {
        let steps = &mut self.out.edits.steps;
        steps.push(Step { kind, node: node as u32, inputs });
        (self.imported.block.values.len() + steps.len() - 1) as u32
    }

    fn number(&mut self, num: &Num) -> u32 {
        if let Some(id) = self.numbers.get(num) {
            return *id;
        }
        let kind = match num {
            Num::Int(value) => StepKind::Int(*value),
            Num::Float(value) => StepKind::Float(value.get()),
            Num::Bool(value) => StepKind::Bool(*value),
            Num::None => StepKind::None,
            Num::Ints(value) => StepKind::Ints(value.clone()),
        };
        let id = self.push(kind, self.here, vec![]);
        self.numbers.insert(num.clone(), id);
        id
    }
}

/// Whether a term's result may be memory that was there before.
fn views(term: &Term) -> bool {
    nature(term).is_some_and(Nature::may_view)
}

/// Names and parameters as `cpp/graph/fold.h` has them.
fn fold_step(fold: &Fold, dtype: i32) -> StepKind {
    let (op, ints, float) = match fold {
        Fold::Matmul => ("matmul", vec![], 0.0),
        Fold::Mv => ("mv", vec![], 0.0),
        Fold::Add => ("add", vec![], 0.0),
        Fold::Sub => ("sub", vec![], 0.0),
        Fold::Mul => ("mul", vec![], 0.0),
        Fold::Times(factor) => ("times", vec![], factor.get()),
        Fold::ScaleRows => ("scale_rows", vec![], 0.0),
        Fold::ScaleColumns => ("scale_columns", vec![], 0.0),
        Fold::Rsqrt(eps) => ("rsqrt", vec![], eps.get()),
        Fold::Cat0 => ("cat0", vec![], 0.0),
        Fold::Cat1 => ("cat1", vec![], 0.0),
        Fold::Columns(start, length) => ("columns", vec![*start, *length], 0.0),
        Fold::Transpose => ("transpose", vec![], 0.0),
        Fold::Fill(n, value) => ("fill", vec![*n], value.get()),
        Fold::Broadcast(n) => ("broadcast", vec![*n], 0.0),
    };
    StepKind::Fold { op: op.into(), ints, float, dtype }
}
