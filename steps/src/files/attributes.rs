//! Extended attributes and access lists: seen, so that it can be said that they are not kept.

use std::io;
use std::path::Path;

use lifeboat_engine::plan::hex;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

/// What the system puts on files by itself.
const OF_THE_SYSTEM: &str = "security.selinux";

/// Returns the SHA-256 over names and values of everything that a file has beyond its mode; `None` if it has nothing, or
/// the file system knows no such thing.
pub(super) fn digest(path: &Path) -> io::Result<Option<String>> {
    let listed = read(|| rustix::fs::llistxattr_query(path), |buffer| rustix::fs::llistxattr(path, buffer));
    let mut names = match listed {
        Err(Errno::NOTSUP | Errno::NOENT) => return Ok(None),
        other => split(&other?),
    };
    names.retain(|name| name != OF_THE_SYSTEM.as_bytes());
    names.sort();
    let mut state = Sha256::new();
    for name in &names {
        let name = name.as_slice();
        let size = || rustix::fs::lgetxattr_query(path, name);
        let value = read(size, |buffer| rustix::fs::lgetxattr(path, name, buffer))?;
        for part in [name, value.as_slice()] {
            state.update((part.len() as u64).to_le_bytes());
            state.update(part);
        }
    }
    Ok((!names.is_empty()).then(|| hex(&state.finalize())))
}

fn split(list: &[u8]) -> Vec<Vec<u8>> {
    list.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Asks for the size first, and again if it has grown meanwhile.
fn read(
    size: impl Fn() -> rustix::io::Result<usize>,
    ask: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    loop {
        let mut buffer = vec![0; size()?];
        if buffer.is_empty() {
            return Ok(buffer);
        }
        match ask(&mut buffer) {
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
    use rustix::fs::XattrFlags;

    #[test]
    fn names_and_values_make_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "x").unwrap();
        let before = digest(&file).unwrap();
        let set = |value: &[u8]| rustix::fs::setxattr(&file, "user.note", value, XattrFlags::empty());
        if set(b"one").is_err() {
            eprintln!("SKIPPED: this file system keeps no extended attributes");
            return;
        }
        let one = digest(&file).unwrap();
        set(b"two").unwrap();
        let two = digest(&file).unwrap();
        assert!(before != one && one != two && two.is_some(), "{before:?} {one:?} {two:?}");
    }
}
