//! Named places at which a test kills this very process, to see what is left.
//!
//! They exist in builds with debug assertions only, which is what the tests of the whole program run: a released program
//! has no such place. One is armed by `main`, from the program's own environment, before anything else happens; the
//! programs of steps get an environment of their own, so that no runbook can arm one.

/// A place at which everything may end at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The directory of a run has its name, and nothing in it.
    RunDirMade,
    /// The directory of a run is complete, and has no journal.
    RunDirComplete,
    /// A process has taken a run, and has not written who it is.
    OwnerLocked,
    /// All systems are locked, and none of the locks is remembered.
    LocksTaken,
    /// One more lock is remembered.
    LockRemembered,
    /// One lock of an ended run is forgotten.
    LockForgotten,
    /// A file of the state directory is written beside its place.
    FileWritten,
    /// A file of the state directory is in its place, and its name may not be durable.
    FileRenamed,
    /// A journal is complete, and has not got its name.
    JournalLaidOut,
    /// A journal has its name, and no event.
    JournalNamed,
    /// The first event is durable, and nobody drives the run.
    RunDeclared,
    /// Events are written into a transaction that is not committed.
    BeforeCommit,
    /// Events are durable, and nobody knows.
    AfterCommit,
    /// Events of a turn are acknowledged, and none of its actions is performed.
    TurnCommitted,
    /// Actions are performed, and the request that they follow from is still in the inbox.
    TurnPerformed,
    /// A request is gone from the inbox.
    RequestForgotten,
    /// An attempt is about to run whose start is durable.
    AttemptLaunched,
    /// A child has started.
    ChildStarted,
    /// A child has ended, and its step does not know.
    ChildEnded,
    /// An attempt has ended, and its end is not in the journal.
    AttemptEnded,
    /// An undo is about to run.
    UndoLaunched,
    /// A step of `always` is about to run.
    AlwaysLaunched,
    /// A thing that the run made is removed, and the journal does not say so.
    ThingRemoved,
    /// What a killed process had left running is ended.
    SurvivorsEnded,
    /// A journal that exists is checked and open for going on.
    JournalOpened,
    /// The end of the run is durable, and its locks are still held.
    RunFinished,
    /// Before the index of runs is brought up to date.
    IndexOpened,
    /// The index of runs is up to date.
    IndexUpdated,
    /// One more file of the report is written.
    ReportWritten,
}

impl Point {
    /// Every place there is.
    pub const ALL: [Self; 29] = [
        Self::RunDirMade,
        Self::RunDirComplete,
        Self::OwnerLocked,
        Self::LocksTaken,
        Self::LockRemembered,
        Self::LockForgotten,
        Self::FileWritten,
        Self::FileRenamed,
        Self::JournalLaidOut,
        Self::JournalNamed,
        Self::RunDeclared,
        Self::BeforeCommit,
        Self::AfterCommit,
        Self::TurnCommitted,
        Self::TurnPerformed,
        Self::RequestForgotten,
        Self::AttemptLaunched,
        Self::ChildStarted,
        Self::ChildEnded,
        Self::AttemptEnded,
        Self::UndoLaunched,
        Self::AlwaysLaunched,
        Self::ThingRemoved,
        Self::SurvivorsEnded,
        Self::JournalOpened,
        Self::RunFinished,
        Self::IndexOpened,
        Self::IndexUpdated,
        Self::ReportWritten,
    ];

    /// Returns its name: the one of the variant.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Ends the process by SIGKILL if it is armed to die here. Costs nothing where there are no debug assertions.
#[inline]
pub fn point(here: Point) {
    #[cfg(debug_assertions)]
    armed::reach(here);
    #[cfg(not(debug_assertions))]
    let _ = here;
}

#[cfg(debug_assertions)]
pub use armed::arm;

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    /// Where and when to die.
    struct Armed {
        point: Point,
        left: AtomicU64,
    }

    static ARMED: OnceLock<Armed> = OnceLock::new();

    /// Arms one place for its nth time: `AfterCommit:3`, or `AfterCommit` for the first. Returns false if there is no
    /// such place.
    pub fn arm(text: &str) -> bool {
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        let point = Point::ALL.into_iter().find(|point| point.name() == name);
        let (Some(point), Ok(count)) = (point, count.parse()) else { return false };
        ARMED.set(Armed { point, left: AtomicU64::new(count) }).is_ok()
    }

    pub(super) fn reach(here: Point) {
        let Some(armed) = ARMED.get().filter(|armed| armed.point == here) else { return };
        if armed.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            // Nothing is left to report a failure to; without the signal the test that waits for it fails.
            let _ = kill_process(getpid(), Signal::KILL);
            loop {
                std::thread::park();
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_place_has_its_name_and_others_are_refused() {
            let names: std::collections::BTreeSet<_> = Point::ALL.map(Point::name).into();
            assert_eq!(names.len(), Point::ALL.len());
            assert!(!arm("Nowhere") && !arm("AfterCommit:x"));
        }
    }
}
