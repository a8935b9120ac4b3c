//! The comparison itself: pure, so that every way to be wrong can be tried.
//!
//! A comparison that had nothing to compare has proven nothing and counts as a mismatch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use jiff::Timestamp;

use super::found::Rows;
use crate::ledger::{End, Entry, Facts, Write};

/// How many mismatches of one kind are printed.
const SHOWN: usize = 5;

/// The moments to which the parts of the system were restored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) target: Timestamp,
    pub(super) files: Option<Timestamp>,
    pub(super) redis: Option<Timestamp>,
    pub(super) now: Timestamp,
}

impl Moments {
    /// A backup from after the target cannot be what a restore to the target used.
    pub(super) fn check(&self) -> Result<(), String> {
        for (what, at) in [("--files-as-of", self.files), ("--redis-as-of", self.redis)] {
            if at.is_some_and(|at| at > self.target) {
                return Err(format!(
                    "{what} lies after --target: a backup from after the incident was restored"
                ));
            }
        }
        Ok(())
    }
}

/// One comparison.
#[derive(Debug, PartialEq)]
pub(super) struct Finding {
    pub(super) what: &'static str,
    /// How many things were held against the ledger.
    pub(super) compared: usize,
    pub(super) wrong: Vec<String>,
}

impl Finding {
    /// A comparison over what must be there: none at all is wrong.
    fn required(what: &'static str, compared: usize, mut wrong: Vec<String>) -> Self {
        if compared == 0 {
            wrong.push("nothing to compare, so nothing is proven".to_owned());
        }
        Self { what, compared, wrong }
    }

    /// A comparison over what must not be there, of which there may be none.
    fn forbidden(what: &'static str, compared: usize, wrong: Vec<String>) -> Self {
        Self { what, compared, wrong }
    }
}

/// The payments that were there before any traffic, all older than any target.
pub(super) fn baseline(expected: (i64, i64), found: (i64, i64)) -> Finding {
    let words = |(count, cents)| format!("{count} payments, {cents} cents");
    let wrong = if expected == found {
        Vec::new()
    } else {
        vec![format!("expected {}, found {}", words(expected), words(found))]
    };
    Finding::required("payments from before the traffic", usize::try_from(expected.0).unwrap_or(0), wrong)
}

/// The three tables whose rows carry a reference.
pub(super) fn rows(moments: &Moments, entries: &[Entry], rows: &Rows) -> Vec<Finding> {
    let of = |pick: fn(&Write) -> Option<Row>, found: &BTreeMap<String, String>| {
        let booked: Vec<_> =
            entries.iter().filter_map(|entry| pick(&entry.write).map(|row| (entry, row))).collect();
        (
            present(moments.target, &booked, found),
            absent(moments.target, &booked, found),
            strangers(&booked, found),
        )
    };
    let payments = of(payment, &rows.payments);
    let decisions = of(decision, &rows.decisions);
    let media = of(upload, &rows.media);
    vec![
        Finding::required("payments acknowledged before the target", payments.0.0, payments.0.1),
        Finding::forbidden("payments begun at or after it", payments.1.0, payments.1.1),
        Finding::forbidden("payments that nobody entered", rows.payments.len(), payments.2),
        Finding::forbidden("decisions acknowledged before the target", decisions.0.0, decisions.0.1),
        Finding::forbidden("decisions begun at or after it", decisions.1.0, decisions.1.1),
        Finding::forbidden("decisions that nobody made", rows.decisions.len(), decisions.2),
        Finding::forbidden("media rows acknowledged before the target", media.0.0, media.0.1),
        Finding::forbidden("media rows begun at or after it", media.1.0, media.1.1),
        Finding::forbidden("media rows that nobody made", rows.media.len(), media.2),
    ]
}

/// What the ledger says of a row: its reference, and its content after the id.
struct Row {
    reference: String,
    content: String,
}

fn payment(write: &Write) -> Option<Row> {
    let Write::Payment { reference, member_id, amount_cents } = write else { return None };
    let content = format!("member {member_id}, {amount_cents} cents");
    Some(Row { reference: reference.clone(), content })
}

fn decision(write: &Write) -> Option<Row> {
    let Write::Decision { reference, member_id, status } = write else { return None };
    Some(Row { reference: reference.clone(), content: format!("member {member_id}, {status}") })
}

