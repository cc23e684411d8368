//! A file that appears whole or not at all.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A temporary file beside the one to write; removed unless committed.
#[derive(Debug)]
pub struct Pending {
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl Pending {
    /// Fails early: before the work whose result the file is for.
    ///
    /// # Errors
    /// The sentence for the user.
    pub fn new(path: &Path) -> Result<Self, String> {
        // Through a link, to the file that it names.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let shown = path.display();
        if target.is_dir() {
            return Err(format!("expected a file to write, got the folder {shown}"));
        }
        // Renaming onto a device would replace it.
        if target.exists() && !target.is_file() {
            return Err(format!("expected a file to write, got {shown}, which is no regular file"));
        }
        let Some(name) = target.file_name() else {
            return Err(format!("expected a file to write, got {shown}"));
        };
        let folder = match target.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Some(folder) => folder,
            None => Path::new("/"),
        };
        if !folder.is_dir() {
            let folder = folder.display();
            return Err(format!("expected a folder for {shown}, got none at {folder}"));
        }
        // Two of one process may be for the same file.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".{}.{}-{id}.partial", name.to_string_lossy(), std::process::id());
        let temporary = folder.join(name);
        // Not somebody's file or link of that name.
        let created = OpenOptions::new().write(true).create_new(true).open(&temporary);
        match created {
            Ok(_) => Ok(Self { temporary, target, committed: false }),
            Err(error) => {
                Err(format!("expected to write into {}, got \"{error}\"", folder.display()))
            }
        }
    }

    /// Where to write.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Where it will be.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// The sentence for the user; the temporary file is removed.
    pub fn commit(mut self) -> Result<(), String> {
        self.put().map_err(|error| {
            format!("expected to write {}, got \"{error}\"", self.target.display())
        })?;
        self.committed = true;
        Ok(())
    }

    fn put(&self) -> io::Result<()> {
        if let Ok(old) = fs::metadata(&self.target) {
            fs::set_permissions(&self.temporary, old.permissions())?;
        }
        // On the disk before the name changes: a crash leaves the old file or
        // the new one.
        OpenOptions::new().read(true).open(&self.temporary)?.sync_all()?;
        fs::rename(&self.temporary, &self.target)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{symlink, PermissionsExt};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hypatia-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        fn files(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<String> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn appears_when_committed_with_the_old_permissions() {
        let folder = Folder::new("commit");
        let path = folder.0.join("a");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let pending = Pending::new(&path).unwrap();
        fs::write(pending.temporary(), "new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        pending.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(folder.files(), ["a"]);
    }

    #[test]
    fn leaves_nothing_when_dropped() {
        let folder = Folder::new("drop");
        let pending = Pending::new(&folder.0.join("a")).unwrap();
        assert_eq!(folder.files().len(), 1);
        drop(pending);
        assert!(folder.files().is_empty());
    }

    #[test]
    fn leaves_nothing_when_the_rename_fails() {
        let folder = Folder::new("rename");
        let path = folder.0.join("a");
        let pending = Pending::new(&path).unwrap();
        // Somebody made a folder of that name meanwhile.
        fs::create_dir(&path).unwrap();
        let error = pending.commit().unwrap_err();
        assert!(error.starts_with("expected to write ") && error.contains("got \""), "{error}");
        assert_eq!(folder.files(), ["a"]);
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = Folder::new("link");
        fs::write(folder.0.join("a"), "old").unwrap();
        symlink("a", folder.0.join("b")).unwrap();
        let pending = Pending::new(&folder.0.join("b")).unwrap();
        fs::write(pending.temporary(), "new").unwrap();
        pending.commit().unwrap();
        assert!(folder.0.join("b").is_symlink());
        assert_eq!(fs::read(folder.0.join("a")).unwrap(), b"new");
    }

    #[test]
    fn what_is_no_place_for_a_file() {
        let folder = Folder::new("place");
        for (path, text) in [
            (folder.0.clone(), "got the folder"),
            (folder.0.join("no/file"), "expected a folder for"),
            (PathBuf::from("/dev/null"), "no regular file"),
            (PathBuf::from("/proc/hypatia"), "expected to write into /proc, got \""),
            (PathBuf::from(".."), "got the folder"),
        ] {
            let error = Pending::new(&path).unwrap_err();
            assert!(error.contains(text), "{error:?} is not {text:?}");
        }
    }
}
