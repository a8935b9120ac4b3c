//! `mariadb.replay_binlog`

use std::path::PathBuf;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Confidence, RecoveryPoint};
use lifeboat_engine::resource::{Mariadb, ResourceKind, shown};
use lifeboat_engine::step::{
    Effect, KindSpec, ParamProblem, Preview, Probe, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::codes;
use super::super::connect::{Client, Login, QUICK, quoted, server, text};
use super::super::dump::{Restored, restored_state};
use super::super::facts::{self, Facts};
use super::super::packets::Raised;
use super::again;
use super::apply::{self, Apply};
use super::archive::Archive;
use super::fetch;
use super::gtid::{Gtid, State};
use super::plan::{Plan, Until, Wanted};
use crate::home::Home;
use crate::sql::done;
use crate::store::{Meter, Store, blocking};

/// Replays the binary log.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct ReplayBinlog;

#[derive(Clone, Deserialize)]
struct Params {
    server: String,
    store: String,
    stream: Option<String>,
    target_time: Option<Timestamp>,
    before_gtid: Option<String>,
    dir: Option<PathBuf>,
}

const DOC: &str = "\
Goes on where `mariadb.restore_dump` has ended, and replays what `mariadb.ship_binlogs` has shipped: to just before \
`target_time`, or just before the transaction `before_gtid`, or to the end of what was shipped.

The place to stop is computed from the events themselves and given to `mariadb-binlog` as a position, never as a time. Times \
in the log are whole seconds, of when the last statement of a transaction began: transactions of the second in which the target lies are left out, for one of them may have \
done the damage; their number is in a warning. Replay ends before the first transaction that is not before the target, \
although one after it may carry an earlier time: it was committed later.

Before anything is written: every file is there and goes on where the one before it ends, in number and in transactions, its \
checksums are right, all are of the server that the dump is of, the first one held at the dump's position what is in the \
dump, and the target has no transaction that is not in the plan. All files go through one `mariadb-binlog` and one \
connection, as temporary tables need it, with the time zone UTC. If `mariadb-binlog` is cut off, half a statement is never run.

Afterwards the target's own binary log must hold exactly the planned transactions, by their ids: so the target must keep \
one (`mariadb.clone` does). An attempt that was cut off goes on behind the last transaction that is there, after the session \
of the one before has ended. It refuses to where that would be wrong: after temporary tables, with tables without \
transactions, and when the server was killed whose settings let it lose what it had committed (with \
`innodb_flush_log_at_trx_commit` 0; after a crash of the machine with anything but 1 for it and `sync_binlog`).";

#[async_trait]
impl StepKind for ReplayBinlog {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "mariadb.replay_binlog",
            "Replays shipped binary logs after a restored dump, to just before a moment.",
            Effect::Guarded,
        )
        .doc(DOC)
        .param(Field::required(
            "server",
            Type::writes(ResourceKind::Mariadb),
            "The server into which the dump was restored.",
        ))
        .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the files are."))
        .param(Field::optional(
            "stream",
            Type::String,
            "The name of the log in the store; that of the dump's server if absent.",
        ))
        .param(Field::optional("target_time", Type::Timestamp, "Replay ends just before it."))
        .param(Field::optional(
            "before_gtid",
            Type::String,
            "Replay ends just before this transaction, such as `0-1-4711`; instead of `target_time`.",
        ))
        .param(Field::optional(
            "dir",
            Type::Path,
            "Where the files are brought to; the state of the run if absent.",
        ))
        .output("planned", Type::Integer, "How many transactions lie between the dump and the target.")
        .output("applied", Type::Integer, "How many of them this attempt has applied.")
        .output("reached", Type::Timestamp, "When the last one was committed, or the dump was taken.")
        .output("gtid", Type::String, "The last transactions in the data.")
        .output(
            "stopped_before",
            Type::Any,
            "The first transaction that was left out; null at the end of the log.",
        )
        .output("end_of_log", Type::Boolean, "True if everything that was shipped was replayed.")
        .restores()
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let wrong =
            with.get("before_gtid").and_then(Value::as_str).filter(|text| Gtid::parse(text).is_none());
        let problem = |param: &str, message: String| ParamProblem {
            param: param.into(),
            message,
            help: Some("a transaction is named as in `0-1-4711`; give it or `target_time`, not both".into()),
        };
        let mut problems: Vec<_> = wrong
            .map(|text| problem("before_gtid", format!("`{text}` is no transaction")))
            .into_iter()
            .collect();
        if with.contains_key("before_gtid") && with.contains_key("target_time") {
            problems.push(problem("before_gtid", "two ends are given".to_owned()));
        }
        problems
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let until = match (params.target_time, &params.before_gtid) {
            (Some(time), _) => format!("just before {time}"),
            (None, Some(gtid)) => format!("just before the transaction {gtid}"),
            (None, None) => "the end of what was shipped".to_owned(),
        };
        let action =
            format!("mariadb-binlog … | mariadb: replay the binary log of `{}` to {until}", params.store);
        Ok(Preview { actions: vec![action], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let (work, mut client) = Work::new(ctx).await?;
        let result = work.run(&mut client).await;
        if result.is_ok() {
            work.home.remove(ctx).await?;
        }
        result
    }

    /// What is there already is found by its ids: running again is always right.
    async fn probe(&self, _: &StepContext) -> Result<Probe, StepError> {
        Ok(Probe::NotDone)
    }
}

struct Work<'a> {
    ctx: &'a StepContext,
    params: Params,
    mariadb: &'a Mariadb,
    login: Login,
    facts: Facts,
    restored: Restored,
    wanted: Wanted,
    archive: Archive,
    home: Home,
}

