//! Restores of real servers: a production with Postgres, Redis and uploads is backed up, damaged and restored.
//!
//! The backups are made once ([`source`]) and copied for each test, which restores them into servers and directories of
//! its own ([`world`]).

mod bucket;
mod change;
mod clones;
mod cluster;
mod disk;
mod faults;
mod foreign;
mod in_place;
mod kill;
mod machine;
mod member;
mod phases;
mod pitr;
mod probe;
mod recovery;
mod remote;
mod shipped;
mod shown;
mod source;
mod undo;
mod world;
