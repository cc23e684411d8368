//! Applies the rules until nothing new appears, or a limit is met. Own loop
//! instead of egg's `Runner`: that one stops at 10,000 nodes before its first
//! search and says so to nobody, and its time limit makes results depend on
//! the machine.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use egg::Id;

use super::import::Imported;
use super::language::{Arg, Recipe, Term};
use super::rules::{chain, Context, Found, Rule, Site};

/// Limits of one block's search. Counts, not seconds: the same everywhere.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Terms that rules may add for each of the block's own, and in any case.
    pub growth: usize,
    /// See `growth`.
    pub least: usize,
    /// Rounds over the whole graph.
    pub rounds: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { growth: 12, least: 2000, rounds: 64 }
    }
}

/// Why the search ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// No rule finds anything new.
    Saturated,
    /// Too many terms; the rule that added most.
    TermLimit(&'static str),
    /// Too many rounds.
    RoundLimit,
    /// A rule equated what cannot be equal.
    Unsound(String),
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Saturated => f.write_str("saturated"),
            Self::TermLimit(rule) => write!(f, "term limit, most by {rule}"),
            Self::RoundLimit => f.write_str("round limit"),
            Self::Unsound(what) => write!(f, "unsound: {what}"),
        }
    }
}

/// What the search leaves beside the e-graph.
#[derive(Debug)]
pub struct Saturated {
    /// Why it ended.
    pub stop: StopReason,
    /// Terms, canonical, and the rule that added them.
    pub made_by: HashMap<Term, &'static str>,
    /// What guards refused.
    pub skipped: BTreeMap<(Id, &'static str), String>,
}

/// Runs `rules`, then joins chains if `chains`.
pub fn saturate(
    imported: &mut Imported,
    rules: &[Rule],
    chains: bool,
    limits: Limits,
    disabled: Option<&str>,
) -> Saturated {
    let skipped = RefCell::new(BTreeMap::new());
    let budget = limits.least.max(imported.graph.total_size() * limits.growth);
    let mut search =
        Search { made_by: HashMap::new(), added: BTreeMap::new(), seen: HashSet::new() };
    imported.graph.rebuild();
    let mut stop = StopReason::RoundLimit;
    'rounds: for _ in 0..limits.rounds {
        let before = (imported.graph.total_number_of_nodes(), imported.graph.number_of_classes());
        let mut classes: Vec<Id> = imported.graph.classes().map(|class| class.id).collect();
        classes.sort_unstable();
        for class in classes {
            // Merged meanwhile: its terms come up under the other name.
            if imported.graph.find(class) != class {
                continue;
            }
            let terms = imported.graph[class].nodes.clone();
            for term in terms {
                let term = imported.canonical(&term);
                for rule in rules {
                    let found = {
                        let context = Context { imported, disabled, skipped: &skipped };
                        let site = Site { context: &context, rule: rule.name, class, term: &term };
                        let mut found = vec![];
                        (rule.find)(&site, &mut found);
                        found
                    };
                    for found in found {
                        search.apply(imported, rule.name, class, found);
                    }
                }
            }
            if search.made_by.len() > budget {
                imported.graph.rebuild();
                let most = search.added.iter().max_by_key(|(_, count)| **count);
                stop = StopReason::TermLimit(most.map_or("none", |(rule, _)| rule));
                break 'rounds;
            }
        }
        imported.graph.rebuild();
        if imported.graph.analysis.conflict.is_some() {
            break;
        }
        if before == (imported.graph.total_number_of_nodes(), imported.graph.number_of_classes()) {
            stop = StopReason::Saturated;
            break;
        }
    }
    if chains {
        let found = {
            let context = Context { imported, disabled, skipped: &skipped };
            chain::find(&context)
        };
        for (class, found) in found {
            search.apply(imported, chain::NAME, class, found);
        }
        imported.graph.rebuild();
    }
    if let Some(conflict) = imported.graph.analysis.conflict.take() {
        stop = StopReason::Unsound(conflict);
    }
    // By the names that classes have in the end.
    let made_by =
        search.made_by.iter().map(|(term, rule)| (imported.canonical(term), *rule)).collect();
    Saturated { stop, made_by, skipped: skipped.into_inner() }
}

struct Search {
    made_by: HashMap<Term, &'static str>,
    added: BTreeMap<&'static str, usize>,
    /// Unions done: without this, finding the same again would count as work.
    seen: HashSet<(Id, Id)>,
}

impl Search {
    fn apply(&mut self, imported: &mut Imported, rule: &'static str, class: Id, found: Found) {
        match found {
            Found::Same(other) => self.union(imported, class, other),
            Found::Terms(recipe) => {
                let ids = self.add(imported, rule, &recipe);
                if let Some(last) = ids.last() {
                    self.union(imported, class, *last);
                }
            }
            Found::Several(recipe, results) => {
                let ids = self.add(imported, rule, &recipe);
                for (class, term) in results {
                    if let Some(id) = ids.get(term) {
                        self.union(imported, class, *id);
                    }
                }
            }
        }
    }

    fn union(&mut self, imported: &mut Imported, a: Id, b: Id) {
        let pair = (imported.graph.find(a), imported.graph.find(b));
        if pair.0 != pair.1 && !imported.keeps_apart(pair.0, pair.1) && self.seen.insert(pair) {
            imported.graph.union(pair.0, pair.1);
        }
    }

    fn add(&mut self, imported: &mut Imported, rule: &'static str, recipe: &Recipe) -> Vec<Id> {
        let mut ids: Vec<Id> = Vec::with_capacity(recipe.terms.len());
        for (op, args) in &recipe.terms {
            let args = args.iter().map(|arg| match arg {
                Arg::Class(id) => imported.graph.find(*id),
                // Recipes name only earlier terms (`Recipe::add`).
                Arg::New(n) => imported.graph.find(ids[*n]),
            });
            let term = Term::new(op.clone(), args.collect());
            if imported.graph.lookup(term.clone()).is_none() {
                *self.added.entry(rule).or_default() += 1;
                self.made_by.insert(term.clone(), rule);
            }
            ids.push(imported.graph.add(term));
        }
        ids
    }
}
