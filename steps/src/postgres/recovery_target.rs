//! Where a recovery is to stop.

use jiff::Timestamp;
use lifeboat_engine::code::LB0304;
use lifeboat_engine::step::{ParamProblem, StepError};
use lifeboat_engine::value::{Field, Type, parse_timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::wal::Lsn;

/// Where replay stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryTarget {
    /// Just before the first commit at or after this moment.
    Time(Timestamp),
    Lsn {
        at: Lsn,
        edge: Edge,
    },
    /// At the commit or the abort of a transaction.
    Transaction {
        id: u32,
        edge: Edge,
    },
    /// At what `pg_create_restore_point` has written.
    RestorePoint(String),
    /// As soon as the backup is consistent.
    Immediate,
    /// As far as there is WAL.
    Latest,
}

/// On which side of its target a recovery stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edge {
    /// The target itself is not replayed.
    Before,
    Through,
}

/// The parameters that name a target. At most one of them is given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TargetParams {
    target: Option<Word>,
    target_time: Option<String>,
    target_lsn: Option<String>,
    target_xid: Option<u64>,
    target_name: Option<String>,
    inclusive: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Immediate,
    Latest,
}

/// Which targets a kind takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    All,
    /// Those whose place among the backups is known before anything is replayed.
    Located,
}

const NAMES: [&str; 5] = ["target", "target_time", "target_lsn", "target_xid", "target_name"];

impl TargetParams {
    /// Returns the descriptions of the parameters.
    pub fn fields(targets: Targets) -> Vec<Field> {
        let mut fields = vec![
            Field::optional(
                "target_time",
                Type::Timestamp,
                "Just before this moment: nothing that was committed at or after it.",
            ),
            Field::optional(
                "target_lsn",
                Type::String,
                "Just before the record at this position, such as `0/3000028`.",
            ),
            Field::optional(
                "target",
                Type::choice(&["latest", "immediate"]),
                "`latest`: all WAL there is, as without any target. `immediate`: the end of the backup.",
            ),
        ];
        if targets == Targets::All {
            fields.extend([
                Field::optional(
                    "target_xid",
                    Type::Integer,
                    "Just before the commit of this transaction; others commit in another order than they begin.",
                ),
                Field::optional(
                    "target_name",
                    Type::String,
                    "At the restore point that `pg_create_restore_point` made under this name.",
                ),
                Field::optional(
                    "inclusive",
                    Type::Boolean,
                    "For `target_lsn` and `target_xid`: replay that record or transaction as well.",
                ),
            ]);
        }
        fields
    }

    /// Finds what is wrong with parameters that are written out.
    pub fn check(with: &Map<String, Value>) -> Vec<ParamProblem> {
        let given: Vec<&str> =
            NAMES.into_iter().filter(|name| with.get(*name).is_some_and(|value| !value.is_null())).collect();
        let mut problems = Vec::new();
        if let [_, second, ..] = given[..] {
            let message = format!("a recovery has one target, and this step has {}", listed(&given));
            let help = Some("keep one of them".to_owned());
            problems.push(ParamProblem { param: second.to_owned(), message, help });
        }
        if let Some(Err(error)) = with.get("target_lsn").and_then(Value::as_str).map(str::parse::<Lsn>) {
            let help = Some("on the source: select pg_current_wal_lsn()".to_owned());
            problems.push(ParamProblem { param: "target_lsn".into(), message: error.to_string(), help });
        }
        problems
    }

    /// Returns the one target that is given; all WAL if there is none.
    pub fn resolve(&self) -> Result<RecoveryTarget, StepError> {
        let given = [
            ("target", self.target.is_some()),
            ("target_time", self.target_time.is_some()),
            ("target_lsn", self.target_lsn.is_some()),
            ("target_xid", self.target_xid.is_some()),
            ("target_name", self.target_name.is_some()),
        ];
        let given: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        if given.len() > 1 {
            return Err(unfit(format!("a recovery has one target, and this step has {}", listed(&given))));
        }
        let edge = if self.inclusive == Some(true) { Edge::Through } else { Edge::Before };
        if self.inclusive.is_some() && self.target_lsn.is_none() && self.target_xid.is_none() {
            return Err(unfit("`inclusive` goes with `target_lsn` and `target_xid` only".to_owned()));
        }
        if let Some(text) = &self.target_time {
            return parse_timestamp(text).map(RecoveryTarget::Time).map_err(unfit);
        }
        if let Some(text) = &self.target_lsn {
            let at = text.parse().map_err(|error: super::wal::InvalidLsn| unfit(error.to_string()))?;
            return Ok(RecoveryTarget::Lsn { at, edge });
        }
        if let Some(id) = self.target_xid {
            // The upper half counts how often the numbers began anew, and is in no record.
            let id = u32::try_from(id & u64::from(u32::MAX)).expect("32 bits");
            return Ok(RecoveryTarget::Transaction { id, edge });
        }
        if let Some(name) = &self.target_name {
            return Ok(RecoveryTarget::RestorePoint(name.clone()));
        }
        Ok(match self.target {
            Some(Word::Immediate) => RecoveryTarget::Immediate,
            Some(Word::Latest) | None => RecoveryTarget::Latest,
        })
    }
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ")
}

