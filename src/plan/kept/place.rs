//! Where files of plans are, from the environment.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// A folder of plans, which may not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The folder.
    pub folder: PathBuf,
    /// The user named it, so should hear if it is of no use.
    pub named: bool,
}

/// The folder by `HYPATIA_PLAN_CACHE`: a directory; `0`, `off` or nothing for none;
/// `1`, `on` or unset for `hypatia` in the user's cache (`XDG_CACHE_HOME`, else
/// `.cache` in `HOME`), none where neither is an absolute path.
#[must_use]
pub fn place(
    wanted: Option<&OsStr>,
    xdg_cache_home: Option<&OsStr>,
    home: Option<&OsStr>,
) -> Option<Place> {
    let absolute = |path: &OsStr| Some(Path::new(path).to_owned()).filter(|p| p.is_absolute());
    match wanted {
        Some(value) if value.is_empty() || value == "0" || value == "off" => None,
        Some(value) if value != "1" && value != "on" => {
            Some(Place { folder: value.into(), named: true })
        }
        _ => {
            let cache = xdg_cache_home.and_then(absolute);
            let cache = cache.or_else(|| Some(home.and_then(absolute)?.join(".cache")))?;
            Some(Place { folder: cache.join("hypatia"), named: false })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(wanted: Option<&str>, xdg: Option<&str>, home: Option<&str>) -> Option<String> {
        let place = place(wanted.map(OsStr::new), xdg.map(OsStr::new), home.map(OsStr::new))?;
        assert_eq!(place.named, !matches!(wanted, None | Some("1" | "on")));
        Some(place.folder.into_os_string().into_string().unwrap())
    }

    #[test]
    fn the_users_word_then_the_usual_places() {
        let home = Some("/home/a");
        assert_eq!(folder(None, None, home).as_deref(), Some("/home/a/.cache/hypatia"));
        assert_eq!(folder(None, Some("/x"), home).as_deref(), Some("/x/hypatia"));
        assert_eq!(folder(Some("1"), Some("/x"), home).as_deref(), Some("/x/hypatia"));
        assert_eq!(folder(Some("on"), None, home).as_deref(), Some("/home/a/.cache/hypatia"));
        assert_eq!(folder(Some("/p"), Some("/x"), home).as_deref(), Some("/p"));
        assert_eq!(folder(Some("p/q"), None, None).as_deref(), Some("p/q"));
    }

    #[test]
    fn nothing_where_it_is_off_or_there_is_no_home() {
        for off in ["", "0", "off"] {
            assert_eq!(folder(Some(off), Some("/x"), Some("/home/a")), None);
        }
        assert_eq!(folder(None, None, None), None);
        assert_eq!(folder(None, Some(""), Some("")), None);
        assert_eq!(folder(None, Some("relative"), Some("relative")), None);
        assert_eq!(
            folder(None, Some("relative"), Some("/h")).as_deref(),
            Some("/h/.cache/hypatia")
        );
    }
}