fn upload(write: &Write) -> Option<Row> {
    let Write::Upload { reference, sha256, bytes } = write else { return None };
    Some(Row { reference: reference.clone(), content: format!("{bytes} bytes, {sha256}") })
}

type Booked<'a> = [(&'a Entry, Row)];

fn present(target: Timestamp, booked: &Booked<'_>, found: &BTreeMap<String, String>) -> (usize, Vec<String>) {
    let (mut compared, mut wrong) = (0, Vec::new());
    for (entry, row) in booked {
        let Some(facts) = acknowledged_before(entry, target) else { continue };
        compared += 1;
        let expected = format!("id {}, {}", facts.id.unwrap_or_default(), row.content);
        match found.get(&row.reference) {
            Some(actual) if *actual == expected => {}
            Some(actual) => wrong.push(format!("{}: expected {expected}, found {actual}", row.reference)),
            None => wrong.push(format!("{} is missing: {expected}", row.reference)),
        }
    }
    (compared, wrong)
}

fn absent(target: Timestamp, booked: &Booked<'_>, found: &BTreeMap<String, String>) -> (usize, Vec<String>) {
    let later: Vec<_> = booked.iter().filter(|(entry, _)| entry.begun_at >= target).collect();
    let wrong = later
        .iter()
        .filter(|(_, row)| found.contains_key(&row.reference))
        .map(|(entry, row)| format!("{} is there, begun only at {}", row.reference, entry.begun_at))
        .collect();
    (later.len(), wrong)
}

fn strangers(booked: &Booked<'_>, found: &BTreeMap<String, String>) -> Vec<String> {
    let known: BTreeSet<_> = booked.iter().map(|(_, row)| row.reference.as_str()).collect();
    let unknown = found.iter().filter(|(reference, _)| !known.contains(reference.as_str()));
    unknown.map(|(reference, row)| format!("{reference} is in no ledger: {row}")).collect()
}

/// The rows that say by themselves when they were written.
pub(super) fn heartbeats(moments: &Moments, entries: &[Entry], rows: &Rows) -> Vec<Finding> {
    let acknowledged = entries.iter().filter_map(|entry| acknowledged_before(entry, moments.target));
    let beats: Vec<_> = acknowledged.filter_map(|facts| facts.beat).collect();
    let missing =
        beats.iter().filter(|beat| !rows.beats.contains(beat)).map(|beat| format!("{beat} is missing"));
    let late: Vec<_> = rows.beats.range(moments.target..).map(|beat| format!("{beat} is there")).collect();
    vec![
        Finding::required("heartbeats acknowledged before the target", beats.len(), missing.collect()),
        Finding::forbidden("heartbeats at or after it", rows.beats.len(), late),
    ]
}

/// The files whose upload was acknowledged before the backup began, and those from before any traffic.
pub(super) fn files(
    moments: &Moments,
    entries: &[Entry],
    seeds: &[(String, String)],
    checksum: impl Fn(&str) -> Result<String, String>,
) -> Vec<Finding> {
    let as_of = moments.files.unwrap_or(moments.target);
    let uploaded: Vec<_> = entries.iter().filter_map(|entry| uploaded_before(entry, as_of)).collect();
    let wrong = |files: &[(String, String)]| -> Vec<String> {
        let compare = |(path, expected): &(String, String)| match checksum(path) {
            Ok(actual) if actual == *expected => None,
            Ok(actual) => Some(format!("{path}: expected {expected}, found {actual}")),
            Err(error) => Some(format!("{path}: {error}")),
        };
        files.iter().filter_map(compare).collect()
    };
    vec![
        Finding::required("files from before the traffic", seeds.len(), wrong(seeds)),
        Finding::required("files uploaded before their backup", uploaded.len(), wrong(&uploaded)),
    ]
}

fn uploaded_before(entry: &Entry, as_of: Timestamp) -> Option<(String, String)> {
    let Write::Upload { sha256, .. } = &entry.write else { return None };
    Some((acknowledged_before(entry, as_of)?.path.clone()?, sha256.clone()))
}

/// Keys that must be in a restored Redis.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wanted {
    /// Counters, with the value that each had at least.
    pub(super) counters: BTreeMap<String, i64>,
    pub(super) sessions: BTreeSet<String>,
}

