//! `postgres.create_database`

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, Preview, Probe, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::connect::{Client, Login};
use super::super::server::QUICK;
use super::super::{codes, local};
use super::facts::{Facts, PATIENT, check_name, connect_beside, find, quoted, stamped, text};
use super::made::{self, Making, end_making, made_is_gone};
use super::moves::{Move, Moves, Sessions};

/// Makes an empty database.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct CreateDatabase;

#[derive(Deserialize)]
struct Params {
    cluster: String,
    database: String,
    owner: Option<String>,
    encoding: Option<String>,
    locale: Option<String>,
    template: String,
    existing: Existing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Existing {
    Refuse,
    Keep,
}

/// The name that the database has while it is made, recorded before: nothing else has it.
const INTO: &str = "into";
/// The oid of what was made, recorded before it gets its own name.
const MADE: &str = "made";

const DOC: &str = "\
Makes a database, from `template0` unless `template` says another. One that is there already is an error; with \
`existing: keep` it is success if its owner and encoding are those that the step gives. An existing database is never \
changed.

Undo drops it if it holds no table and nobody is logged in; otherwise it stays, and a warning says so. A drill drops it in \
the end, whatever it holds by then.

It is made as `NAME_making_RUN` and gets its name last, so that whatever is cut off leaves nothing of which nobody knows \
whose it is.";

#[async_trait]
impl StepKind for CreateDatabase {
    fn spec(&self) -> KindSpec {
        KindSpec::new("postgres.create_database", "Makes an empty database.", Effect::Guarded)
            .doc(DOC)
            .param(Field::required("cluster", Type::writes(ResourceKind::Postgres), "The server."))
            .param(Field::required("database", Type::String, "Its name, at most 63 bytes."))
            .param(Field::optional(
                "owner",
                Type::String,
                "The role that owns it; the one that logs in if absent.",
            ))
            .param(Field::optional(
                "encoding",
                Type::String,
                "Such as `UTF8`; that of the template if absent.",
            ))
            .param(Field::optional(
                "locale",
                Type::String,
                "Collation and character classes; those of the template if absent.",
            ))
            .param(Field::defaulted("template", Type::String, "template0", "What it is a copy of."))
            .param(Field::defaulted(
                "existing",
                Type::choice(&["refuse", "keep"]),
                "refuse",
                "What to do if the name is taken.",
            ))
            .output("database", Type::String, "Its name.")
            .output("created", Type::Boolean, "False if it was there already.")
            .undoes("drops the database if it is still empty")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        Ok(Preview { actions: vec![statement(&params, &params.database)], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        check_name(&params.database)?;
        let client = beside(ctx, &params).await?;
        if let Some(found) = find(&client, &params.database).await? {
            return existing(ctx, &params, &found);
        }
        let scratch = scratch(ctx, &client, &params).await?;
        let made = make(ctx, &params, (&client, &scratch)).await;
        if let Err(error) = &made
            && error.kind == FailureKind::Permanent
        {
            // What cannot be dropped now is found by the next attempt, by undo, or when a drill ends.
            drop_scratch(ctx, &client, &scratch).await.ok();
        }
        made
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let params: Params = ctx.params()?;
        let found = find(&beside(ctx, &params).await?, &params.database).await?;
        let ours = found.is_some_and(|found| is_ours(ctx, &found));
        Ok(if ours { Probe::Done(done(&params, true)) } else { Probe::NotDone })
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let mut done = Done::default();
        let Some(scratch) = recorded(ctx) else { return Ok(done) };
        let client = beside(ctx, &params).await?;
        drop_scratch(ctx, &client, scratch).await?;
        let name = &params.database;
        let Some(oid) = made(ctx) else { return Ok(done) };
        match find(&client, name).await? {
            Some(found) if found.oid != oid => {
                done.warnings.push(format!("`{name}` is another database now, and stays"));
            }
            Some(found) if found.sessions > 0 || holds_tables(ctx, &params).await? => {
                done.warnings.push(format!("the database `{name}` is in use or holds tables, so it stays"));
            }
            Some(_) => {
                client.batch(&format!("drop database {}", quoted(name)), PATIENT).await?;
                made_is_gone(ctx, name).await?;
                done.facts.insert("dropped".into(), name.clone());
            }
            None => {}
        }
        Ok(done)
    }

    async fn clean_up(&self, ctx: &StepContext, resource: &str, handle: &Value) -> Result<String, StepError> {
        made::clean_up(ctx, resource, handle).await
    }
}

/// Returns the name of the database in the making, durable before it is used; what an earlier attempt left there is dropped.
async fn scratch(ctx: &StepContext, client: &Client, params: &Params) -> Result<String, StepError> {
    if let Some(scratch) = recorded(ctx) {
        drop_scratch(ctx, client, scratch).await?;
        return Ok(scratch.to_owned());
    }
    let scratch = stamped(&params.database, &format!("_making_{}", ctx.info.run.short()));
    if find(client, &scratch).await?.is_some() {
        let message = format!("there is a database `{scratch}` already");
        return Err(StepError::permanent(codes::LB1800, message)
            .help("another step of this run makes it; make one after the other"));
    }
    ctx.record(INTO, scratch.as_str()).await?;
    Ok(scratch)
}

/// Drops half a database, which nobody knows yet.
async fn drop_scratch(ctx: &StepContext, client: &Client, scratch: &str) -> Result<(), StepError> {
    end_making(client, scratch).await?;
    client.batch(&format!("drop database if exists {} with (force)", quoted(scratch)), PATIENT).await?;
    made_is_gone(ctx, scratch).await
}

/// Makes the database under a name of the run's, and gives it its own last: from the first moment on it is known whose it is.
async fn make(
    ctx: &StepContext,
    params: &Params,
    (client, scratch): (&Client, &str),
) -> Result<Done, StepError> {
    let making = Making { cluster: &params.cluster, scratch, database: &params.database };
    making.record(ctx, client, None).await?;
    client.batch(&statement(params, scratch), PATIENT).await.map_err(|error| {
        let error = error.into_step();
        StepError { message: format!("`{}` cannot be made: {}", params.database, error.message), ..error }
    })?;
    let made = find(client, scratch).await?.ok_or_else(|| {
        StepError::permanent(codes::LB1804, format!("somebody has dropped the database `{scratch}`"))
            .help("it was being made by this step; begin anew")
    })?;
    making.record(ctx, client, Some(made.oid)).await?;
    ctx.record(MADE, made.oid).await?;
    Moves(vec![Move::new(&made, &params.database, true)]).make(client, Sessions::Disconnect).await?;
    Ok(done(params, true))
}

async fn beside(ctx: &StepContext, params: &Params) -> Result<Client, StepError> {
    let login = Login::of(ctx, local::cluster(ctx, &params.cluster)?)?;
    connect_beside(&login, &[&params.database]).await
}

fn recorded(ctx: &StepContext) -> Option<&str> {
    ctx.recorded(INTO).and_then(Value::as_str)
}

fn made(ctx: &StepContext) -> Option<u32> {
    ctx.recorded(MADE).and_then(Value::as_u64).and_then(|oid| u32::try_from(oid).ok())
}

fn is_ours(ctx: &StepContext, found: &Facts) -> bool {
    made(ctx) == Some(found.oid)
}

fn existing(ctx: &StepContext, params: &Params, found: &Facts) -> Result<Done, StepError> {
    if is_ours(ctx, found) {
        return Ok(done(params, true));
    }
    let name = &params.database;
    if params.existing == Existing::Refuse {
        return Err(StepError::permanent(codes::LB1800, format!("there is a database `{name}` already"))
            .help("give another name, or `existing: keep`; `postgres.drop_database` moves it aside"));
    }
    for (what, wanted, actual) in
        [("owner", &params.owner, &found.owner), ("encoding", &params.encoding, &found.encoding)]
    {
        if let Some(wanted) = wanted.as_ref().filter(|wanted| !wanted.eq_ignore_ascii_case(actual)) {
            let message =
                format!("the database `{name}` is there, and its {what} is `{actual}`, not `{wanted}`");
            return Err(StepError::permanent(codes::LB1800, message)
                .help("correct the step, or give the database another name"));
        }
    }
    Ok(done(params, false))
}

fn done(params: &Params, created: bool) -> Done {
    local::done(json!({ "database": params.database, "created": created }))
}

fn statement(params: &Params, name: &str) -> String {
    let mut sql = format!("create database {} template {}", quoted(name), quoted(&params.template));
    if let Some(owner) = &params.owner {
        sql.push_str(&format!(" owner {}", quoted(owner)));
    }
    if let Some(encoding) = &params.encoding {
        sql.push_str(&format!(" encoding {}", text(encoding)));
    }
    if let Some(locale) = &params.locale {
        sql.push_str(&format!(" lc_collate {0} lc_ctype {0}", text(locale)));
    }
    sql
}

/// Says whether the database holds tables of its own.
async fn holds_tables(ctx: &StepContext, params: &Params) -> Result<bool, StepError> {
    let login = Login::of(ctx, local::cluster(ctx, &params.cluster)?)?;
    let client = login.database(&params.database).connect().await?;
    let sql = "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where c.relkind in ('r', 'p', 'm', 'f') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema')";
    Ok(client.query_one(sql, &[], QUICK).await?.get(0))
}
