//! The fence: keeps drills and unprotected environments away from what a protected environment names.
//!
//! A system is recognised by its **place**: the directory that it lives in, the address that it answers at, the bucket,
//! the unit. Names in environments say nothing, and neither does what is inside: a restored copy of a database has the
//! system identifier of its source, and to restore copies is what drills are for. An identifier that agrees is named
//! in the refusal as evidence, and never is the reason for one.
//!
//! Environments spell places in many ways, so that they are resolved whenever they are compared: links and mounts,
//! names of hosts, default ports, spellings of an endpoint. What cannot be resolved is compared as it is written. Places
//! are compared when a plan is made and again before each attempt that writes, because links and names change.

mod claim;
mod compare;
mod network;
mod place;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use claim::{Claim, Origin, claims};
pub use network::{Machine, Network, Spelled};

use crate::model::outcome::Mode;
use crate::plan::Plan;
use crate::resource::{Access, Resource};

/// A system that a protected environment names, with its places as they are written there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protected {
    pub environment: String,
    /// The name of the resource.
    pub name: String,
    pub claims: Vec<Claim>,
}

impl Protected {
    /// Describes a resource of a protected environment; `None` if it has no place that could be damaged.
    pub fn new(environment: &str, name: &str, resource: &Resource) -> Option<Self> {
        let claims = claims(resource, Origin::Environment);
        let protected = Self { environment: environment.to_owned(), name: name.to_owned(), claims };
        (!protected.claims.is_empty()).then_some(protected)
    }
}

/// Two systems in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    pub environment: String,
    /// The name that the protected environment has for the system.
    pub name: String,
    /// Which place it is, as both sides write it and as it was found.
    pub place: String,
}

/// Finds the first protected system that shares a place with one that is to be written.
pub fn breach<'p>(
    mine: &[Claim],
    protected: impl IntoIterator<Item = &'p Protected>,
    network: &dyn Network,
) -> Option<Breach> {
    protected.into_iter().find_map(|system| {
        let shared = mine.iter().find_map(|mine| {
            system.claims.iter().find_map(|theirs| compare::shared(mine, theirs, network))
        })?;
        Some(Breach { environment: system.environment.clone(), name: system.name.clone(), place: shared })
    })
}

/// What a run must keep away from. Made from the plan that is stored with the run, so that a resumed one is fenced alike.
#[derive(Clone, Debug)]
pub struct Fence {
    protected: Vec<Protected>,
}

impl Fence {
    /// Keeps away from these systems.
    pub fn new(protected: Vec<Protected>) -> Self {
        Self { protected }
    }

    /// Returns the fence of a run; a recovery in a protected environment has none.
    pub fn of(plan: &Plan) -> Self {
        let free = plan.protected && plan.mode == Mode::Recovery;
        Self { protected: if free { Vec::new() } else { plan.fence.clone() } }
    }

    /// Says whether there is nothing to keep away from.
    pub fn is_open(&self) -> bool {
        self.protected.is_empty()
    }

    /// Compares a system that is about to be written with every protected one, as they are found now.
    ///
    /// Blocks: looks at the file system and asks for addresses.
    pub fn check(&self, resource: &Resource, origin: Origin) -> Result<(), Breach> {
        if self.is_open() || resource.access == Access::Read {
            return Ok(());
        }
        self.check_claims(&claims(resource, origin))
    }

    /// Compares a directory that is about to be filled, like [`check`](Self::check). Blocks.
    pub fn check_path(&self, path: &Path) -> Result<(), Breach> {
        if self.is_open() { Ok(()) } else { self.check_claims(&[Claim::Path { path: path.to_owned() }]) }
    }

    fn check_claims(&self, claims: &[Claim]) -> Result<(), Breach> {
        match breach(claims, &self.protected, &Machine::new()) {
            Some(breach) => Err(breach),
            None => Ok(()),
        }
    }
}

/// Returns the names under which a run knows the places of a resource, each in one spelling: what runs lock. A host has the
/// name that is written and each of its addresses, so that two runs that write it differently meet.
pub fn lock_names(resource: &Resource, network: &dyn Network) -> Vec<String> {
    claims(resource, Origin::Environment)
        .iter()
        .flat_map(|claim| compare::lock_names(claim, network))
        .collect()
}

/// Returns the name under which runs lock a directory.
pub fn path_name(path: &Path) -> String {
    place::resolved(path).display().to_string()
}

/// Says whether two names of places that runs lock are of one place, or of one within the other.
pub fn names_overlap(mine: &str, theirs: &str) -> bool {
    compare::names_overlap(mine, theirs)
}

#[cfg(test)]
mod tests;
