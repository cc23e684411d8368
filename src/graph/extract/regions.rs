//! Solving what has one entry, inside a part.
//!
//! If some classes are used by one class or option only, the entry, and what
//! they need beyond themselves the entry needs in any case (`landmarks`), then
//! how they are best computed does not depend on the rest: the region is
//! solved alone and becomes part of one option.

use std::collections::BTreeSet;

use super::landmarks::Landmarks;
use super::part;
use super::reduce::{Graph, Opt};
use super::scc;
use super::search::{self, Steps};

/// Most classes of a region; larger ones are left to the search.
const LARGEST: usize = 64;

/// What a region is entered by.
#[derive(Clone, Copy)]
enum Entry {
    /// A class, itself part of the region.
    Class(usize),
    /// An option of a class outside.
    Option(usize),
}

/// A region and the classes it needs beyond.
struct Region {
    classes: BTreeSet<usize>,
    exits: BTreeSet<usize>,
}

/// Replaces regions by options. Says whether there were any.
pub(super) fn collapse(graph: &mut Graph, steps: &mut Steps) -> bool {
    let order = scc::order(graph);
    let landmarks = Landmarks::of(graph, &order);
    let mut place = vec![0; graph.classes.len()];
    order.classes.iter().enumerate().for_each(|(at, &class)| place[class] = at);
    // The landmarks of classes that were removed mean nothing any more.
    let mut gone = vec![false; graph.classes.len()];
    let mut any = false;
    // Children first, so inner regions come first.
    for &class in &order.classes {
        let options = graph.classes[class].iter().map(|&id| Entry::Option(id));
        let entries: Vec<Entry> = options.chain([Entry::Class(class)]).collect();
        for entry in entries {
            if steps.is_over() {
                return any;
            }
            let region = find(graph, &landmarks, &place, entry);
            let fresh = |region: &Region| !region.classes.iter().any(|&class| gone[class]);
            if let Some(region) = region.filter(fresh) {
                region.classes.iter().for_each(|&class| gone[class] = true);
                any |= replace(graph, entry, region, steps);
            }
        }
    }
    any
}

/// The largest region of an entry that stops at its landmarks. `place` is
/// where classes stand in the order, children first.
fn find(graph: &Graph, landmarks: &Landmarks, place: &[usize], entry: Entry) -> Option<Region> {
    let (class, certain, start) = match entry {
        Entry::Class(class) if graph.root[class] => return None,
        Entry::Class(class) => (class, landmarks.of_class(class), vec![class]),
        Entry::Option(id) => {
            let opt = &graph.opts[id];
            (opt.class, landmarks.of_option(graph, id), opt.children.clone())
        }
    };
    // Where it starts is certain too, but the region should go on there.
    let mut stops: BTreeSet<usize> =
        certain.iter().copied().filter(|class| !start.contains(class)).collect();
    let is_entry = |id: usize| matches!(entry, Entry::Option(entry) if entry == id);
    loop {
        let mut region = Region { classes: BTreeSet::new(), exits: BTreeSet::new() };
        let mut stack = start.clone();
        while let Some(next) = stack.pop() {
            // A user above the entry, or beside it, is outside for sure.
            let above = |id: usize| place[graph.opts[id].class] >= place[class] && !is_entry(id);
            if next == class && matches!(entry, Entry::Option(_)) {
                return None;
            } else if stops.contains(&next) {
                region.exits.insert(next);
            } else if next != class && (graph.root[next] || graph.users_of(next).any(above)) {
                // What others use too may stay outside if it is certain.
                if !certain.contains(&next) {
                    return None;
                }
                region.exits.insert(next);
            } else if region.classes.insert(next) {
                if region.classes.len() > LARGEST {
                    return None;
                }
                let options = graph.classes[next].iter();
                stack.extend(options.flat_map(|&id| &graph.opts[id].children));
            }
        }
        let inside = |id: usize| is_entry(id) || region.classes.contains(&graph.opts[id].class);
        let is_shared = |&&next: &&usize| next != class && !graph.users_of(next).all(inside);
        let shared: Vec<usize> = region.classes.iter().filter(is_shared).copied().collect();
        if shared.is_empty() {
            let least = if matches!(entry, Entry::Class(_)) { 2 } else { 1 };
            return Some(region).filter(|region| region.classes.len() >= least);
        }
        if !shared.iter().all(|next| certain.contains(next)) {
            return None;
        }
        stops.extend(shared);
    }
}

/// Solves a region and puts its answer into the entry.
fn replace(graph: &mut Graph, entry: Entry, region: Region, steps: &mut Steps) -> bool {
    let part = part::of(graph, region.classes.into_iter().collect(), |class| match entry {
        Entry::Class(entry) => entry == class,
        Entry::Option(id) => graph.opts[id].children.binary_search(&class).is_ok(),
    });
    // A hard region must leave steps for a bound on the whole.
    let mut share = steps.split(4);
    let solved = search::solve(&part, &mut share);
    steps.join(share);
    if solved.lower_bound < solved.cost {
        return false;
    }
    let exits: Vec<usize> = region.exits.into_iter().collect();
    if let Entry::Option(id) = entry {
        graph.rewire(id, solved.cost, &exits);
    }
    for (&class, option) in part.ids.iter().zip(&solved.chosen) {
        graph.decided[class] = option.map(|id| part.options[id].index);
        graph.remove_class(class);
    }
    if let Entry::Class(class) = entry {
        let index = graph.decided[class].unwrap_or_default();
        graph.add(Opt { class, index, cost: solved.cost, children: exits });
    }
    true
}
