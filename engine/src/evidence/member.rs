//! What an archive holds, by name.

use std::path::{Component, Path};

/// One member, by what binds it to the journal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Member {
    Header,
    Plan,
    Events,
    /// Made of the three above: reports, facts, instructions.
    Derived(String),
    /// A file that the plan was compiled from, by its path in the project.
    Source(String),
    /// What an attempt printed: `step/attempt/stdout`.
    Output(String),
    /// A file that a person gave, by its hash and name.
    Given(String),
    /// The hashes of all others.
    Sums,
}

pub(super) const HEADER: &str = "journal/header.json";
pub(super) const PLAN: &str = "journal/plan.json";
pub(super) const EVENTS: &str = "journal/events.jsonl";
pub(super) const SUMS: &str = "SHA256SUMS";

/// Names of what is derived, in the order of the archive.
pub(super) const DERIVED: [&str; 7] = [
    "README.md",
    "verify.sh",
    "evidence.json",
    "environment.json",
    "report.md",
    "report.html",
    "report.json",
];

const SOURCES: &str = "sources/";
const OUTPUT: &str = "output/";
const GIVEN: &str = "given/";

impl Member {
    /// Understands a name below the archive's directory; `None` if no archive has such a member.
    pub(super) fn of(name: &str) -> Option<Self> {
        match name {
            HEADER => Some(Self::Header),
            PLAN => Some(Self::Plan),
            EVENTS => Some(Self::Events),
            SUMS => Some(Self::Sums),
            _ if DERIVED.contains(&name) => Some(Self::Derived(name.to_owned())),
            _ => {
                let plain = |rest: &str| is_plain(rest).then(|| rest.to_owned());
                let (kind, rest) = name.split_at(name.find('/').map_or(0, |at| at + 1));
                match kind {
                    SOURCES => plain(rest).map(Self::Source),
                    OUTPUT => plain(rest).map(Self::Output),
                    GIVEN => plain(rest).map(Self::Given),
                    _ => None,
                }
            }
        }
    }

    /// Returns its name below the archive's directory.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Header => HEADER.to_owned(),
            Self::Plan => PLAN.to_owned(),
            Self::Events => EVENTS.to_owned(),
            Self::Sums => SUMS.to_owned(),
            Self::Derived(name) => name.clone(),
            Self::Source(path) => format!("{SOURCES}{path}"),
            Self::Output(path) => format!("{OUTPUT}{path}"),
            Self::Given(path) => format!("{GIVEN}{path}"),
        }
    }
}

/// Says whether a path stays below where it is unpacked, and can be written into a list of hashes.
pub(super) fn is_plain(path: &str) -> bool {
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let spelled_once =
        !path.is_empty() && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    inside && spelled_once && !path.chars().any(|char| char.is_control() || char == '\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_members_and_back() {
        for name in [
            "journal/plan.json",
            "report.html",
            "sources/runbooks/a.yaml",
            "output/a/b.3/1/stdout",
            "given/00ff/photo of the rack.jpg",
            "SHA256SUMS",
        ] {
            assert_eq!(Member::of(name).map(|member| member.name()).as_deref(), Some(name));
        }
    }

    #[test]
    fn no_name_leads_out_of_the_archive() {
        let bad = [
            "../x",
            "sources/../../x",
            "sources/a/../b",
            "sources//x",
            "sources/./x",
            "sources/",
            "output/a\nb",
            "output/a\\b",
            "/etc/passwd",
            "extra",
            "journal/../report.md",
            "",
        ];
        for name in bad {
            assert_eq!(Member::of(name), None, "{name}");
        }
    }
}
