//! Stages of tasks that any number of threads work off together. A thread takes
//! the next task in order and, before the first of a stage, waits until the stage
//! before is done. Whoever took a task is running, so this ends however many
//! threads come, also if it is one, also if one comes late.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Looks at a counter before the thread offers its core to others.
const SPINS: usize = 2_000;

/// Work of several stages.
#[derive(Debug)]
pub struct Schedule {
    /// Where each stage's tasks end, counted from the first stage's first.
    ends: Vec<usize>,
    /// Parts that each stage is divided into, one after the other.
    shares: usize,
    /// Taken of each share of each stage.
    taken: Vec<Counter>,
    done: Counter,
    failed: AtomicBool,
}

/// In cache lines of its own (two are fetched together).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

impl Schedule {
    /// Stages of so many tasks each, taken in order by whoever is free.
    #[must_use]
    pub fn new(tasks: impl IntoIterator<Item = usize>) -> Self {
        Self::shared_out(tasks, 1)
    }

    /// The same, but each stage is divided into so many parts, and a thread takes its own
    /// part first: call after call it finds what the part reads in its core's caches.
    #[must_use]
    pub fn shared_out(tasks: impl IntoIterator<Item = usize>, shares: usize) -> Self {
        let ends = tasks.into_iter().scan(0, |end, tasks| {
            *end += tasks;
            Some(*end)
        });
        let ends: Vec<usize> = ends.collect();
        let taken = (0..ends.len() * shares).map(|_| Counter::default()).collect();
        Self { ends, shares, taken, done: Counter::default(), failed: AtomicBool::new(false) }
    }

    /// Runs `task(stage, task)` until none is left for thread `me`, any number. False if
    /// a task panicked in some thread: then the work is not complete.
    pub fn work(&self, me: usize, mut task: impl FnMut(usize, usize)) -> bool {
        let mut begin = 0;
        for (stage, &end) in self.ends.iter().enumerate() {
            let at = |share: usize| begin + (end - begin) * share / self.shares;
            let taken = &self.taken[stage * self.shares..][..self.shares];
            for share in (0..self.shares).map(|turn| (me + turn) % self.shares) {
                loop {
                    let next = at(share) + taken[share].0.fetch_add(1, Ordering::Relaxed);
                    if next >= at(share + 1) {
                        break;
                    }
                    if !self.wait_for(begin) {
                        return false;
                    }
                    let watch = Watch(&self.failed);
                    task(stage, next - begin);
                    std::mem::forget(watch);
                    // Release: whoever sees the count sees what the task wrote.
                    self.done.0.fetch_add(1, Ordering::Release);
                }
            }
            begin = end;
        }
        !self.failed.load(Ordering::Relaxed)
    }

    /// Until `tasks` are done. They are the first ones: nobody starts a later one
    /// before.
    fn wait_for(&self, tasks: usize) -> bool {
        let mut looks = 0;
        while self.done.0.load(Ordering::Acquire) < tasks {
            if self.failed.load(Ordering::Relaxed) {
                return false;
            }
            looks += 1;
            if looks < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        true
    }
}

/// Dropped by a panic alone.
struct Watch<'a>(&'a AtomicBool);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_behind_the_stage_before() {
        for (threads, shares) in [(1, 1), (2, 1), (5, 1), (1, 2), (2, 2), (5, 3), (3, 5)] {
            for round in 0..50 {
                let tasks = [3, 0, 1 + round % 7, 20, 1];
                let schedule = Schedule::shared_out(tasks, shares);
                let runs: Vec<Vec<AtomicUsize>> =
                    tasks.map(|n| (0..n).map(|_| AtomicUsize::new(0)).collect()).into();
                std::thread::scope(|scope| {
                    for me in 0..threads {
                        let (schedule, runs) = (&schedule, &runs);
                        scope.spawn(move || {
                            assert!(schedule.work(me, |stage, task| {
                                for before in runs[..stage].iter().flatten() {
                                    assert_eq!(before.load(Ordering::Relaxed), 1);
                                }
                                runs[stage][task].fetch_add(1, Ordering::Relaxed);
                            }));
                        });
                    }
                });
                assert!(runs.iter().flatten().all(|run| run.load(Ordering::Relaxed) == 1));
                assert!(schedule.work(0, |_, _| panic!("nothing is left")));
            }
        }
    }

    #[test]
    fn a_thread_takes_its_own_part_first() {
        let order = |me: usize| {
            let mut order = Vec::new();
            assert!(
                Schedule::shared_out([2, 5], 2).work(me, |stage, task| order.push((stage, task)))
            );
            order
        };
        assert_eq!(order(0), [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]);
        assert_eq!(order(3), [(0, 1), (0, 0), (1, 2), (1, 3), (1, 4), (1, 0), (1, 1)]);
    }

    #[test]
    fn a_panic_reaches_every_thread() {
        let schedule = Schedule::new([4, 4]);
        let ok = std::thread::scope(|scope| {
            let run = || {
                let work = || schedule.work(0, |stage, task| assert!(stage == 1 || task != 2));
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
            };
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|t| t.join().expect("caught")).collect::<Vec<_>>()
        });
        assert_eq!(ok.iter().filter(|done| done.is_err()).count(), 1);
        assert!(ok.iter().all(|done| !matches!(done, Ok(true))));
    }
}