/// Collects what was acknowledged before the snapshot and has not expired since.
pub(super) fn wanted_keys(as_of: Timestamp, now: Timestamp, entries: &[Entry]) -> Wanted {
    let mut wanted = Wanted::default();
    for facts in entries.iter().filter_map(|entry| acknowledged_before(entry, as_of)) {
        if let Some(counter) = &facts.counter {
            let least = wanted.counters.entry(counter.key.clone()).or_default();
            *least = counter.value.max(*least);
        }
        if let Some(session) = facts.session.as_ref().filter(|session| session.expires_at > now) {
            wanted.sessions.insert(session.key.clone());
        }
    }
    wanted
}

/// The keys of Redis. A counter may be higher: it may have gone on between its last answer and the snapshot.
pub(super) fn keys(wanted: &Wanted, found: &BTreeMap<String, i64>) -> Vec<Finding> {
    let counter = |(key, least): (&String, &i64)| match found.get(key) {
        Some(value) if value >= least => None,
        Some(value) => Some(format!("{key} is {value}, was {least} before the snapshot")),
        None => Some(format!("{key} is missing, was {least}")),
    };
    let session =
        |key: &String| (!found.contains_key(key)).then(|| format!("{key} is missing and has not expired"));
    vec![
        Finding::required(
            "Redis counters from before the snapshot",
            wanted.counters.len(),
            wanted.counters.iter().filter_map(counter).collect(),
        ),
        Finding::forbidden(
            "Redis sessions from before the snapshot",
            wanted.sessions.len(),
            wanted.sessions.iter().filter_map(session).collect(),
        ),
    ]
}

fn acknowledged_before(entry: &Entry, moment: Timestamp) -> Option<&Facts> {
    match &entry.end {
        End::Acknowledged(at, facts) if *at < moment => Some(facts),
        _ => None,
    }
}

/// Says how many writes were under way at the target and so may be there or not.
pub(super) fn in_flight(moments: &Moments, entries: &[Entry]) -> String {
    let open = |entry: &&Entry| {
        entry.begun_at < moments.target
            && entry.end != End::Refused
            && acknowledged_before(entry, moments.target).is_none()
    };
    format!("not asserted: {} writes that were under way at the target", entries.iter().filter(open).count())
}

