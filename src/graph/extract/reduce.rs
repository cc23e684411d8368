//! Reductions that look at one class and its users. Each leaves the least cost
//! as it is, cycles included, and each shrinks the graph.

use std::collections::VecDeque;

/// One option of the reduced graph.
#[derive(Debug, Clone)]
pub(super) struct Opt {
    /// Its class.
    pub class: usize,
    /// Its place among the caller's options.
    pub index: usize,
    /// Its cost and that of the classes merged into it.
    pub cost: u128,
    /// Classes it needs, sorted, each once.
    pub children: Vec<usize>,
}

/// Children that a zero-cost class may hand to its users in all, beyond those
/// it takes away.
const GROWTH: usize = 64;

/// Options a class compares each other one with; only huge classes have more.
const COMPARED: usize = 64;

/// What is left to choose from.
pub(super) struct Graph {
    /// All options ever; gone ones are in no class.
    pub opts: Vec<Opt>,
    /// The options left per class, preferred first; none once it is settled.
    pub classes: Vec<Vec<usize>>,
    /// Classes every graph contains.
    pub root: Vec<bool>,
    /// Classes that may lie on a cycle.
    pub cyclic: Vec<bool>,
    /// The caller's option of each settled class, should it be needed.
    pub decided: Vec<Option<usize>>,
    /// Cost that is certain.
    pub base: u128,
    alive: Vec<bool>,
    /// Options that use a class; may hold some that no longer do.
    users: Vec<Vec<usize>>,
    /// How many really do.
    uses: Vec<usize>,
    queue: VecDeque<usize>,
    queued: Vec<bool>,
}

/// Whether sorted `small` is contained in sorted `large`.
pub(super) fn is_subset(small: &[usize], large: &[usize]) -> bool {
    let mut rest = large.iter();
    small.len() <= large.len() && small.iter().all(|wanted| rest.any(|have| have == wanted))
}

impl Graph {
    /// No options yet; any class may be cyclic.
    pub fn new(count: usize) -> Self {
        Self {
            opts: Vec::new(),
            classes: vec![Vec::new(); count],
            root: vec![false; count],
            cyclic: vec![true; count],
            decided: vec![None; count],
            base: 0,
            alive: Vec::new(),
            users: vec![Vec::new(); count],
            uses: vec![0; count],
            queue: VecDeque::new(),
            queued: vec![false; count],
        }
    }

    /// Adds an option, after the others of its class.
    pub fn add(&mut self, opt: Opt) {
        let id = self.opts.len();
        for &child in &opt.children {
            self.users[child].push(id);
            self.uses[child] += 1;
        }
        self.classes[opt.class].push(id);
        self.opts.push(opt);
        self.alive.push(true);
    }

    /// Asks for another look at a class.
    pub fn touch(&mut self, class: usize) {
        if !self.classes[class].is_empty() && !std::mem::replace(&mut self.queued[class], true) {
            self.queue.push_back(class);
        }
    }

    /// Reduces until no touched class changes.
    pub fn settle(&mut self) {
        while let Some(class) = self.queue.pop_front() {
            self.queued[class] = false;
            self.look_at(class);
        }
    }

    fn look_at(&mut self, class: usize) {
        if self.classes[class].is_empty() {
            return;
        }
        if self.uses[class] == 0 && !self.root[class] {
            return self.remove_class(class);
        }
        self.drop_useless(class);
        let is_free = |&&id: &&usize| self.opts[id].cost == 0 && self.opts[id].children.is_empty();
        if let Some(&id) = self.classes[class].iter().find(is_free) {
            self.decided[class] = Some(self.opts[id].index);
            self.detach(class);
            return self.remove_class(class);
        }
        if let [id] = self.classes[class][..] {
            self.decided[class] = Some(self.opts[id].index);
            if self.root[class] {
                self.force(class, id);
            } else if self.uses[class] == 1 || self.may_spread(class, id) {
                self.substitute(class, id);
            }
        }
    }

    /// The only option of a class that is needed: its cost is certain and its
    /// children are needed too.
    fn force(&mut self, class: usize, id: usize) {
        self.base += std::mem::take(&mut self.opts[id].cost);
        for at in 0..self.opts[id].children.len() {
            let child = self.opts[id].children[at];
            self.require(child);
        }
        if !self.cyclic[class] || self.opts[id].children.is_empty() {
            self.detach(class);
            self.remove_class(class);
        } else if self.may_spread(class, id) {
            self.substitute(class, id);
        }
    }

    /// Makes a class one that every graph contains.
    pub fn require(&mut self, class: usize) -> bool {
        let new = !std::mem::replace(&mut self.root[class], true);
        if new {
            self.touch(class);
        }
        new
    }