impl<'a> Work<'a> {
    async fn new(ctx: &'a StepContext) -> Result<(Self, Client), StepError> {
        let params: Params = ctx.params()?;
        let mariadb = server(ctx, &params.server)?;
        let login = Login::of(ctx, &params.server)?.database(None);
        let mut client = login.connect().await?;
        let facts = facts::read(&mut client).await?;
        facts::check_place(mariadb, &facts)?;
        check_target(&facts)?;
        let restored = restored_state(&mut client).await?.ok_or_else(|| {
            StepError::permanent(codes::LB2050, "the server does not say which dump was restored into it")
                .help("restore one with `mariadb.restore_dump` first; nothing was replayed")
        })?;
        let wanted = wanted(&params, &restored)?;
        let store = Store::of(ctx, &params.store).await?;
        let stream = params.stream.clone().unwrap_or_else(|| restored.resource.clone());
        let archive = Archive::new(&store, &stream, restored.server_id)?;
        let home = Home::choose(ctx, params.dir.as_deref(), None, codes::LB2053)?;
        Ok((Self { ctx, params, mariadb, login, facts, restored, wanted, archive, home }, client))
    }

    async fn run(&self, client: &mut Client) -> Result<Done, StepError> {
        again::end_session(self.ctx, client).await?;
        let plan = self.plan().await?;
        let before = self.there(client, &plan).await?;
        again::check(self.ctx, client, &self.restored, (&plan, before)).await?;
        if before < plan.steps.len() {
            again::begin(self.ctx, client).await?;
            let apply = Apply { ctx: self.ctx, mariadb: self.mariadb, login: &self.login, plan: &plan };
            let raised = Raised::on(client).await?;
            let applied = apply.run(before).await;
            raised.put_back(client).await;
            applied?;
        }
        let there = self.there(client, &plan).await?;
        let checks = self.prove(client, &plan, there).await?;
        let failed: Vec<_> =
            checks.iter().filter(|check| !check.passed).map(|check| check.actual.clone()).collect();
        if !failed.is_empty() {
            let message = format!(
                "{} of {} planned transactions are in the server: {}",
                there,
                plan.steps.len(),
                failed.join("; ")
            );
            return Err(StepError::permanent(codes::LB2054, message)
                .help("do not use this data: restore the dump again and replay into that, or restore another dump")
                .checks(checks));
        }
        self.finish(client, &plan, (before, checks)).await
    }

