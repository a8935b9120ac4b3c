//! Old backups, and the log that nothing kept needs: found by the catalogue, removed only on request.

mod kind;
mod wal;

pub(super) use kind::Prune;
