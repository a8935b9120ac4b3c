use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;

use super::place::bytes;

/// Nobody waits longer for the size of a directory before a plan is shown.
const PATIENCE: Duration = Duration::from_secs(2);

/// What stands at a path: how much, and how new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    /// When the newest file was written.
    pub(crate) newest: Option<SystemTime>,
    /// False if there was too much to count.
    pub(crate) whole: bool,
}

/// Counts what stands at a path, links not followed. `None` if nothing does. Blocks, for two seconds at most.
pub(crate) fn measure(path: &Path) -> Option<Measured> {
    let begun = Instant::now();
    let mut found = Measured { whole: true, ..Measured::default() };
    let mut open: Vec<PathBuf> = vec![path.to_owned()];
    fs::symlink_metadata(path).ok()?;
    while let Some(path) = open.pop() {
        if begun.elapsed() > PATIENCE {
            found.whole = false;
            break;
        }
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            // What cannot be listed is not counted, and said not to be.
            match fs::read_dir(&path) {
                Ok(entries) => open.extend(entries.flatten().map(|entry| entry.path())),
                Err(_) => found.whole = false,
            }
            continue;
        }
        found.files += 1;
        found.bytes += metadata.len();
        found.newest = found.newest.max(metadata.modified().ok());
    }
    Some(found)
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.files == 0 && self.whole {
            return f.write_str("empty");
        }
        let least = if self.whole { "" } else { "at least " };
        let files = if self.files == 1 { "file" } else { "files" };
        write!(f, "{least}{} in {} {files}", bytes(self.bytes), self.files)?;
        match self.newest.and_then(|newest| Timestamp::try_from(newest).ok()) {
            Some(newest) => write!(f, ", newest {}", newest.strftime("%Y-%m-%d %H:%M:%S UTC")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_with_its_newest_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(measure(&dir.path().join("none")), None);
        assert_eq!(measure(dir.path()).unwrap().to_string(), "empty");
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), "12345").unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("sub/link")).unwrap();
        let found = measure(dir.path()).unwrap();
        assert_eq!(found.files, 2);
        assert!(found.whole && found.newest.is_some());
        assert!(found.to_string().contains(" in 2 files, newest 20"), "{found}");
    }
}
