//! Which values of a block share memory. Each is traced back to where its memory
//! was made: two values that come from different places, one of them inside the
//! block, never share it, whatever may hold them later.

use std::collections::HashMap;

use super::import::Imported;
use super::language::Term;
use super::ops::{self, Nature};

/// Where a value's memory comes from: where it was made, and the last node on
/// the way that may have copied it. Two values with both alike surely share
/// their memory; with the first alike they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Memory {
    /// The value that the memory was made with.
    pub root: u32,
    /// The same, or the last that was perhaps a copy.
    pub last: u32,
}

impl Memory {
    /// Made with the value itself.
    pub fn own(value: u32) -> Self {
        Self { root: value, last: value }
    }

    /// Of what `nature` makes of this, as value `made`.
    fn through(self, nature: Option<Nature>, made: u32) -> Self {
        match nature {
            Some(Nature::View) => self,
            Some(Nature::PerhapsView) => Self { last: made, ..self },
            _ => Self::own(made),
        }
    }
}

/// How the operator of a term treats memory, if it is one of ATen's.
pub fn nature(term: &Term) -> Option<Nature> {
    Some(ops::lookup(term.native()?)?.nature)
}

/// For each value of a block. Given values that may be one piece of memory count
/// as one.
pub fn origins(imported: &Imported) -> Vec<Memory> {
    let block = &imported.block;
    let mut first: HashMap<u32, u32> = HashMap::new();
    let mut origins: Vec<Memory> = (0..block.values.len() as u32)
        .map(|value| {
            let storage = block.values[value as usize].storage;
            let given = imported.is_given(value);
            Memory::own(if given { *first.entry(storage).or_insert(value) } else { value })
        })
        .collect();
    for (n, node) in block.nodes.iter().enumerate() {
        let nature = match &imported.terms[n] {
            Some(term) => nature(term),
            None if imported.identities.contains(&n) => Some(Nature::View),
            None => continue,
        };
        if let (Some(&input), Some(&made)) = (node.inputs.first(), node.outputs.first()) {
            origins[made as usize] = origins[input as usize].through(nature, made);
        }
    }
    origins
}

/// Which memory of the new block stands for which of the old one: one for one.
#[derive(Debug)]
pub struct Claims<'a> {
    imported: &'a Imported,
    memory: HashMap<u32, Memory>,
    roots: OneToOne,
    lasts: OneToOne,
}

#[derive(Debug, Default)]
struct OneToOne {
    old: HashMap<u32, u32>,
    new: HashMap<u32, u32>,
}

impl OneToOne {
    fn agrees(&self, new: u32, old: u32) -> bool {
        let (a, b) = (self.old.get(&new), self.new.get(&old));
        a.is_none_or(|a| *a == old) && b.is_none_or(|b| *b == new)
    }

    fn note(&mut self, new: u32, old: u32) {
        self.old.insert(new, old);
        self.new.insert(old, new);
    }
}

impl<'a> Claims<'a> {
    /// Nothing stands for anything yet, but what is given for itself.
    pub fn new(imported: &'a Imported) -> Self {
        let (roots, lasts) = Default::default();
        Self { imported, memory: HashMap::new(), roots, lasts }
    }

    /// The new block's value `id` is made by `term` from `first`.
    pub fn note(&mut self, id: u32, term: &Term, first: Option<u32>) {
        if let Some(first) = first {
            let memory = self.of(first).through(nature(term), id);
            self.memory.insert(id, memory);
        }
    }

    /// The memory of the new block's value `id`.
    fn of(&self, id: u32) -> Memory {
        self.memory.get(&id).copied().unwrap_or_else(|| {
            if self.imported.is_given(id) {
                self.imported.memory[id as usize]
            } else {
                Memory::own(id)
            }
        })
    }

    fn agree(&self, new: u32, old: u32, claims: &OneToOne) -> bool {
        if self.imported.is_given(new) || self.imported.is_given(old) {
            new == old
        } else {
            claims.agrees(new, old)
        }
    }

    /// Whether a value with `id`'s root may stand for `memory`'s.
    pub fn root_fits(&self, id: u32, memory: Memory) -> bool {
        self.agree(self.of(id).root, memory.root, &self.roots)
    }

    /// Whether new memory may stand for `memory`: nothing does yet.
    pub fn is_free(&self, memory: Memory) -> bool {
        !self.imported.is_given(memory.root) && !self.roots.new.contains_key(&memory.root)
    }

    /// Lets `id` stand for `memory`; false if it cannot.
    pub fn claim(&mut self, id: u32, memory: Memory) -> bool {
        let new = self.of(id);
        let fits = self.agree(new.root, memory.root, &self.roots)
            && self.agree(new.last, memory.last, &self.lasts);
        if fits {
            self.roots.note(new.root, memory.root);
            self.lasts.note(new.last, memory.last);
        }
        fits
    }
}
