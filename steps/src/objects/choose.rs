//! What each name was at a moment, from the list of its versions.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::store::versions::{Entry, Order, Stored};

/// One name whose state at the moment is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) name: String,
    /// What it held, `None` if it was not there.
    pub(super) wanted: Option<Wanted>,
    /// What leads from how it is to how it was.
    pub(super) action: Action,
}

/// A version that was current at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) id: String,
    pub(super) modified: Timestamp,
    pub(super) stored: Stored,
}

/// What is done to a name in place. Versions are never deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// It was overwritten since: the version is copied to the top.
    Copy,
    /// It did not exist: a mark of deletion is put on top.
    Delete,
    /// It was only deleted since: these marks are taken away.
    Undelete(Vec<String>),
}

/// Collects versions and decides name by name.
#[derive(Debug)]
pub(super) struct Chooser {
    at: Timestamp,
    order: Order,
    open: BTreeMap<String, Vec<Entry>>,
    decided: Vec<Decision>,
    same_second: u64,
    versions: u64,
}

/// What the list came to.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// By name.
    pub(super) decisions: Vec<Decision>,
    /// Changes within the second of the moment, which the list cannot order against it.
    pub(super) same_second: u64,
    pub(super) versions: u64,
}

impl Chooser {
    pub(super) fn new(at: Timestamp, order: Order) -> Self {
        Self { at, order, open: BTreeMap::new(), decided: Vec::new(), same_second: 0, versions: 0 }
    }

    /// Takes one page. Where the server promises an order, names that are complete are decided at once, so that only
    /// decisions are kept.
    pub(super) fn page(&mut self, entries: Vec<Entry>) {
        let last = entries.last().map(|entry| entry.name.clone());
        for entry in entries {
            self.versions += 1;
            if entry.modified < self.at && entry.modified.as_second() == self.at.as_second() {
                self.same_second += 1;
            }
            self.open.entry(entry.name.clone()).or_default().push(entry);
        }
        if self.order == Order::Promised
            && let Some(last) = last
        {
            let mut complete = std::mem::take(&mut self.open);
            if let Some(unfinished) = complete.remove(&last) {
                self.open.insert(last, unfinished);
            }
            self.decide(complete);
        }
    }

    pub(super) fn finish(mut self) -> Chosen {
        let mut open = std::mem::take(&mut self.open);
        if self.order == Order::Unknown && open.values().any(|entries| !is_newest_first(entries)) {
            // The server lists versions and marks apart: only the times are left.
            for entries in open.values_mut() {
                entries.sort_by_key(|entry| std::cmp::Reverse((entry.latest, entry.modified)));
            }
        }
        self.decide(open);
        self.decided.sort_by(|a, b| a.name.cmp(&b.name));
        Chosen { decisions: self.decided, same_second: self.same_second, versions: self.versions }
    }

    fn decide(&mut self, names: BTreeMap<String, Vec<Entry>>) {
        for (name, entries) in names {
            let (wanted, action) = decide(self.at, &entries);
            self.decided.push(Decision { name, wanted, action });
        }
    }
}

fn is_newest_first(entries: &[Entry]) -> bool {
    entries.first().is_none_or(|first| first.latest)
        && entries.windows(2).all(|pair| pair[0].modified >= pair[1].modified)
}