    async fn plan(&self) -> Result<Plan, StepError> {
        self.home.make(self.ctx, None).await?;
        let meter = Meter::bytes(self.ctx, None, "fetching the binary log");
        let (archive, wanted, dir) = (self.archive.clone(), self.wanted.clone(), self.home.path.clone());
        blocking(move || fetch::plan(&archive, &wanted, (&dir, &meter))).await
    }

    /// Returns how many of the planned transactions the server has. One that is in no plan is an error: somebody has
    /// written into it, or its ids would collide with those of the log.
    async fn there(&self, client: &mut Client, plan: &Plan) -> Result<usize, StepError> {
        let [gtid] = client.one("select @@gtid_binlog_pos").await?;
        let state = State::parse(&gtid).unwrap_or_default();
        let collision = |gtid: Gtid| {
            StepError::permanent(
                codes::LB2051,
                format!("the server has the transaction {gtid} of its own, which is not in the plan"),
            )
            .help("somebody has written into it since the restore: restore the dump into a fresh server, and replay at once")
        };
        let mut count = 0;
        for last in state.all() {
            let at = plan.steps.iter().position(|step| step.transaction.gtid == last);
            count = count.max(at.ok_or_else(|| collision(last))? + 1);
        }
        Ok(count)
    }

    async fn prove(&self, client: &mut Client, plan: &Plan, there: usize) -> Result<Vec<Check>, StepError> {
        let planned = plan.steps.len();
        let last = |gtids: Vec<String>| if gtids.is_empty() { "none".to_owned() } else { gtids.join(",") };
        let expected = last(plan.position().values().map(ToString::to_string).collect());
        let [gtid] = client.one("select @@gtid_binlog_pos").await?;
        let state = State::parse(&gtid).unwrap_or_default();
        let actual = last(state.position().values().map(ToString::to_string).collect());
        let mut checks = vec![
            Check {
                name: "last transactions".into(),
                passed: expected == actual,
                expected: expected.clone(),
                actual,
            },
            Check {
                name: "transactions planned and applied".into(),
                expected: planned.to_string(),
                actual: there.to_string(),
                passed: planned == there,
            },
        ];
        checks.extend(apply::logged(client, plan).await?);
        Ok(checks)
    }

    async fn finish(
        &self,
        client: &mut Client,
        plan: &Plan,
        (before, checks): (usize, Vec<Check>),
    ) -> Result<Done, StepError> {
        let newest = plan.steps.iter().map(|step| step.transaction.time).max();
        let newest = newest.and_then(|time| Timestamp::from_second(time).ok());
        let reached = newest.unwrap_or(self.restored.taken_at);
        let [gtid] = client.one("select @@gtid_binlog_pos").await?;
        let gtid = if gtid.is_empty() { self.restored.gtid.clone().unwrap_or_default() } else { gtid };
        let left_out = plan.first_left_out.as_ref().map(|transaction| transaction.gtid.to_string());
        let mut done = done(json!({
            "planned": plan.steps.len(), "applied": plan.steps.len() - before, "reached": reached, "gtid": gtid,
            "stopped_before": left_out, "end_of_log": plan.first_left_out.is_none(),
        }));
        done.warnings = self.warnings(plan).await?;
        done.checks = checks;
        done.facts.insert("server".into(), format!("MariaDB {}", self.facts.version));
        done.facts.insert("transactions left out, as far as was looked".into(), plan.later.to_string());
        done.recovery_points.push(self.point(client, (reached, newest.is_some()), &gtid).await);
        Ok(done)
    }

    async fn warnings(&self, plan: &Plan) -> Result<Vec<String>, StepError> {
        let mut warnings = Vec::new();
        if plan.same_second > 0 {
            warnings.push(format!(
                "{} transactions of the target's own second were left out: the log does not say whether they were before it \
                 (`before_gtid` can)",
                plan.same_second
            ));
        }
        if plan.stamped_earlier > 0 {
            warnings.push(format!(
                "{} transactions that carry an earlier time than the target were left out, because they were committed after \
                 the first one that is not before it",
                plan.stamped_earlier
            ));
        }
        let Until::Time(target) = self.wanted.until else { return Ok(warnings) };
        if plan.first_left_out.is_none() {
            let archive = self.archive.clone();
            let newest = blocking(move || archive.list()).await?.last().map(|file| file.covered_until);
            if newest.is_none_or(|covered| covered < target) {
                let covered = newest.map_or("nothing".to_owned(), |covered| format!("up to {covered}"));
                warnings.push(format!(
                    "the log was replayed to its end before the target: what was shipped covers {covered}, and later \
                     transactions are lost unless the server still has its log"
                ));
            }
        }
        Ok(warnings)
    }

