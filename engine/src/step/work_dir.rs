use std::path::{Path, PathBuf};

use super::StepError;
use crate::code;
use crate::runs::durable;

/// A directory of a step's own inside the run's state, the same in every attempt.
///
/// It is made when it is first asked for: most steps keep nothing, and a directory for each of very many steps would be
/// most of what a run writes.
#[derive(Clone, Debug)]
pub struct WorkDir {
    /// The directory of all of them, whose permissions they take over.
    all: PathBuf,
    path: PathBuf,
}

impl WorkDir {
    /// Names a directory within that of all work directories; nothing is made.
    pub fn within(all: PathBuf, own: impl AsRef<Path>) -> Self {
        let path = all.join(own);
        Self { all, path }
    }

    /// Returns the directory, which exists from now on.
    pub fn path(&self) -> Result<&Path, StepError> {
        durable::dirs_within(&self.all, &self.path).map(|()| self.path.as_path()).map_err(|error| {
            StepError::transient(code::LB0352, format!("cannot create `{}`", self.path.display()))
                .help("make room or mend the permissions of the state directory")
                .caused_by(&error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_when_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::within(dir.path().join("work"), "a/b");
        assert!(!dir.path().join("work").exists());
        assert!(work.path().unwrap().is_dir());
        assert!(work.path().unwrap().is_dir(), "it may exist already");
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = WorkDir::within(dir.path().join("file"), "a").path().unwrap_err();
        assert_eq!(error.code, code::LB0352);
    }
}
