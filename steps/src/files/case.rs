//! Names that differ in upper and lower case only, on file systems that take them for one.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use lifeboat_engine::step::StepError;

use super::codes;
use super::manifest::{Manifest, RawPath};

/// Refuses to unpack a manifest into a directory that cannot tell two of its names apart.
pub(super) fn check(manifest: &Manifest, dir: &Path) -> Result<(), StepError> {
    let Some((one, other)) = collision(manifest) else { return Ok(()) };
    let folds = folds(dir).map_err(|error| super::archive::failed("looked at", dir, &error))?;
    if folds { Err(refused((one, other), dir)) } else { Ok(()) }
}

fn refused((one, other): (&RawPath, &RawPath), dir: &Path) -> StepError {
    let message = format!("the file system of {} takes `{one}` and `{other}` for one", dir.display());
    StepError::permanent(codes::LB1450, message)
        .help("restore to a file system that tells upper from lower case; the target was not touched")
}

/// Finds two names that are one if case does not count.
fn collision(manifest: &Manifest) -> Option<(&RawPath, &RawPath)> {
    let mut seen: BTreeMap<String, &RawPath> = BTreeMap::new();
    manifest.entries.iter().find_map(|entry| {
        let folded = entry.path.0.to_string_lossy().to_lowercase();
        seen.insert(folded, &entry.path).map(|other| (other, &entry.path))
    })
}

/// Finds out whether a directory folds case, by a file of its own that is gone afterwards.
fn folds(dir: &Path) -> io::Result<bool> {
    let (made, asked) = (dir.join(".lifeboat-case"), dir.join(".LIFEBOAT-CASE"));
    std::fs::write(&made, "")?;
    let folds = asked.symlink_metadata().is_ok();
    std::fs::remove_file(&made)?;
    Ok(folds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::manifest::{Content, Entry};

    fn manifest(paths: &[&str]) -> Manifest {
        let entry = |path: &&str| Entry {
            path: RawPath(path.into()),
            content: Content::File { size: 0, sha256: String::new() },
            mode: 0o644,
            uid: 0,
            gid: 0,
            user: None,
            group: None,
            mtime: (0, 0),
            attributes: None,
            user_attributes: std::collections::BTreeMap::new(),
        };
        Manifest::new(paths.iter().map(entry).collect())
    }

    #[test]
    fn names_that_differ_in_case_only_are_found() {
        assert!(collision(&manifest(&["a", "b", "a/b", "ab"])).is_none());
        let found = manifest(&["Photo.jpg", "x", "photo.JPG"]);
        let pair = collision(&found).map(|(one, other)| (one.to_string(), other.to_string()));
        assert_eq!(pair, Some(("Photo.jpg".into(), "photo.JPG".into())));
        let error = refused(collision(&found).expect("they collide"), Path::new("/mnt"));
        assert!(error.code == codes::LB1450 && error.message.contains("photo.JPG"));
    }

    #[test]
    fn a_file_system_that_tells_case_takes_both() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!folds(dir.path()).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(check(&manifest(&["a", "A"]), dir.path()).is_ok());
    }
}
