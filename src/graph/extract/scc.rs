//! Strongly connected components of the classes, without recursion.

use super::reduce::Graph;

/// The classes of a graph, every one after those it depends on (but for
/// cycles), and where the cycles are.
pub(super) struct Order {
    /// The classes; members of a cycle stand together.
    pub classes: Vec<usize>,
    /// Ends of the components within `classes`.
    pub ends: Vec<usize>,
}

/// Tarjan's algorithm over all classes that have options left.
pub(super) fn order(graph: &Graph) -> Order {
    const NEW: usize = usize::MAX;
    let count = graph.classes.len();
    let (mut number, mut low) = (vec![NEW; count], vec![NEW; count]);
    let mut on_stack = vec![false; count];
    let (mut stack, mut path) = (Vec::new(), Vec::<(usize, usize, usize)>::new());
    let mut next = 0;
    let mut answer = Order { classes: Vec::new(), ends: Vec::new() };
    for start in 0..count {
        if graph.classes[start].is_empty() || number[start] != NEW {
            continue;
        }
        let mut enter = Some(start);
        loop {
            if let Some(class) = enter.take() {
                (number[class], low[class]) = (next, next);
                next += 1;
                stack.push(class);
                on_stack[class] = true;
                path.push((class, 0, 0));
            }
            let Some(&mut (class, ref mut option, ref mut at)) = path.last_mut() else { break };
            let Some(&opt) = graph.classes[class].get(*option) else {
                path.pop();
                if let Some(&(parent, ..)) = path.last() {
                    low[parent] = low[parent].min(low[class]);
                }
                if low[class] == number[class] {
                    while let Some(member) = stack.pop() {
                        on_stack[member] = false;
                        answer.classes.push(member);
                        if member == class {
                            break;
                        }
                    }
                    answer.ends.push(answer.classes.len());
                }
                continue;
            };
            match graph.opts[opt].children.get(*at) {
                None => (*option, *at) = (*option + 1, 0),
                Some(&child) => {
                    *at += 1;
                    if number[child] == NEW {
                        enter = Some(child);
                    } else if on_stack[child] {
                        low[class] = low[class].min(number[child]);
                    }
                }
            }
        }
    }
    answer
}
