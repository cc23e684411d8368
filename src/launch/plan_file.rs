//! A file of timed plans on disk (`plan::kept` has its text): read once, appended to
//! one whole line at a time, so that processes may share it without locks. Nothing that
//! a file or folder can be makes this panic, wait or read without bound.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::plan::kept::{key, text, Kept, MOST};
use crate::plan::problem::Gemm;

/// Why plans were not read or kept: one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// `expected …, got …`.
    pub sentence: String,
    /// There is a file that is not what it should be; else it could not be had.
    pub damage: bool,
}

/// The file for one header in one folder, which need not exist yet.
pub struct PlanFile {
    path: PathBuf,
    header: String,
    state: Mutex<State>,
}

struct State {
    plans: HashMap<Gemm, Kept>,
    /// Lines that may still be written; none once something went wrong.
    room: usize,
    /// The next begins with an end: the file had none.
    unended: bool,
}

impl PlanFile {
    /// Reads the file, if there is one. A foreign or unreadable one counts as empty and
    /// is left alone; damaged lines are left out, and dropped from it if it can be
    /// written.
    pub fn open(folder: &Path, header: &text::Header) -> (Self, Option<Trouble>) {
        let header = header.to_string();
        let path = folder.join(text::file_name(&header));
        let state = State { plans: HashMap::new(), room: 0, unended: false };
        let mut opened = Self { path, header, state: Mutex::new(state) };
        let trouble = opened.read().err();
        (opened, trouble)
    }

    fn read(&mut self) -> Result<(), Trouble> {
        let shown = self.path.display();
        let mut bytes = vec![];
        match existing(OpenOptions::new().read(true), &self.path) {
            Ok(file) => {
                // One byte more tells that there is more.
                let all = file.take(text::MOST_BYTES + 1).read_to_end(&mut bytes);
                if all.map_err(|error| self.unread(&error))? as u64 > text::MOST_BYTES {
                    let sentence = format!(
                        "expected at most {} bytes of timed plans in {shown}, got more; the file is ignored",
                        text::MOST_BYTES
                    );
                    return Err(Trouble { sentence, damage: true });
                }
            }
            // There is none yet; `keep` says so if there cannot be one.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                self.state().room = MOST;
                return Ok(());
            }
            Err(error) => return Err(self.unread(&error)),
        }
        if bytes.is_empty() {
            // As a crash may leave it.
            let _ = self.create(&text::render(&self.header, []), true);
            self.state().room = MOST;
            return Ok(());
        }
        let contents = text::parse(&bytes, &self.header).map_err(|got| Trouble {
            sentence: format!(
                "expected {shown} to begin with {:?}, got {got:?}; the file is ignored",
                self.header
            ),
            damage: true,
        })?;
        let mut left = MOST.saturating_sub(contents.lines);
        let mut unended = !contents.ended;
        if contents.wants_rewriting() {
            // A folder that cannot be written shows when the next plan is kept.
            let whole = text::render(&self.header, &contents.plans);
            if self.create(&whole, true).is_ok() {
                (left, unended) = (MOST - contents.plans.len(), false);
            }
        }
        let mut state = self.state();
        (state.room, state.unended) = (left, unended);
        state.plans = contents.plans.iter().map(|kept| (kept.gemm, *kept)).collect();
        if contents.damaged == 0 {
            return Ok(());
        }
        let sentence = format!(
            "expected {} whole lines of timed plans in {shown}, got {} that are damaged; these are ignored",
            contents.lines, contents.damaged
        );
        Err(Trouble { sentence, damage: true })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Plans known now, read or kept.
    pub fn known(&self) -> usize {
        self.state().plans.len()
    }

    /// The plan for a product, from whichever process.
    pub fn find(&self, gemm: &Gemm) -> Option<Kept> {
        self.state().plans.get(&key(gemm)).copied()
    }

    /// Appends a plan. After a failure no other is written: it would fail again.
    ///
    /// # Errors
    /// Why it could not be written, once.
    pub fn keep(&self, kept: Kept) -> Result<(), Trouble> {
        let mut state = self.state();
        state.plans.insert(kept.gemm, kept);
        if state.room == 0 {
            return Ok(());
        }
        state.room -= 1;
        let end = if std::mem::take(&mut state.unended) { "\n" } else { "" };
        self.append(&format!("{end}{kept}\n")).map_err(|error| {
            state.room = 0;
            let shown = self.path.display();
            let sentence =
                format!("expected to keep timed plans in {shown}, got: {error}; no more are kept");
            Trouble { sentence, damage: false }
        })
    }

    // A panic while the lock was held cannot have left half a plan.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unread(&self, error: &io::Error) -> Trouble {
        let shown = self.path.display();
        let sentence =
            format!("expected to read timed plans in {shown}, got: {error}; the file is ignored");
        Trouble { sentence, damage: error.kind() != ErrorKind::PermissionDenied }
    }

    fn append(&self, lines: &str) -> io::Result<()> {
        match existing(OpenOptions::new().append(true), &self.path) {
            Ok(file) => at_once(&file, lines),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.create(&format!("{}\n{lines}", self.header), false)?;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the file with all of `whole` in it or not at all: no process sees half.
    /// Where another was faster, only what is behind the header is appended to its
    /// file, unless `whole` is to replace that.
    fn create(&self, whole: &str, replace: bool) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let beside = self.beside();
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&beside)?;
        let made = at_once(&file, whole).and_then(|()| {
            if replace {
                return std::fs::rename(&beside, &self.path);
            }
            match std::fs::hard_link(&beside, &self.path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let lines = whole.split_once('\n').map_or("", |(_, lines)| lines);
                    at_once(&existing(OpenOptions::new().append(true), &self.path)?, lines)
                }
                // File systems without links; what others write meanwhile is lost, and
                // will be timed again.
                Err(_) => std::fs::rename(&beside, &self.path),
                Ok(()) => Ok(()),
            }
        });
        let _ = std::fs::remove_file(&beside); // Gone if it was renamed.
        made
    }

    /// A name that no other process or thread has.
    fn beside(&self) -> PathBuf {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mut name = self.path.clone().into_os_string();
        // Process numbers come again, in containers above all.
        name.push(format!(".{}.{count}.{now:x}", std::process::id()));
        name.into()
    }
}

/// An existing regular file of this user's; never waits, as for the other end of a pipe.
fn existing(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("something that is no file"));
    }
    // SAFETY: takes nothing and always succeeds.
    let me = unsafe { libc::geteuid() };
    if found.uid() != me {
        let (owner, text) = (found.uid(), "a file that belongs to user");
        return Err(io::Error::other(format!("{text} {owner}, not to user {me}")));
    }
    Ok(file)
}

/// One write: lines of processes that append do not mix. A part of a line (a full disk)
/// is found by its checksum later.
fn at_once(mut file: &File, text: &str) -> io::Result<()> {
    let written = file.write(text.as_bytes())?;
    if written < text.len() {
        let short = format!("{written} of {} bytes written", text.len());
        return Err(io::Error::new(ErrorKind::WriteZero, short));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