    /// Whether the users of a class may take its children instead: no cost
    /// would be counted twice, and the graph does not grow much.
    fn may_spread(&self, class: usize, id: usize) -> bool {
        let Opt { cost, children, .. } = &self.opts[id];
        let grown = self.uses[class].saturating_sub(1) * children.len().saturating_sub(1);
        *cost == 0 && grown <= GROWTH
    }

    /// Merges a class with one option into its users. A path through it
    /// becomes an edge past it, so cycles stay cycles; if one ends where it
    /// began, `drop_useless` sees it.
    fn substitute(&mut self, class: usize, id: usize) {
        let Opt { cost, children, .. } = self.opts[id].clone();
        for user in self.take_users(class) {
            self.opts[user].cost += cost;
            for &child in &children {
                let list = &mut self.opts[user].children;
                if let Err(at) = list.binary_search(&child) {
                    list.insert(at, child);
                    self.users[child].push(user);
                    self.uses[child] += 1;
                }
            }
        }
        self.remove_class(class);
    }

    /// Takes a class out of all child lists: it is there anyway, and no cycle
    /// goes through it.
    pub fn detach(&mut self, class: usize) {
        self.take_users(class);
    }

    /// Whether any option uses the class.
    pub fn is_used(&self, class: usize) -> bool {
        self.uses[class] > 0
    }

    /// The options that use the class, some more than once.
    pub fn users_of(&self, class: usize) -> impl Iterator<Item = usize> + '_ {
        let uses = move |&user: &usize| {
            self.alive[user] && self.opts[user].children.binary_search(&class).is_ok()
        };
        self.users[class].iter().copied().filter(uses)
    }

    /// The options that used the class; they no longer do.
    fn take_users(&mut self, class: usize) -> Vec<usize> {
        let mut users = std::mem::take(&mut self.users[class]);
        users.sort_unstable();
        users.dedup();
        users.retain(|&user| {
            let list = &mut self.opts[user].children;
            let at = if self.alive[user] { list.binary_search(&class).ok() } else { None };
            at.map(|at| list.remove(at)).is_some()
        });
        self.uses[class] = 0;
        for &user in &users {
            self.touch(self.opts[user].class);
        }
        users
    }

    /// Makes an option dearer and gives it other children, sorted.
    pub fn rewire(&mut self, id: usize, cost: u128, children: &[usize]) {
        for child in std::mem::replace(&mut self.opts[id].children, children.to_vec()) {
            self.unuse(child);
        }
        for &child in children {
            self.users[child].push(id);
            self.uses[child] += 1;
        }
        self.opts[id].cost += cost;
        self.touch(self.opts[id].class);
    }

    /// Takes one child out of one option.
    pub fn drop_child(&mut self, id: usize, child: usize) {
        if let Ok(at) = self.opts[id].children.binary_search(&child) {
            self.opts[id].children.remove(at);
            self.unuse(child);
            self.touch(self.opts[id].class);
        }
    }

    fn unuse(&mut self, class: usize) {
        self.uses[class] -= 1;
        if self.uses[class] <= 1 {
            self.touch(class);
        }
    }

    /// Removes one option.
    pub fn drop_option(&mut self, id: usize) {
        let class = self.opts[id].class;
        self.classes[class].retain(|&other| other != id);
        self.kill(id);
        self.touch(class);
    }

    fn kill(&mut self, id: usize) {
        self.alive[id] = false;
        for child in std::mem::take(&mut self.opts[id].children) {
            self.unuse(child);
        }
    }

    /// Removes a class that nothing needs any more, or for a new option.
    pub fn remove_class(&mut self, class: usize) {
        for id in std::mem::take(&mut self.classes[class]) {
            self.kill(id);
        }
    }

    /// Removes options that need their own class, and dominated ones: another
    /// that costs no more and needs no other child can take their place.
    fn drop_useless(&mut self, class: usize) {
        let ids = std::mem::take(&mut self.classes[class]);
        let (looping, mut sorted): (Vec<_>, Vec<_>) = ids
            .iter()
            .copied()
            .partition(|&id| self.opts[id].children.binary_search(&class).is_ok());
        // Stable: of equals the earlier stays.
        sorted.sort_by_key(|&id| (self.opts[id].cost, self.opts[id].children.len()));
        let mut kept: Vec<usize> = Vec::new();
        let mut gone = looping;
        for id in sorted {
            let opts = &self.opts;
            // By the order, those kept cost no more.
            let beaten = |&other: &usize| is_subset(&opts[other].children, &opts[id].children);
            if kept.iter().take(COMPARED).any(beaten) { &mut gone } else { &mut kept }.push(id);
        }
        gone.into_iter().for_each(|id| self.kill(id));
        self.classes[class] = ids;
        let alive = &self.alive;
        self.classes[class].retain(|&id| alive[id]);
    }
}
