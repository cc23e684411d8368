//! The rewrites. Each has a name (in reports), a sketch of why it is right, and
//! guards, which are named too: tests switch one off at a time and must then
//! see a wrong result.

mod affine;
mod batch_norm;
pub mod chain;
mod dropout;
mod fuse;
mod merge;
mod normalize;
mod relu;
mod sizes;

use std::cell::RefCell;
use std::collections::BTreeMap;

use egg::Id;

use super::facts::{Data, Graph};
use super::import::Imported;
use super::language::{Op, Recipe, Term};

/// What a rule found for a class.
#[derive(Debug)]
pub enum Found {
    /// The class equals the recipe's last term.
    Terms(Recipe),
    /// The class equals another.
    Same(Id),
    /// Several classes, each equal to a term of one recipe.
    Several(Recipe, Vec<(Id, usize)>),
}

/// A rewrite.
pub struct Rule {
    /// `fold_batch_norm`
    pub name: &'static str,
    /// Why both sides are equal.
    pub sketch: &'static str,
    /// Its guards, by name.
    pub guards: &'static [&'static str],
    /// Looks at one term of one class.
    pub find: fn(&Site<'_>, &mut Vec<Found>),
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// All rules, in the order in which they are tried.
pub static RULES: &[Rule] = &[
    normalize::ADDMM,
    normalize::MATMUL,
    normalize::BIAS,
    normalize::TRANSPOSED_CONSTANT,
    relu::FROM_CLAMP,
    relu::FROM_THRESHOLD,
    relu::OF_NONNEG,
    relu::PAST_VIEW,
    relu::PAST_CAT,
    relu::PAST_MAX_POOL,
    dropout::RELU_PAST_DROPOUT,
    batch_norm::FOLD,
    affine::SCALE,
    affine::SHIFT,
    affine::INPUT_SCALE,
    affine::INPUT_SHIFT,
    affine::LINEARS,
    affine::THROUGH_CAT,
    merge::PARALLEL,
    sizes::OF_LIKE,
    fuse::LINEAR_RELU,
];

/// What rules may ask, and where guards leave word.
pub struct Context<'a> {
    /// The block.
    pub imported: &'a Imported,
    /// A guard that a test has switched off: `rule/guard`.
    pub disabled: Option<&'a str>,
    /// Class and rule → why it was left alone.
    pub skipped: &'a RefCell<BTreeMap<(Id, &'static str), String>>,
}

/// One term that a rule looks at.
pub struct Site<'a> {
    /// Everything else.
    pub context: &'a Context<'a>,
    /// The rule that looks.
    pub rule: &'static str,
    /// The term's class.
    pub class: Id,
    /// The term.
    pub term: &'a Term,
}

impl<'a> Site<'a> {
    /// The e-graph.
    pub fn graph(&self) -> &'a Graph {
        &self.context.imported.graph
    }

    /// Facts of a class.
    pub fn data(&self, id: Id) -> &'a Data {
        &self.graph()[id].data
    }

    /// The term's n-th child.
    pub fn arg(&self, n: usize) -> Id {
        self.term.args[n]
    }

    /// Terms of a class with operator `op`.
    pub fn with(&self, class: Id, op: &Op) -> impl Iterator<Item = &'a Term> + use<'a, '_> {
        let op = op.clone();
        self.graph()[class].nodes.iter().filter(move |term| term.op == op)
    }

    /// Terms of a class with that ATen name.
    pub fn native(
        &self,
        class: Id,
        kind: &'static str,
    ) -> impl Iterator<Item = &'a Term> + use<'a> {
        self.graph()[class].nodes.iter().filter(move |term| term.native() == Some(kind))
    }

    /// Whether `holds`; otherwise notes why the class is left alone.
    pub fn guard(&self, name: &str, holds: bool, reason: impl FnOnce() -> String) -> bool {
        if holds
            || self
                .context
                .disabled
                .is_some_and(|off| off.split_once('/') == Some((self.rule, name)))
        {
            return true;
        }
        let key = (self.graph().find(self.class), self.rule);
        self.context.skipped.borrow_mut().entry(key).or_insert_with(reason);
        false
    }
}