fn unfit(message: String) -> StepError {
    StepError::permanent(LB0304, message)
        .help("compare the parameters with `lifeboat steps postgres.recover`")
}

impl RecoveryTarget {
    /// Refuses a target whose place among the backups is only known once the log is replayed.
    pub fn check_located(&self) -> Result<(), StepError> {
        if !matches!(self, Self::Transaction { .. } | Self::RestorePoint(_)) {
            return Ok(());
        }
        Err(unfit(format!("which backup lies before {self} is not known")).help(
            "give `backup`: `postgres.select_backup` chooses it by a `target_time` that is certain to be before the target",
        ))
    }

    /// Returns the moment, if it is one.
    pub fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Time(time) => Some(*time),
            _ => None,
        }
    }
}

impl std::fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Time(time) => write!(f, "just before {time}"),
            Self::Lsn { at, edge } => write!(f, "{edge} the record at {at}"),
            Self::Transaction { id, edge } => write!(f, "{edge} the commit of transaction {id}"),
            Self::RestorePoint(name) => write!(f, "the restore point `{name}`"),
            Self::Immediate => f.write_str("the end of the backup"),
            Self::Latest => f.write_str("the end of the WAL"),
        }
    }
}

impl std::fmt::Display for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Before => "just before",
            Self::Through => "right after",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resolve(with: Value) -> Result<RecoveryTarget, String> {
        let params: TargetParams = serde_json::from_value(with).expect("parameters");
        params.resolve().map_err(|error| error.message)
    }

    #[test]
    fn each_target_is_read() {
        let at = Lsn(0x0300_0028);
        let cases = [
            (json!({}), RecoveryTarget::Latest, "the end of the WAL"),
            (json!({"target": "latest", "target_time": null}), RecoveryTarget::Latest, "the end of the WAL"),
            (json!({"target": "immediate"}), RecoveryTarget::Immediate, "the end of the backup"),
            (
                json!({"target_lsn": "0/3000028"}),
                RecoveryTarget::Lsn { at, edge: Edge::Before },
                "just before the record at 0/3000028",
            ),
            (
                json!({"target_xid": (1_u64 << 32) + 742, "inclusive": true}),
                RecoveryTarget::Transaction { id: 742, edge: Edge::Through },
                "right after the commit of transaction 742",
            ),
            (
                json!({"target_name": "before import"}),
                RecoveryTarget::RestorePoint("before import".into()),
                "the restore point `before import`",
            ),
        ];
        for (with, expected, shown) in cases {
            assert_eq!(resolve(with), Ok(expected.clone()));
            assert_eq!(expected.to_string(), shown);
            let text = serde_json::to_string(&expected).expect("JSON");
            assert_eq!(serde_json::from_str::<RecoveryTarget>(&text).expect("JSON"), expected);
        }
        let time = resolve(json!({"target_time": "2026-11-21T06:11:51.5+01:00"})).expect("a time");
        assert_eq!(time.to_string(), "just before 2026-11-21T05:11:51.5Z");
    }

    #[test]
    fn two_targets_and_odd_ones_are_refused() {
        let two = json!({"target_lsn": "0/3000028", "target": "latest"});
        let Value::Object(map) = &two else { unreachable!("written as a map") };
        let problems = TargetParams::check(map);
        assert_eq!((problems.len(), problems[0].param.as_str()), (1, "target_lsn"));
        assert!(resolve(two).expect_err("two").contains("`target` and `target_lsn`"));
        assert!(resolve(json!({"target_lsn": "3000028"})).expect_err("no slash").contains("0/3000028"));
        let inclusive = json!({"target_time": "2026-11-21T06:11:51Z", "inclusive": true});
        assert!(resolve(inclusive).expect_err("times are exclusive").contains("inclusive"));
    }
}
