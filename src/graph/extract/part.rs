//! Parts of the reduced graph that share nothing, as flat arrays.

use super::reduce::Graph;

/// One option of a part.
pub(super) struct PartOption {
    /// Its class.
    pub class: usize,
    /// Its place among the caller's options.
    pub index: usize,
    /// Its cost.
    pub cost: u128,
    /// Classes it needs, each once.
    pub children: Vec<usize>,
}

/// A part: classes from 0, their options side by side.
pub(super) struct Part {
    /// The options, by class, preferred first.
    pub options: Vec<PartOption>,
    /// Where each class's options begin; one more entry ends the last.
    begins: Vec<usize>,
    /// The options that use each class.
    pub users: Vec<Vec<usize>>,
    /// Classes that must be computed.
    pub roots: Vec<usize>,
    /// The caller's class of each.
    pub ids: Vec<usize>,
}

impl Part {
    /// How many classes it has.
    pub fn classes(&self) -> usize {
        self.ids.len()
    }

    /// The options of a class.
    pub fn options_of(&self, class: usize) -> std::ops::Range<usize> {
        self.begins[class]..self.begins[class + 1]
    }

    /// From options sorted by class.
    fn new(ids: Vec<usize>, roots: Vec<usize>, options: Vec<PartOption>) -> Self {
        let mut begins = vec![0; ids.len() + 1];
        let mut users = vec![Vec::new(); ids.len()];
        for (id, option) in options.iter().enumerate() {
            begins[option.class + 1] = id + 1;
            option.children.iter().for_each(|&child| users[child].push(id));
        }
        // A class without options ends where it begins.
        for class in 0..ids.len() {
            begins[class + 1] = begins[class + 1].max(begins[class]);
        }
        Self { options, begins, users, roots, ids }
    }
}

/// The representative of a set, with the path to it halved.
fn find(parent: &mut [usize], mut class: usize) -> usize {
    while parent[class] != class {
        parent[class] = parent[parent[class]];
        class = parent[class];
    }
    class
}

/// Splits what is left of the graph.
pub(super) fn split(graph: &Graph) -> Vec<Part> {
    let count = graph.classes.len();
    let mut parent: Vec<usize> = (0..count).collect();
    for class in 0..count {
        for &id in &graph.classes[class] {
            for &child in &graph.opts[id].children {
                let (a, b) = (find(&mut parent, class), find(&mut parent, child));
                // The lower leads, so that parts come in the order of classes.
                parent[a.max(b)] = a.min(b);
            }
        }
    }
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); count];
    for class in (0..count).filter(|&class| !graph.classes[class].is_empty()) {
        members[find(&mut parent, class)].push(class);
    }
    let members = members.into_iter().filter(|ids| !ids.is_empty());
    members.map(|ids| of(graph, ids, |class| graph.root[class])).collect()
}

/// The part of the classes `ids`, which are sorted; children beyond are left
/// out.
pub(super) fn of(graph: &Graph, ids: Vec<usize>, is_root: impl Fn(usize) -> bool) -> Part {
    let local = |class: &usize| ids.binary_search(class).ok();
    let option = |(class, &id): (usize, &usize)| {
        let opt = &graph.opts[id];
        let children = opt.children.iter().filter_map(local).collect();
        PartOption { class, index: opt.index, cost: opt.cost, children }
    };
    let of_class = |(at, &class): (usize, &usize)| {
        graph.classes[class].iter().map(move |id| (at, id)).map(option).collect::<Vec<_>>()
    };
    let options = ids.iter().enumerate().flat_map(of_class).collect();
    let roots = (0..ids.len()).filter(|&at| is_root(ids[at])).collect();
    Part::new(ids, roots, options)
}
