//! What is to be replayed: which files, from where to where, which transactions. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::super::codes;
use super::super::dump::Position;
use super::events::{LogFile, Transaction};
use super::gtid::{Gtid, State};

/// Where a replay begins, and where it ends.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Where the dump ends.
    pub(super) start: Position,
    /// The last transactions that are in the dump.
    pub(super) gtid: State,
    pub(super) until: Until,
}

/// Where a replay ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Just before this moment.
    Time(Timestamp),
    /// Just before this transaction.
    Before(Gtid),
    /// At the end of what was shipped.
    End,
}

impl Until {
    /// Says whether a transaction is the first one that is left out.
    ///
    /// Times in the log are whole seconds. A transaction of the second in which the target lies may be before or after it,
    /// and is left out: it may be the one that did the damage.
    fn is_reached(self, transaction: &Transaction) -> bool {
        match self {
            Self::Time(time) => transaction.time >= time.as_second(),
            Self::Before(gtid) => transaction.gtid == gtid,
            Self::End => false,
        }
    }
}

/// A file on this machine.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) path: PathBuf,
    pub(super) log: LogFile,
}

/// One transaction of a plan, with the file that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) piece: usize,
    pub(super) transaction: Transaction,
}

/// What is to be replayed, in this order.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) pieces: Vec<Piece>,
    pub(super) steps: Vec<Step>,
    /// Where to stop within the last file; `None` for its end.
    pub(super) stop: Option<u64>,
    /// The transaction before which it ends; `None` at the end of the log.
    pub(super) first_left_out: Option<Transaction>,
    /// Transactions in the second of the target, of which nobody knows whether they were before it.
    pub(super) same_second: usize,
    /// Transactions that are left out although their time is before the target: they were committed later.
    pub(super) stamped_earlier: usize,
    /// Transactions in files that were not needed.
    pub(super) later: u64,
}

impl Plan {
    /// Returns the last transaction of each domain after the replay, those of the dump left out.
    pub(super) fn position(&self) -> BTreeMap<u32, Gtid> {
        self.steps.iter().map(|step| (step.transaction.gtid.domain, step.transaction.gtid)).collect()
    }
}

/// Says whether a replay ends in this file.
pub(super) fn ends_in(log: &LogFile, wanted: &Wanted, is_first: bool) -> bool {
    following(log, wanted, is_first).any(|transaction| wanted.until.is_reached(transaction))
}

fn following<'a>(
    log: &'a LogFile,
    wanted: &'a Wanted,
    is_first: bool,
) -> impl Iterator<Item = &'a Transaction> {
    let from = if is_first { wanted.start.offset } else { 0 };
    log.transactions.iter().filter(move |transaction| transaction.offset >= from)
}

/// Makes the plan of files that follow each other, the first of which is that of the dump.
pub(super) fn make(pieces: Vec<Piece>, wanted: &Wanted, later: u64) -> Result<Plan, StepError> {
    if let Some(first) = pieces.first() {
        check_start(&first.log, wanted)?;
    }
    let mut plan = Plan {
        pieces: Vec::new(),
        steps: Vec::new(),
        stop: None,
        first_left_out: None,
        same_second: 0,
        stamped_earlier: 0,
        later,
    };
    for (index, piece) in pieces.iter().enumerate() {
        for transaction in following(&piece.log, wanted, index == 0) {
            plan.add(index, transaction, wanted);
        }
    }
    if let (Until::Before(gtid), None) = (wanted.until, &plan.first_left_out) {
        return Err(StepError::permanent(
            codes::LB2052,
            format!("the transaction {gtid} is not in the log after the dump"),
        )
        .help("nothing was replayed; correct `before_gtid`, or ship newer files first"));
    }
    let needed = plan.steps.last().map_or(0, |step| step.piece + 1);
    // Where the first transaction that is left out begins a file, the files before it are replayed to their ends.
    let stop = plan.first_left_out.as_ref().and_then(|left_out| {
        let last = pieces.get(needed.checked_sub(1)?)?;
        last.log.transactions.contains(left_out).then_some(left_out.offset)
    });
    plan.stop = stop;
    plan.pieces = pieces;
    plan.pieces.truncate(needed);
    Ok(plan)
}

impl Plan {
    fn add(&mut self, piece: usize, transaction: &Transaction, wanted: &Wanted) {
        if self.first_left_out.is_none() && !wanted.until.is_reached(transaction) {
            self.steps.push(Step { piece, transaction: transaction.clone() });
            return;
        }
        if self.first_left_out.is_none() {
            self.first_left_out = Some(transaction.clone());
        }
        if let Until::Time(time) = wanted.until {
            let second = time.as_second();
            let inside = time.as_nanosecond() % 1_000_000_000 != 0;
            self.same_second += usize::from(inside && transaction.time == second);
            self.stamped_earlier += usize::from(transaction.time < second);
        }
    }
}