/// Prints the comparisons and says whether all are right.
pub(super) fn table(findings: &[Finding]) -> (String, bool) {
    let mut text = format!("{:<48} {:>8} {:>6}\n", "what", "compared", "wrong");
    for finding in findings {
        let Finding { what, compared, wrong } = finding;
        writeln!(text, "{what:<48} {compared:>8} {:>6}", wrong.len())
            .expect("writing to a String cannot fail");
        for line in wrong.iter().take(SHOWN) {
            writeln!(text, "    {line}").expect("writing to a String cannot fail");
        }
        if wrong.len() > SHOWN {
            writeln!(text, "    and {} more", wrong.len() - SHOWN).expect("writing to a String cannot fail");
        }
    }
    let wrong: usize = findings.iter().map(|finding| finding.wrong.len()).sum();
    let verdict = if wrong == 0 {
        "everything is as the ledger says".to_owned()
    } else {
        format!("{wrong} mismatches")
    };
    writeln!(text, "{verdict}").expect("writing to a String cannot fail");
    (text, wrong == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn moments() -> Moments {
        Moments { target: at(100), files: Some(at(50)), redis: Some(at(50)), now: at(200) }
    }

    fn pay(begun: i64, end: Option<i64>, id: i64) -> Entry {
        let write =
            Write::Payment { reference: format!("traffic-{id}"), member_id: 1, amount_cents: 100 * id };
        let facts = Facts { id: Some(id), ..Facts::default() };
        let end = end.map_or(End::Unknown, |second| End::Acknowledged(at(second), facts));
        Entry { begun_at: at(begun), write, end }
    }

    fn found(ids: &[i64]) -> Rows {
        let row = |id: &i64| (format!("traffic-{id}"), format!("id {id}, member 1, {} cents", 100 * id));
        Rows { payments: ids.iter().map(row).collect(), ..Rows::default() }
    }

    fn wrong(entries: &[Entry], found: &Rows) -> usize {
        rows(&moments(), entries, found).iter().map(|finding| finding.wrong.len()).sum()
    }

    #[test]
    fn acknowledged_before_must_be_there_and_begun_after_must_not() {
        let entries = [pay(10, Some(11), 1), pay(99, Some(101), 2), pay(98, None, 3), pay(100, Some(101), 4)];
        assert_eq!(wrong(&entries, &found(&[1])), 0, "what is in flight may be missing");
        assert_eq!(wrong(&entries, &found(&[1, 2, 3])), 0, "what is in flight may be there");
        assert_eq!(wrong(&entries, &found(&[2, 3])), 1, "a lost payment");
        assert_eq!(wrong(&entries, &found(&[1, 4])), 1, "a payment begun at the target");
        assert_eq!(wrong(&entries, &found(&[1, 9])), 1, "a payment from nowhere");
    }

    #[test]
    fn a_payment_with_another_amount_is_wrong() {
        let mut rows = found(&[1]);
        rows.payments.insert("traffic-1".into(), "id 1, member 1, 101 cents".into());
        assert_eq!(wrong(&[pay(10, Some(11), 1)], &rows), 1);
    }

    #[test]
    fn nothing_to_compare_proves_nothing() {
        assert_eq!(wrong(&[pay(100, Some(101), 1)], &found(&[])), 1);
        assert_eq!(wrong(&[], &found(&[])), 1);
        assert_eq!(keys(&Wanted::default(), &BTreeMap::new())[0].wrong.len(), 1);
        assert_eq!(baseline((0, 0), (0, 0)).wrong.len(), 1);
    }

    #[test]
    fn seeds_are_counted_and_added_up() {
        assert!(baseline((2, 30), (2, 30)).wrong.is_empty());
        assert_eq!(baseline((2, 30), (2, 31)).wrong.len(), 1);
    }

    #[test]
    fn heartbeats_show_both_edges() {
        let beat = |begun, acknowledged| Entry {
            begun_at: at(begun),
            write: Write::Heartbeat,
            end: End::Acknowledged(at(acknowledged), Facts { beat: Some(at(begun)), ..Facts::default() }),
        };
        let entries = [beat(97, 98), beat(98, 99), beat(99, 101)];
        let judge = |seconds: &[i64]| {
            let rows = Rows { beats: seconds.iter().map(|&second| at(second)).collect(), ..Rows::default() };
            heartbeats(&moments(), &entries, &rows).iter().map(|finding| finding.wrong.len()).sum::<usize>()
        };
        assert_eq!(judge(&[97, 98]), 0);
        assert_eq!(judge(&[97, 98, 99]), 0);
        assert_eq!(judge(&[97]), 1);
        assert_eq!(judge(&[97, 98, 100]), 1);
    }

    #[test]
    fn files_count_as_of_their_backup() {
        let upload = |second, path: &str| {
            let write = Write::Upload { reference: path.into(), sha256: "good".into(), bytes: 1 };
            let facts = Facts { path: Some(path.into()), ..Facts::default() };
            Entry { begun_at: at(second), write, end: End::Acknowledged(at(second), facts) }
        };
        let entries = [upload(49, "early"), upload(50, "late")];
        let seeds = [("seed".to_owned(), "good".to_owned())];
        let judge = |bad: &'static str| {
            let checksum =
                move |path: &str| if path == bad { Err("gone".to_owned()) } else { Ok("good".into()) };
            let findings = files(&moments(), &entries, &seeds, checksum);
            findings.iter().map(|finding| finding.wrong.len()).sum::<usize>()
        };
        assert_eq!((judge("late"), judge("early"), judge("seed")), (0, 1, 1));
    }

    #[test]
    fn counters_may_be_higher_but_not_lower() {
        let wanted = Wanted { counters: [("c".into(), 3)].into(), sessions: ["s".into()].into() };
        let judge = |found: &[(&str, i64)]| {
            let found = found.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect();
            keys(&wanted, &found).iter().map(|finding| finding.wrong.len()).sum::<usize>()
        };
        assert_eq!(judge(&[("c", 3), ("s", 1)]), 0);
        assert_eq!(judge(&[("c", 4), ("s", 1)]), 0);
        assert_eq!(judge(&[("c", 2), ("s", 1)]), 1);
        assert_eq!(judge(&[]), 2);
    }

    #[test]
    fn a_backup_from_after_the_target_is_refused() {
        assert!(moments().check().is_ok());
        assert!(Moments { files: Some(at(101)), ..moments() }.check().is_err());
    }

    #[test]
    fn the_table_says_what_is_wrong() {
        let finding = Finding::required("things", 2, vec!["a is missing".into()]);
        let (text, right) = table(&[finding]);
        assert!(!right && text.contains("a is missing") && text.contains("1 mismatches"), "{text}");
    }
}
