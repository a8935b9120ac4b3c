//! Finding the run that a person means.

use super::error::{Candidate, Error};
use super::index::{Filter, Index, Standing};
use super::run_dir::RunDir;
use super::state_dir::StateDir;

/// How much of an id must be given.
const SHORTEST: usize = 4;

impl StateDir {
    /// Finds the run that a text means: a whole id, the beginning or end of one (at least four characters), or
    /// `latest`, the newest open run, or the newest of all if none is open.
    pub fn find(&self, text: &str) -> Result<RunDir, Error> {
        if text == "latest" {
            return self.latest();
        }
        let wanted = plain(text);
        if wanted.len() < SHORTEST {
            return Err(Error::TooShort { text: text.to_owned() });
        }
        let mut fitting = self.runs()?;
        fitting.retain(|run| {
            let id = plain(&run.id().to_string());
            id.starts_with(&wanted) || id.ends_with(&wanted)
        });
        match fitting.as_slice() {
            [] => Err(Error::NoSuchRun { text: text.to_owned(), known: self.newest(5)? }),
            [_] => Ok(fitting.remove(0)),
            _ => {
                let candidates = fitting.iter().take(10).map(RunDir::candidate).collect();
                Err(Error::Ambiguous { text: text.to_owned(), candidates })
            }
        }
    }

    fn latest(&self) -> Result<RunDir, Error> {
        let index = Index::open(self)?;
        let newest = |standing| -> Result<_, Error> {
            let found = index.list(&Filter { standing, ..Filter::default() }, 1)?;
            Ok(found.first().map(|summary| summary.run))
        };
        // A journal that cannot be read may well be the run that a person is looking for.
        let unreadable = index.unreadable().iter().map(|(run, _)| *run).max();
        if let Some(run) = newest(Some(Standing::Open))?.max(unreadable).or(newest(None)?) {
            return self.run(run);
        }
        // What is left of a start that was killed is no run; whoever has nothing else is told so by what they do with it.
        let left = self.runs()?.into_iter().next();
        left.ok_or_else(|| Error::NoSuchRun { text: "latest".to_owned(), known: Vec::new() })
    }

    /// Describes the newest runs.
    pub(super) fn newest(&self, limit: usize) -> Result<Vec<Candidate>, Error> {
        Ok(self.runs()?.iter().take(limit).map(RunDir::candidate).collect())
    }
}

/// An id as people may type it.
fn plain(text: &str) -> String {
    text.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;
    use crate::journal::test_support::{TickClock, declared, finished, header};
    use crate::model::{RunId, RunOutcome};
    use crate::runs::SystemProbe;

    const EARLY: &str = "01890000-0000-7000-8000-00000000aaaa";
    const MIDDLE: &str = "01890000-0001-7000-8000-00000000bbbb";
    const LATE: &str = "01890001-0002-7000-8000-0000000caaaa";

    async fn declare(state: &StateDir, id: &str, ended: bool) {
        let id: RunId = id.parse().unwrap();
        let dir = state.create_run(id).unwrap();
        let header = crate::journal::Header { run: id, ..header() };
        let journal = Journal::create(dir.path(), header, TickClock::starting_at(0)).unwrap();
        journal.append(vec![declared()]).await.unwrap();
        if ended {
            journal.append(vec![finished(RunOutcome::Succeeded)]).await.unwrap();
        }
    }

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state"), &SystemProbe).unwrap();
        (dir, state)
    }

    #[tokio::test]
    async fn beginnings_ends_and_whole_ids_name_a_run() {
        let (_keep, state) = state();
        for id in [EARLY, MIDDLE, LATE] {
            declare(&state, id, true).await;
        }
        let found = |text: &str| state.find(text).map(|run| run.id().to_string());
        assert_eq!(found(MIDDLE).unwrap(), MIDDLE);
        assert_eq!(found("bbbb").unwrap(), MIDDLE);
        assert_eq!(found("CAAAA").unwrap(), LATE);
        assert_eq!(found("0189000000").unwrap_err().code().id, "LB0323");
        assert_eq!(found("018900000001").unwrap(), MIDDLE);
        assert_eq!(found("01890000-0001-7").unwrap(), MIDDLE);
        assert!(matches!(found("aaa").unwrap_err(), Error::TooShort { .. }));
        let error = found("aaaa").unwrap_err();
        assert!(matches!(&error, Error::Ambiguous { candidates, .. } if candidates.len() == 2), "{error}");
        assert!(
            error.to_string().contains(EARLY) && error.to_string().contains("restore@staging"),
            "{error}"
        );
        let error = found("dddd").unwrap_err();
        assert!(error.to_string().contains(LATE), "names what is there: {error}");
    }

    #[tokio::test]
    async fn latest_is_the_newest_open_run_or_else_the_newest() {
        let (_keep, state) = state();
        assert!(matches!(state.find("latest").unwrap_err(), Error::NoSuchRun { .. }));
        declare(&state, EARLY, false).await;
        declare(&state, LATE, true).await;
        assert_eq!(state.find("latest").unwrap().id().to_string(), EARLY);
        let journal = Journal::open(state.find(EARLY).unwrap().path(), TickClock::starting_at(0)).unwrap();
        journal.append(vec![finished(RunOutcome::Failed)]).await.unwrap();
        assert_eq!(state.find("latest").unwrap().id().to_string(), LATE);
    }

    #[tokio::test]
    async fn what_a_killed_start_has_left_is_no_open_run_and_not_the_latest() {
        let (_keep, state) = state();
        declare(&state, EARLY, true).await;
        let id: RunId = LATE.parse().unwrap();
        let dir = state.create_run(id).unwrap();
        assert_eq!(state.find("latest").unwrap().id().to_string(), EARLY, "it has no journal");
        let header = crate::journal::Header { run: id, ..header() };
        let journal = Journal::create(dir.path(), header, TickClock::starting_at(0)).unwrap();
        assert!(!dir.is_open().unwrap(), "its journal has no event");
        assert_eq!(state.find("latest").unwrap().id().to_string(), EARLY);
        journal.append(vec![declared()]).await.unwrap();
        assert!(dir.is_open().unwrap());
    }
}
