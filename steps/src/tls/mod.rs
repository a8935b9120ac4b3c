//! TLS to databases: one rule for when it is spoken, one way to check certificates, one set of errors.
//!
//! A connection to this machine needs none. To another machine it is [`TlsMode::VerifyFull`](lifeboat_engine::resource::TlsMode)
//! unless the resource says otherwise, with the authorities that the system trusts or those in `ca_file`. The databases' own
//! programs are told the same, so that they check what Lifeboat checks.

mod certificate;
pub mod codes;
mod connector;
mod files;
mod peer;
mod problem;
mod verifier;

pub(crate) use connector::Connector;
pub(crate) use files::{identity, roots, roots_file};
pub(crate) use peer::{Peer, needed};
pub use problem::TlsError;
pub(crate) use problem::{find, plain_name};
