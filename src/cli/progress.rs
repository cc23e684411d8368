//! What the program is at, on stderr, once it takes long.

use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Silent for a while, then a line for every stage.
#[derive(Debug)]
pub struct Progress {
    stages: Option<Sender<Event>>,
    thread: Option<JoinHandle<()>>,
}

enum Event {
    Stage(&'static str),
    Done,
}

impl Progress {
    /// Silent for `patience`.
    pub fn new(patience: Duration, mut say: impl FnMut(&str) + Send + 'static) -> Self {
        let (stages, events) = channel();
        let start = Instant::now();
        let thread = std::thread::Builder::new().name("progress".into()).spawn(move || {
            let mut past: Vec<(&str, Instant)> = vec![];
            let mut talking = false;
            loop {
                let event = if talking {
                    events.recv().map_err(|_| RecvTimeoutError::Disconnected)
                } else {
                    events.recv_timeout(patience.saturating_sub(start.elapsed()))
                };
                match event {
                    Ok(Event::Stage(name)) => {
                        past.push((name, Instant::now()));
                        if talking {
                            say(&format!("{name} …"));
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        talking = true;
                        if let Some((name, _)) = past.last() {
                            say(&format!("{name} …"));
                        }
                    }
                    Ok(Event::Done) if talking => return say(&summary(start, &past)),
                    // A failure: its sentence is the last word.
                    Ok(Event::Done) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        // Without a thread there is no progress to see, and nothing is wrong.
        Self { stages: Some(stages), thread: thread.ok() }
    }

    /// The next stage begins.
    pub fn stage(&self, name: &'static str) {
        self.send(Event::Stage(name));
    }

    /// All is done: says so, with times, if anything was said before.
    pub fn done(self) {
        self.send(Event::Done);
    }

    fn send(&self, event: Event) {
        if let Some(stages) = &self.stages {
            let _ = stages.send(event);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stages = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn summary(start: Instant, past: &[(&str, Instant)]) -> String {
    let now = Instant::now();
    let ends = past.iter().skip(1).map(|(_, begun)| *begun).chain([now]);
    let times: Vec<String> = past
        .iter()
        .zip(ends)
        .map(|((name, begun), end)| format!("{name} {:.1}", (end - *begun).as_secs_f64()))
        .collect();
    format!("done in {:.1} s ({})", (now - start).as_secs_f64(), times.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn collected(patience: Duration) -> (Progress, Arc<Mutex<Vec<String>>>) {
        let lines = Arc::new(Mutex::new(vec![]));
        let into = Arc::clone(&lines);
        (Progress::new(patience, move |line| into.lock().unwrap().push(line.to_owned())), lines)
    }

    #[test]
    fn nothing_when_it_is_quick() {
        let (progress, lines) = collected(Duration::from_secs(600));
        progress.stage("loading");
        progress.stage("saving");
        progress.done();
        assert!(lines.lock().unwrap().is_empty());
    }

    #[test]
    fn every_stage_from_then_on_and_the_times() {
        let (progress, lines) = collected(Duration::ZERO);
        progress.stage("loading");
        // Until the thread has been impatient once.
        while lines.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        progress.stage("saving");
        progress.done();
        let lines = lines.lock().unwrap();
        assert_eq!(lines[..2], ["loading …", "saving …"]);
        assert!(
            lines[2].starts_with("done in 0.") && lines[2].contains("(loading 0."),
            "{lines:?}"
        );
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn a_failure_has_the_last_word() {
        let (progress, lines) = collected(Duration::ZERO);
        progress.stage("loading");
        while lines.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(progress);
        assert_eq!(*lines.lock().unwrap(), ["loading …"]);
    }
}
