//! Global transaction ids of MariaDB: `domain-server-sequence`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Gtid {
    pub(super) domain: u32,
    pub(super) server: u32,
    pub(super) sequence: u64,
}

impl Gtid {
    /// Reads `0-7-11`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let gtid = Self {
            domain: parts.next()?.parse().ok()?,
            server: parts.next()?.parse().ok()?,
            sequence: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(gtid)
    }
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.domain, self.server, self.sequence)
    }
}

/// The last transaction of every domain and server that a log holds up to some place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct State(BTreeMap<(u32, u32), u64>);

impl State {
    /// Adds a transaction, or an entry of a list.
    pub(super) fn add(&mut self, gtid: Gtid) {
        self.0.insert((gtid.domain, gtid.server), gtid.sequence);
    }

    /// Reads `0-7-11,1-2-3`; an empty text is the beginning of all.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut state = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            state.add(Gtid::parse(part)?);
        }
        Some(state)
    }

    /// Returns its transactions.
    pub(super) fn all(&self) -> impl Iterator<Item = Gtid> + '_ {
        self.0.iter().map(|((domain, server), sequence)| Gtid {
            domain: *domain,
            server: *server,
            sequence: *sequence,
        })
    }

    /// Returns the last transaction of each domain, as a server names its position: servers of a domain take turns, and
    /// their numbers go on.
    pub(super) fn position(&self) -> BTreeMap<u32, Gtid> {
        let mut last = BTreeMap::<u32, Gtid>::new();
        for gtid in self.all() {
            let newest = last.entry(gtid.domain).or_insert(gtid);
            if gtid.sequence > newest.sequence {
                *newest = gtid;
            }
        }
        last
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.all().map(|gtid| gtid.to_string()).collect();
        f.write_str(&all.join(","))
    }
}

impl TryFrom<String> for State {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is no list of transactions"))
    }
}

impl From<State> for String {
    fn from(state: State) -> Self {
        state.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        let state = State::parse("0-7-11, 0-8-15,1-2-3").unwrap();
        assert_eq!(state.to_string(), "0-7-11,0-8-15,1-2-3");
        let position: Vec<_> = state.position().values().map(ToString::to_string).collect();
        assert_eq!(position, ["0-8-15", "1-2-3"]);
        assert_eq!(State::parse("").unwrap(), State::default());
        for bad in ["1-2", "a-1-1", "1-2-3-4"] {
            assert_eq!(State::parse(bad), None, "{bad}");
        }
    }
}
