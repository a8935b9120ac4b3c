//! How much stands at a place, and how new it is: what people must know before it is moved aside.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;
use lifeboat_engine::report::human;

/// More entries than this are not looked at: the answer is for a question that a person waits for.
const MOST_ENTRIES: usize = 200_000;

/// Says what stands at a place on this machine: `HOST:/path, 2.2 GiB, newest change 2026-11-21T03:11:40Z`. Reads names
/// and times only. What cannot be read is not counted, and that is said.
pub(crate) fn describe(path: &Path) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut found = Found::default();
    found.look(path);
    let size = human::bytes(found.bytes);
    let least = if found.complete { "" } else { "at least " };
    let newest = found.newest.and_then(|at| Timestamp::try_from(at).ok());
    let newest = newest.map_or_else(String::new, |at| format!(", newest change {at:.0}"));
    format!("{host}:{}, {least}{size}{newest}", path.display())
}

struct Found {
    bytes: u64,
    newest: Option<SystemTime>,
    entries: usize,
    complete: bool,
}

impl Default for Found {
    fn default() -> Self {
        Self { bytes: 0, newest: None, entries: 0, complete: true }
    }
}

impl Found {
    fn look(&mut self, path: &Path) {
        let mut waiting = vec![path.to_owned()];
        while let Some(path) = waiting.pop() {
            self.entries += 1;
            let metadata = fs::symlink_metadata(&path);
            let Some(metadata) = metadata.ok().filter(|_| self.entries <= MOST_ENTRIES) else {
                self.complete = false;
                continue;
            };
            if metadata.is_dir() {
                match fs::read_dir(&path) {
                    Ok(entries) => waiting.extend(entries.flatten().map(|entry| entry.path())),
                    Err(_) => self.complete = false,
                }
            } else {
                self.bytes += metadata.len();
                self.newest = self.newest.max(metadata.modified().ok());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_add_up_and_the_newest_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("inner")).unwrap();
        fs::write(dir.path().join("a"), [0; 1000]).unwrap();
        fs::write(dir.path().join("inner/b"), [0; 48]).unwrap();
        let newest = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_795_241_511);
        fs::File::open(dir.path().join("a")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        fs::File::open(dir.path().join("inner/b")).unwrap().set_modified(newest).unwrap();
        let words = describe(dir.path());
        assert!(words.contains(&human::bytes(1048)), "{words}");
        assert!(words.ends_with("newest change 2026-11-21T05:31:51Z"), "{words}");
        assert!(
            describe(&dir.path().join("nothing")).contains("at least 0"),
            "what is not there is not told as empty"
        );
    }
}
