//! Extended attributes and access lists: those that programs give to files are kept, the others are told.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lifeboat_engine::plan::hex;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::manifest::{Manifest, RawPath};

/// What the system puts on files by itself.
const OF_THE_SYSTEM: &str = "security.selinux";
/// What the names of attributes begin with that programs give to files.
const OF_PROGRAMS: &[u8] = b"user.";

/// The value of an attribute; in JSON as base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Bytes(Vec<u8>);

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        STANDARD.encode(bytes.0)
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        STANDARD.decode(&text).map(Self).map_err(|error| error.to_string())
    }
}

/// Attributes by their names.
pub(super) type Attributes = BTreeMap<RawPath, Bytes>;

/// What a file has beyond its mode.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// SHA-256 over names and values of all of it; `None` if it has nothing.
    pub(super) digest: Option<String>,
    pub(super) of_programs: Attributes,
    /// It has something that is not kept.
    pub(super) has_others: bool,
}

/// Reads all that a file has; nothing where the file system knows no such thing.
pub(super) fn read(path: &Path) -> io::Result<Found> {
    let listed = ask(|| rustix::fs::llistxattr_query(path), |buffer| rustix::fs::llistxattr(path, buffer));
    let mut names = match listed {
        Err(Errno::NOTSUP | Errno::NOENT) => return Ok(Found::default()),
        other => split(&other?),
    };
    names.retain(|name| name != OF_THE_SYSTEM.as_bytes());
    names.sort();
    let (mut state, mut found) = (Sha256::new(), Found::default());
    for name in &names {
        let value = value(path, name)?;
        for part in [name, &value] {
            state.update((part.len() as u64).to_le_bytes());
            state.update(part);
        }
        match name.starts_with(OF_PROGRAMS) {
            true => drop(found.of_programs.insert(raw(name), Bytes(value))),
            false => found.has_others = true,
        }
    }
    found.digest = (!names.is_empty()).then(|| hex(&state.finalize()));
    Ok(found)
}

/// Gives a file attributes as far as it takes them: [`unlike`] finds out what came of it.
pub(super) fn give(path: &Path, wanted: &Attributes) {
    for (name, wanted) in wanted {
        let name = name.0.as_os_str().as_bytes();
        // A file that may not be written has them from an earlier attempt.
        if name.starts_with(OF_PROGRAMS) && value(path, name).ok().as_ref() != Some(&wanted.0) {
            rustix::fs::lsetxattr(path, name, &wanted.0, XattrFlags::empty()).ok();
        }
    }
}

/// Returns what had extended attributes or access lists and has others now.
pub(super) fn unlike(manifest: &Manifest, root: &Path) -> Vec<String> {
    let marked = manifest.entries.iter().filter(|entry| entry.attributes.is_some());
    let differs = marked.filter(|entry| {
        read(&root.join(&entry.path.0)).map_or(true, |found| found.digest != entry.attributes)
    });
    differs.map(|entry| entry.path.to_string()).collect()
}

fn raw(name: &[u8]) -> RawPath {
    RawPath(PathBuf::from(std::ffi::OsStr::from_bytes(name)))
}

fn value(path: &Path, name: &[u8]) -> rustix::io::Result<Vec<u8>> {
    let size = || rustix::fs::lgetxattr_query(path, name);
    ask(size, |buffer| rustix::fs::lgetxattr(path, name, buffer))
}

fn split(list: &[u8]) -> Vec<Vec<u8>> {
    list.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Asks for the size first, and again if it has grown meanwhile.
fn ask(
    size: impl Fn() -> rustix::io::Result<usize>,
    get: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    loop {
        let mut buffer = vec![0; size()?];
        if buffer.is_empty() {
            return Ok(buffer);
        }
        match get(&mut buffer) {
            Err(Errno::RANGE) => {}
            other => {
                buffer.truncate(other?);
                return Ok(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_given_is_read_again_and_makes_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "x").unwrap();
        let before = read(&file).unwrap();
        let wanted = Attributes::from([(raw(b"user.note"), Bytes(vec![0, 255]))]);
        give(&file, &wanted);
        let after = read(&file).unwrap();
        // Where the file system takes none, nothing has changed and nothing failed.
        let takes = rustix::fs::setxattr(&file, "user.other", b"", XattrFlags::empty()).is_ok();
        assert_eq!((after.of_programs == wanted, after.digest != before.digest), (takes, takes));
        let text = serde_json::to_string(&wanted).unwrap();
        assert_eq!(text, r#"{"user.note":"AP8="}"#);
        assert_eq!(serde_json::from_str::<Attributes>(&text).unwrap(), wanted);
    }

    #[test]
    fn only_attributes_of_programs_are_given() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "x").unwrap();
        give(&file, &Attributes::from([(raw(b"trusted.x"), Bytes(b"1".to_vec()))]));
        assert_eq!(read(&file).unwrap().digest, None);
        // No file of this file system takes any.
        give(Path::new("/proc/self/status"), &Attributes::from([(raw(b"user.x"), Bytes(b"1".to_vec()))]));
        assert_eq!(read(Path::new("/proc/self/status")).unwrap().digest, None);
    }
}
