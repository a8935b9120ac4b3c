//! The content of a whole object, held against the best that its store knows of it.

use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::store::Store;
use crate::store::crc::{Crc, Running};
use crate::store::named::{Facts, Kept};

/// What a content is compared with.
pub(super) enum Known {
    Sha256(String),
    Md5(String),
    Crc(Crc),
    /// The store knows nothing but its size.
    Nothing,
}

/// What a content was found to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    Sha256,
    Md5,
    Crc,
    Nothing,
}

/// A content on its way.
pub(super) struct Whole {
    sha256: Option<Sha256>,
    beside: Beside,
}

/// What is computed besides the SHA-256.
enum Beside {
    Sha256(String),
    Md5(Md5, String),
    Crc(Box<Running>, Crc),
    Nothing,
}

impl Known {
    /// Returns what the store knows of an object that is open. What it does not say by itself it is asked for, which
    /// takes a request: only where it has said nothing else.
    pub(super) fn of(store: &Store, name: &str, facts: &Facts) -> Result<Self, StepError> {
        if let Some(known) = &facts.sha256 {
            return Ok(Self::Sha256(known.clone()));
        }
        if let Some(known) = &facts.md5 {
            return Ok(Self::Md5(known.clone()));
        }
        Ok(match store.kept(name, &facts.pin)? {
            Some(Kept::Sha256(known)) => Self::Sha256(known),
            Some(Kept::Crc(known)) => Self::Crc(known),
            None => Self::Nothing,
        })
    }
}

impl Whole {
    /// Begins with a SHA-256, perhaps of a beginning that is there already.
    pub(super) fn with(known: Known, sha256: Sha256) -> Self {
        let beside = match known {
            Known::Sha256(known) => Beside::Sha256(known),
            Known::Md5(known) => Beside::Md5(Md5::new(), known),
            Known::Crc(known) => Beside::Crc(Box::new(Running::new(known.algorithm)), known),
            Known::Nothing => Beside::Nothing,
        };
        Self { sha256: Some(sha256), beside }
    }

    /// Begins to compute only what is compared.
    pub(super) fn only(known: Known) -> Self {
        let is_needed = matches!(known, Known::Sha256(_));
        let whole = Self::with(known, Sha256::new());
        Self { sha256: whole.sha256.filter(|_| is_needed), ..whole }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
        self.update_beside(bytes);
    }

    /// Takes in a beginning that the SHA-256 is of already.
    pub(super) fn update_beside(&mut self, bytes: &[u8]) {
        match &mut self.beside {
            Beside::Md5(state, _) => state.update(bytes),
            Beside::Crc(state, _) => state.update(bytes),
            Beside::Sha256(_) | Beside::Nothing => {}
        }
    }

    /// Says whether something besides the SHA-256 is computed.
    pub(super) fn has_beside(&self) -> bool {
        matches!(self.beside, Beside::Md5(..) | Beside::Crc(..))
    }

    /// Returns the SHA-256 so far.
    pub(super) fn sha256(&self) -> String {
        self.sha256.clone().map_or_else(String::new, |sha256| hex(&sha256.finalize()))
    }

    /// Says what the content was compared with, or how it differs.
    pub(super) fn compare(&self) -> Result<Proof, String> {
        let (proof, what, found, known) = match &self.beside {
            Beside::Sha256(known) => (Proof::Sha256, "SHA-256", self.sha256(), known.clone()),
            Beside::Md5(state, known) => (Proof::Md5, "MD5", hex(&state.clone().finalize()), known.clone()),
            Beside::Crc(state, known) => {
                (Proof::Crc, known.algorithm.name(), state.finish().to_string(), known.to_string())
            }
            Beside::Nothing => return Ok(Proof::Nothing),
        };
        if found == known {
            Ok(proof)
        } else {
            Err(format!("it has the {what} {found}, and must have {known}"))
        }
    }
}