    /// The newest change in the data: the heartbeat row where the resource has one, else the last transaction.
    async fn point(
        &self,
        client: &mut Client,
        (reached, replayed): (Timestamp, bool),
        gtid: &str,
    ) -> RecoveryPoint {
        let point = |time: String, method: &str, confidence| RecoveryPoint {
            resource: shown(&self.params.server).to_owned(),
            time,
            position: (!gtid.is_empty()).then(|| gtid.to_owned()),
            method: method.into(),
            confidence,
        };
        if let Some(heartbeat) = &self.mariadb.heartbeat {
            let sql = format!(
                "select date_format(max({}), '%Y-%m-%dT%H:%i:%s.%fZ') from {}.{}",
                quoted(&heartbeat.column),
                quoted(&heartbeat.database),
                quoted(&heartbeat.table)
            );
            let newest = client.rows(&sql, QUICK).await.ok().and_then(|rows| Some(text(rows.first()?, 0)));
            if let Some(time) = newest.and_then(|text| text.parse::<Timestamp>().ok()) {
                return point(time.to_string(), "heartbeat row", Confidence::Measured);
            }
        }
        match replayed {
            true => point(reached.to_string(), "last replayed commit", Confidence::Measured),
            false => point(reached.to_string(), "dump snapshot", Confidence::Stated),
        }
    }
}

fn check_target(facts: &Facts) -> Result<(), StepError> {
    if !facts.logs {
        return Err(StepError::permanent(
            codes::LB2051,
            "the server keeps no binary log, so that nobody could say what was replayed into it",
        )
        .help("replay into a server with `log_bin`, such as a `mariadb.clone`; nothing was replayed"));
    }
    if facts.scheduler == "ON" {
        return Err(StepError::permanent(
            codes::LB2051,
            "the server runs events, which would write between the transactions",
        )
        .help("`set global event_scheduler = off` until the replay is done; nothing was replayed"));
    }
    Ok(())
}

fn wanted(params: &Params, restored: &Restored) -> Result<Wanted, StepError> {
    let refuse = |message: String, help: &str| Err(StepError::permanent(codes::LB2050, message).help(help));
    let Some(start) = restored.position.clone() else {
        return refuse(
            format!("the dump `{}` gives no place in a binary log to go on from", restored.backup),
            "it was taken without one, or restored under another name; nothing was replayed",
        );
    };
    if !restored.whole_server {
        return refuse(
            format!("the dump `{}` lacks databases of its server, which the log writes to", restored.backup),
            "restore a dump of all databases; nothing was replayed",
        );
    }
    let until = match (params.target_time, &params.before_gtid) {
        (Some(_), Some(_)) => {
            return refuse("`target_time` and `before_gtid` are given".into(), "give one of them");
        }
        (Some(time), None) if time <= restored.taken_at => {
            return Err(StepError::permanent(
                codes::LB2052,
                format!("the target {time} is before the dump, which was taken at {}", restored.taken_at),
            )
            .help("restore an earlier dump (`before`); nothing was replayed"));
        }
        (Some(time), None) => Until::Time(time),
        (None, Some(text)) => match Gtid::parse(text) {
            Some(gtid) => Until::Before(gtid),
            None => return refuse(format!("`{text}` is no transaction"), "write it as in `0-1-4711`"),
        },
        (None, None) => Until::End,
    };
    let gtid = restored.gtid.as_deref().map(State::parse);
    match gtid {
        Some(None) => refuse("the dump's transactions cannot be read".into(), "restore another dump"),
        Some(Some(gtid)) => Ok(Wanted { start, gtid, until }),
        None => Ok(Wanted { start, gtid: State::default(), until }),
    }
}
