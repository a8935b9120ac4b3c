//! The hash chain over essential events.

use sha2::{Digest, Sha256};

use super::format::Header;
use crate::model::Seq;
use crate::plan::hex;

/// A SHA-256.
pub(super) type Hash = [u8; 32];

/// The end of the chain: whoever knows it can tell whether anything before it was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The last event of any class; 0 if there is none yet.
    pub seq: Seq,
    pub(super) hash: Hash,
}

impl Head {
    /// Returns the hash of the last essential event, in hexadecimal.
    pub fn hash(&self) -> String {
        hex(&self.hash)
    }

    /// The head of a journal without events: covers its header, and so the plan. `format` is the one that the run was
    /// declared in, whatever the file has been migrated to since.
    pub(super) fn genesis(header: &Header, plan: &str, format: u32) -> Self {
        let mut hasher = Sha256::new();
        let run = header.run.to_string();
        for part in [&format.to_string(), &run, &header.engine, &header.created_ms.to_string(), plan] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        Self { seq: 0, hash: hasher.finalize().into() }
    }

    /// Moves past an essential event and returns its hash.
    pub(super) fn push_essential(&mut self, seq: Seq, at_ms: i64, body: &str) -> Hash {
        let mut hasher = Sha256::new();
        hasher.update(self.hash);
        hasher.update(seq.to_be_bytes());
        hasher.update(at_ms.to_be_bytes());
        hasher.update(body.as_bytes());
        *self = Self { seq, hash: hasher.finalize().into() };
        self.hash
    }

    /// Moves past an advisory event, which the chain does not cover.
    pub(super) fn push_advisory(&mut self, seq: Seq) {
        self.seq = seq;
    }
}