/// Decides one name from its entries, newest first. What happened at the moment itself is after it.
fn decide(at: Timestamp, entries: &[Entry]) -> (Option<Wanted>, Action) {
    let before = entries.iter().position(|entry| entry.modified < at);
    let wanted = before.and_then(|index| {
        let entry = &entries[index];
        let stored = entry.object.clone()?;
        Some(Wanted { id: entry.id.clone(), modified: entry.modified, stored })
    });
    let since = &entries[..before.unwrap_or(entries.len())];
    let is_there = entries.first().is_some_and(|entry| entry.object.is_some());
    let action = match (&wanted, is_there) {
        (None, false) => Action::Nothing,
        (None, true) => Action::Delete,
        (Some(_), _) if since.is_empty() => Action::Nothing,
        (Some(_), _) if since.iter().all(|entry| entry.object.is_none()) => {
            Action::Undelete(since.iter().map(|entry| entry.id.clone()).collect())
        }
        (Some(_), _) => Action::Copy,
    };
    (wanted, action)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `V1@3` is a version and `D1@5` a mark, with their times in seconds; the newest comes first.
    fn entries(text: &str) -> Vec<Entry> {
        let words = text.split_whitespace().enumerate();
        let entry = |(index, word): (usize, &str)| {
            let (id, time) = word.split_once('@').expect("an id and a time");
            let stored = Stored { size: 1, etag: Some(id.to_owned()), archived: false };
            Entry {
                name: "a".to_owned(),
                id: id.to_owned(),
                modified: Timestamp::from_second(time.parse().expect("a number")).expect("a time"),
                latest: index == 0,
                object: id.starts_with('V').then_some(stored),
            }
        };
        words.map(entry).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn outcome(text: &str) -> (Option<String>, Action) {
        let (wanted, action) = decide(at(10), &entries(text));
        (wanted.map(|wanted| wanted.id), action)
    }

    /// The table of the guidance for rolling S3 back, each line read from the newest entry to the oldest.
    #[test]
    fn every_case_of_the_table() {
        let v1 = || Some("V1".to_owned());
        assert_eq!(outcome("D1@12 V1@5"), (v1(), Action::Undelete(vec!["D1".to_owned()])));
        assert_eq!(outcome("D1@13 V1@12"), (None, Action::Nothing));
        assert_eq!(outcome("V1@12"), (None, Action::Delete));
        assert_eq!(outcome("V2@12 V1@5"), (v1(), Action::Copy));
        assert_eq!(outcome("D2@14 V2@13 D1@12 V1@5"), (v1(), Action::Copy));
        assert_eq!(outcome("D2@13 V2@12 D1@6 V1@5"), (None, Action::Nothing));
        assert_eq!(outcome("D2@12 D1@6 V1@5"), (None, Action::Nothing));
        assert_eq!(outcome("V2@12 D1@6 V1@5"), (None, Action::Delete));
        assert_eq!(outcome("V2@6 V1@5"), (Some("V2".to_owned()), Action::Nothing));
        assert_eq!(outcome("D2@13 D1@12 V1@5"), (v1(), Action::Undelete(vec!["D2".into(), "D1".into()])));
    }

    #[test]
    fn the_moment_itself_is_after_it() {
        assert_eq!(outcome("V2@10 V1@9"), (Some("V1".to_owned()), Action::Copy));
        assert_eq!(outcome("D1@10 V1@9").0, Some("V1".to_owned()));
    }

    #[test]
    fn the_order_of_the_server_decides_within_a_second() {
        assert_eq!(outcome("V2@9 D1@9 V1@9").0, Some("V2".to_owned()));
        assert_eq!(outcome("D1@9 V2@9 V1@9").0, None);
        // A long upload has the time of its beginning.
        assert_eq!(outcome("V2@3 D1@9 V1@2").0, Some("V2".to_owned()));
    }

    #[test]
    fn a_page_of_marks_alone_is_no_end_and_names_go_on_over_pages() {
        let mut chooser = Chooser::new(at(10), Order::Promised);
        chooser.page(entries("D3@13 D2@12"));
        chooser.page(entries("D1@11 V1@5"));
        let chosen = chooser.finish();
        assert_eq!(chosen.versions, 4);
        assert_eq!(chosen.decisions[0].wanted.as_ref().map(|wanted| wanted.id.as_str()), Some("V1"));
    }

    #[test]
    fn lists_of_servers_that_name_marks_last_are_sorted_by_time() {
        let mut grouped = entries("V2@13 V1@5 D1@7");
        let mut chooser = Chooser::new(at(10), Order::Unknown);
        chooser.page(grouped.clone());
        assert_eq!(chooser.finish().decisions[0].wanted, None, "it was deleted at 7");
        // S3 itself promises its order, and times may run against it.
        let mut chooser = Chooser::new(at(10), Order::Promised);
        grouped[1].modified = at(5);
        chooser.page(grouped);
        assert!(chooser.finish().decisions[0].wanted.is_some());
    }

    #[test]
    fn changes_within_the_second_of_the_moment_are_counted() {
        let moment: Timestamp = "1970-01-01T00:00:10.5Z".parse().expect("a time");
        let mut chooser = Chooser::new(moment, Order::Promised);
        chooser.page(entries("V2@10 V1@5"));
        assert_eq!(chooser.finish().same_second, 1);
    }

    proptest! {
        /// A slow and obvious model: the last thing that happened before the moment is what was there.
        #[test]
        fn the_state_is_that_of_the_last_change_before(times in prop::collection::vec((0i64..20, any::<bool>()), 1..12)) {
            let mut times = times;
            times.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
            let text: Vec<_> = times.iter().enumerate().map(|(index, (time, version))| {
                format!("{}{index}@{time}", if *version { 'V' } else { 'D' })
            }).collect();
            let (wanted, action) = outcome(&text.join(" "));
            let model = times.iter().enumerate().find(|(_, (time, _))| *time < 10);
            let expected = model.and_then(|(index, (_, version))| version.then(|| format!("V{index}")));
            prop_assert_eq!(&wanted, &expected);
            if wanted.is_none() {
                prop_assert!(matches!(action, Action::Nothing | Action::Delete));
            }
        }
    }
}
