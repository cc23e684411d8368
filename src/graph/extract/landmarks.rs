//! Classes that every graph must contain, and what follows from them.

use super::reduce::{is_subset, Graph};
use super::scc;

/// Landmarks kept per class, the nearest ones: those further away are found
/// from the nearer.
const KEPT: usize = 24;

/// Rounds of reduction; each is linear, and few graphs need a third.
const ROUNDS: usize = 12;

/// Rounds over the members of a cycle. Any number is sound.
const CYCLE_ROUNDS: usize = 2;

/// Reduces the graph until nothing changes.
pub(super) fn simplify(graph: &mut Graph) {
    (0..graph.classes.len()).for_each(|class| graph.touch(class));
    for _ in 0..ROUNDS {
        let order = scc::order(graph);
        mark_cycles(graph, &order);
        graph.settle();
        if !Landmarks::of(graph, &scc::order(graph)).apply(graph) {
            break;
        }
    }
    graph.settle();
}

fn mark_cycles(graph: &mut Graph, order: &scc::Order) {
    let mut begin = 0;
    for &end in &order.ends {
        for &class in &order.classes[begin..end] {
            // Options on their own class are dropped before they matter.
            graph.cyclic[class] = end - begin > 1;
        }
        begin = end;
    }
}

/// For each class, some of the classes that every graph with it contains,
/// itself among them.
pub(super) struct Landmarks {
    /// Landmarks as places in `order`, sorted, by class.
    of: Vec<Vec<usize>>,
    /// Classes, children first.
    order: Vec<usize>,
}

impl Landmarks {
    /// Derives them, children first.
    pub fn of(graph: &Graph, order: &scc::Order) -> Self {
        let mut place = vec![0; graph.classes.len()];
        let mut landmarks =
            Self { of: vec![Vec::new(); place.len()], order: order.classes.clone() };
        for (at, &class) in order.classes.iter().enumerate() {
            place[class] = at;
            landmarks.of[class].push(at);
        }
        let mut begin = 0;
        for &end in &order.ends {
            for _ in 0..if end - begin > 1 { CYCLE_ROUNDS } else { 1 } {
                for (at, &class) in order.classes[begin..end].iter().enumerate() {
                    landmarks.of[class] = landmarks.derive(graph, class, begin + at);
                }
            }
            begin = end;
        }
        landmarks
    }

    /// Classes that every graph with `class` contains.
    pub fn of_class(&self, class: usize) -> Vec<usize> {
        self.of[class].iter().map(|&at| self.order[at]).collect()
    }

    /// Classes that every graph with an option contains.
    pub fn of_option(&self, graph: &Graph, id: usize) -> Vec<usize> {
        self.closure(graph, id).into_iter().map(|at| self.order[at]).collect()
    }

    /// Its own place, and what all its options have in common.
    fn derive(&self, graph: &Graph, class: usize, place: usize) -> Vec<usize> {
        let mut options = graph.classes[class].iter();
        let mut common = options.next().map_or_else(Vec::new, |&id| self.closure(graph, id));
        for &id in options {
            if common.is_empty() {
                break;
            }
            let other = self.closure(graph, id);
            common.retain(|at| other.binary_search(at).is_ok());
        }
        if let Err(at) = common.binary_search(&place) {
            common.insert(at, place);
        }
        common.drain(..common.len().saturating_sub(KEPT));
        common
    }

    /// Places of all that an option needs for certain.
    fn closure(&self, graph: &Graph, id: usize) -> Vec<usize> {
        let children = &graph.opts[id].children;
        let mut all: Vec<usize> =
            children.iter().flat_map(|&child| self.of[child].iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Uses the landmarks. A landmark stays one when options go, so all rules
    /// may use the same sets. Says whether anything changed.
    fn apply(&self, graph: &mut Graph) -> bool {
        let mut changed = self.drop_implied(graph);
        changed |= self.drop_dominated(graph);
        let mut stack: Vec<usize> =
            self.order.iter().copied().filter(|&class| graph.root[class]).collect();
        while let Some(class) = stack.pop() {
            for &at in &self.of[class] {
                if graph.require(self.order[at]) {
                    changed = true;
                    stack.push(self.order[at]);
                }
            }
        }
        for &class in &self.order {
            if graph.root[class] && !graph.cyclic[class] && graph.is_used(class) {
                graph.detach(class);
                changed = true;
            }
        }
        changed
    }

    /// A child that another child needs for certain says nothing new. Two
    /// cannot imply each other: neither could be computed.
    fn drop_implied(&self, graph: &mut Graph) -> bool {
        let mut changed = false;
        for &class in &self.order {
            for id in graph.classes[class].clone() {
                let children = &graph.opts[id].children;
                if children.len() < 2 {
                    continue;
                }
                let below = |&child: &usize| {
                    self.of[child].iter().map(|&at| self.order[at]).filter(move |&c| c != child)
                };
                let mut implied: Vec<usize> = children.iter().flat_map(below).collect();
                implied.retain(|class| children.binary_search(class).is_ok());
                changed |= !implied.is_empty();
                implied.into_iter().for_each(|child| graph.drop_child(id, child));
            }
        }
        changed
    }

    /// An option is dominated also by one whose children it needs further
    /// down: they cannot depend on the class, or it would lie on a cycle.
    fn drop_dominated(&self, graph: &mut Graph) -> bool {
        const COMPARED: usize = 16;
        let mut changed = false;
        for &class in &self.order {
            if graph.classes[class].len() < 2 {
                continue;
            }
            let mut ids = graph.classes[class].clone();
            ids.truncate(COMPARED);
            // The later first: of equals the earlier stays.
            for &id in ids.iter().rev() {
                let mut needs = self.of_option(graph, id);
                needs.sort_unstable();
                let (opts, left) = (&graph.opts, &graph.classes[class]);
                let beaten = left.iter().any(|&other| {
                    other != id
                        && opts[other].cost <= opts[id].cost
                        && is_subset(&opts[other].children, &needs)
                });
                if beaten {
                    graph.drop_option(id);
                    changed = true;
                }
            }
        }
        changed
    }
}
