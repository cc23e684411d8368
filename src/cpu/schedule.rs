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
    next: AtomicUsize,
    done: AtomicUsize,
    failed: AtomicBool,
}

impl Schedule {
    /// Stages of so many tasks each.
    #[must_use]
    pub fn new(tasks: impl IntoIterator<Item = usize>) -> Self {
        let ends = tasks.into_iter().scan(0, |end, tasks| {
            *end += tasks;
            Some(*end)
        });
        Self {
            ends: ends.collect(),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// Runs `task(stage, task)` until none is left for this thread. False if a
    /// task panicked in some thread: then the work is not complete.
    pub fn work(&self, mut task: impl FnMut(usize, usize)) -> bool {
        let mut stage = 0;
        loop {
            let taken = self.next.fetch_add(1, Ordering::Relaxed);
            while stage < self.ends.len() && taken >= self.ends[stage] {
                stage += 1;
            }
            if stage == self.ends.len() {
                return !self.failed.load(Ordering::Relaxed);
            }
            let begin = if stage == 0 { 0 } else { self.ends[stage - 1] };
            if !self.wait_for(begin) {
                return false;
            }
            let watch = Watch(&self.failed);
            task(stage, taken - begin);
            std::mem::forget(watch);
            // Release: whoever sees the count sees what the task wrote.
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    /// Until `tasks` are done. They are the first ones: nobody starts a later one
    /// before.
    fn wait_for(&self, tasks: usize) -> bool {
        let mut looks = 0;
        while self.done.load(Ordering::Acquire) < tasks {
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
        for threads in [1, 2, 5] {
            for round in 0..50 {
                let tasks = [3, 0, 1 + round % 7, 20, 1];
                let schedule = Schedule::new(tasks);
                let runs: Vec<Vec<AtomicUsize>> =
                    tasks.map(|n| (0..n).map(|_| AtomicUsize::new(0)).collect()).into();
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(|| {
                            assert!(schedule.work(|stage, task| {
                                for before in runs[..stage].iter().flatten() {
                                    assert_eq!(before.load(Ordering::Relaxed), 1);
                                }
                                runs[stage][task].fetch_add(1, Ordering::Relaxed);
                            }));
                        });
                    }
                });
                assert!(runs.iter().flatten().all(|run| run.load(Ordering::Relaxed) == 1));
                assert!(schedule.work(|_, _| panic!("nothing is left")));
            }
        }
    }

    #[test]
    fn a_panic_reaches_every_thread() {
        let schedule = Schedule::new([4, 4]);
        let ok = std::thread::scope(|scope| {
            let run = || {
                let work = || schedule.work(|stage, task| assert!(stage == 1 || task != 2));
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
            };
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|t| t.join().expect("caught")).collect::<Vec<_>>()
        });
        assert_eq!(ok.iter().filter(|done| done.is_err()).count(), 1);
        assert!(ok.iter().all(|done| !matches!(done, Ok(true))));
    }
}