/// The file must be the one in which the dump was taken: the place is the beginning of an event between two transactions,
/// and what is before it is what is in the dump.
fn check_start(log: &LogFile, wanted: &Wanted) -> Result<(), StepError> {
    let before = log.transactions.iter().filter(|transaction| transaction.offset < wanted.start.offset);
    let mut state = log.before.clone().unwrap_or_default();
    before.for_each(|transaction| state.add(transaction.gtid));
    let known = wanted.start.offset <= log.size;
    if known && state.position() == wanted.gtid.position() {
        return Ok(());
    }
    Err(StepError::permanent(
        codes::LB2050,
        format!(
            "{} in the store is not the file in which the dump was taken: at {} it holds [{state}], and the dump [{}]",
            wanted.start.file, wanted.start.offset, wanted.gtid
        ),
    )
    .help("nothing was replayed; the file is of another server, or its numbering was begun again: name the right `stream`"))
}

#[cfg(test)]
mod tests {
    use super::super::events;
    use super::super::events::tests::Writer;
    use super::*;

    fn piece(name: &str, bytes: &[u8]) -> Piece {
        Piece { path: name.into(), log: events::read(bytes).unwrap() }
    }

    /// Transactions 4 to 6 at 150, 152 and 152 in one file, 7 to 9 at 155, 151 and 157 in the next.
    fn pieces() -> Vec<Piece> {
        let one = Writer::new(7, "0-7-3")
            .transaction(4, 150, "a")
            .transaction(5, 152, "b")
            .transaction(6, 152, "c");
        let two = Writer::new(7, "0-7-6")
            .transaction(7, 155, "d")
            .transaction(8, 151, "e")
            .transaction(9, 157, "f");
        vec![piece("b.000001", &one.rotate("b.000002")), piece("b.000002", &two.rotate("b.000003"))]
    }

    fn planned(until: Until, start: usize) -> Result<Plan, StepError> {
        let pieces = pieces();
        let offset = pieces[0].log.transactions.get(start).map_or(pieces[0].log.size, |it| it.offset);
        let gtid = State::parse(&format!("0-7-{}", 3 + start)).unwrap();
        make(pieces, &Wanted { start: Position { file: "b.000001".into(), offset }, gtid, until }, 0)
    }

    fn sequences(plan: &Plan) -> Vec<u64> {
        plan.steps.iter().map(|step| step.transaction.gtid.sequence).collect()
    }

    fn at(text: &str) -> Until {
        let seconds: f64 = text.parse().unwrap();
        Until::Time(Timestamp::from_microsecond((seconds * 1e6) as i64).unwrap())
    }

    #[test]
    fn a_replay_ends_before_the_first_transaction_that_may_be_after_the_target() {
        for (until, expected, same, earlier) in [
            ("150", vec![], 0, 0),
            ("151", vec![4], 0, 0),
            ("152", vec![4], 0, 1),
            ("152.5", vec![4], 2, 1),
            ("153", vec![4, 5, 6], 0, 1),
            ("155", vec![4, 5, 6], 0, 1),
            ("156", vec![4, 5, 6, 7, 8], 0, 0),
            ("158", vec![4, 5, 6, 7, 8, 9], 0, 0),
        ] {
            let plan = planned(at(until), 0).unwrap();
            assert_eq!(sequences(&plan), expected, "{until}");
            assert_eq!(plan.same_second, same, "{until}");
            assert_eq!(plan.stamped_earlier, earlier, "{until}");
        }
    }

    #[test]
    fn a_stop_at_the_edge_of_a_file_is_the_end_of_the_one_before() {
        let plan = planned(at("155"), 0).unwrap();
        assert_eq!((plan.pieces.len(), plan.stop), (1, None));
        let plan = planned(at("152"), 0).unwrap();
        assert_eq!(plan.stop, Some(plan.pieces[0].log.transactions[1].offset));
        assert_eq!(planned(at("156"), 0).unwrap().pieces.len(), 2);
        assert_eq!(plan.position()[&0].to_string(), "0-7-4");
    }

    #[test]
    fn a_replay_begins_where_the_dump_ends_and_nowhere_else() {
        assert_eq!(sequences(&planned(Until::End, 2).unwrap()), [6, 7, 8, 9]);
        assert_eq!(sequences(&planned(Until::End, 3).unwrap()), [7, 8, 9]);
        let gtid = |text: &str| State::parse(text).unwrap();
        let start = Position { file: "b.000001".into(), offset: pieces()[0].log.transactions[1].offset };
        for (offset, state) in [(start.offset, "0-7-3"), (start.offset, "0-9-4"), (1 << 30, "0-7-6")] {
            let start = Position { offset, ..start.clone() };
            let wanted = Wanted { start, gtid: gtid(state), until: Until::End };
            assert_eq!(make(pieces(), &wanted, 0).unwrap_err().code, codes::LB2050, "{state}");
        }
    }

    #[test]
    fn a_replay_can_end_before_a_transaction() {
        let before = |text: &str| planned(Until::Before(Gtid::parse(text).unwrap()), 0);
        assert_eq!(sequences(&before("0-7-8").unwrap()), [4, 5, 6, 7]);
        assert_eq!(before("0-7-80").unwrap_err().code, codes::LB2052);
        assert_eq!(before("0-7-2").unwrap_err().code, codes::LB2052, "it is in the dump already");
    }
}
