//! `postgres.drop_database`

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, Preview, Probe, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::connect::{Client, Login};
use super::super::{codes, local};
use super::facts::{
    Facts, PATIENT, check_name, connect_beside, find, missing, name_of, quoted, refuse_own, sessions, stamped,
};
use super::made::{self, moves_are_back, record_moves};
use super::moves::{Move, Moves, Sessions, Stand, disconnect};
use crate::probe::bytes;

/// Takes a database away.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct DropDatabase;

#[derive(Deserialize)]
struct Params {
    cluster: String,
    database: String,
    how: How,
    sessions: Sessions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum How {
    MoveAside,
    Delete,
}

/// The renames, recorded before they happen.
const MOVES: &str = "moves";
/// The oid of what will be deleted.
const DELETING: &str = "deleting";

const DOC: &str = "\
By default the database is not dropped: it is renamed to `NAME_pre_RUN`, nobody can log in to it, and undo renames it \
back. `how: delete` drops it for good.

While anybody is logged in the step fails and names the sessions; `sessions: disconnect` ends them. The databases that \
belong to the server itself and templates are refused. A database that was dropped or moved by an attempt that was cut \
off is success; one that never was there is an error.

A drill that moved a database aside gives it its name back in the end; what it deleted for good is gone.";

#[async_trait]
impl StepKind for DropDatabase {
    fn spec(&self) -> KindSpec {
        KindSpec::new("postgres.drop_database", "Moves a database aside, or drops it.", Effect::Guarded)
            .doc(DOC)
            .param(Field::required("cluster", Type::writes(ResourceKind::Postgres), "The server."))
            .param(Field::required("database", Type::String, "The database."))
            .param(Field::defaulted(
                "how",
                Type::choice(&["move_aside", "delete"]),
                "move_aside",
                "Whether it is renamed or gone for good.",
            ))
            .param(Field::defaulted(
                "sessions",
                Type::choice(&["refuse", "disconnect"]),
                "refuse",
                "What to do about people who are logged in.",
            ))
            .output("database", Type::String, "The name that it had.")
            .output("moved_to", Type::String, "The name that it has now; empty if it was deleted.")
            .output("bytes", Type::Integer, "Its size.")
            .destroys("the database: it is moved aside, or with `how: delete` gone for good")
            .undoes("renames a database that was moved aside back")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let (client, place) = beside(ctx, &params).await?;
        let name = &params.database;
        let Some(found) = find(&client, name).await? else {
            return Ok(Preview {
                actions: Vec::new(),
                destroys: vec![format!("no database `{name}` on {place}")],
            });
        };
        let what = format!(
            "database `{name}` on {place}: {}, owner {}, {} sessions",
            bytes(found.bytes),
            found.owner,
            found.sessions
        );
        let (action, destroys) = match params.how {
            How::MoveAside => {
                let to = stamped(name, &format!("_pre_{}", ctx.info.run.short()));
                (
                    format!("alter database {} rename to {}", quoted(name), quoted(&to)),
                    format!("{what}; moved aside"),
                )
            }
            How::Delete => (format!("drop database {}", quoted(name)), format!("{what}; deleted for good")),
        };
        Ok(Preview { actions: vec![action], destroys: vec![destroys] })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        check_name(&params.database)?;
        refuse_own(&params.database)?;
        let (client, place) = beside(ctx, &params).await?;
        if let Some(done) = done_before(ctx, &params, &client).await? {
            return Ok(done);
        }
        let found =
            find(&client, &params.database).await?.ok_or_else(|| missing(&params.database, &place))?;
        if found.template {
            return Err(StepError::permanent(codes::LB1805, format!("`{}` is a template", found.name))
                .help("if it really is to go: alter database … is_template false"));
        }
        match params.how {
            How::MoveAside => move_aside(ctx, &params, (&client, &found)).await,
            How::Delete => delete(ctx, &params, (&client, &found)).await,
        }
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let params: Params = ctx.params()?;
        let (client, _) = beside(ctx, &params).await?;
        Ok(done_before(ctx, &params, &client).await?.map_or(Probe::NotDone, Probe::Done))
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let mut done = Done::default();
        if let Some(moves) = recorded(ctx) {
            let (client, _) = beside(ctx, &params).await?;
            moves.take_back(&client).await?;
            moves_are_back(ctx, &moves).await?;
            done.facts.insert("back in its place".into(), params.database.clone());
        } else if ctx.recorded(DELETING).is_some() {
            done.warnings.push(format!("`{}` was deleted; a dump brings it back", params.database));
        }
        Ok(done)
    }

    async fn clean_up(&self, ctx: &StepContext, resource: &str, handle: &Value) -> Result<String, StepError> {
        made::clean_up(ctx, resource, handle).await
    }
}

async fn beside(ctx: &StepContext, params: &Params) -> Result<(Client, String), StepError> {
    let login = Login::of(ctx, local::cluster(ctx, &params.cluster)?)?;
    let place = format!("`{}` ({})", params.cluster, login.endpoint);
    Ok((connect_beside(&login, &[&params.database]).await?, place))
}

fn recorded(ctx: &StepContext) -> Option<Moves> {
    serde_json::from_value(ctx.recorded(MOVES)?.clone()).ok()
}

/// Returns the results if an earlier attempt did it.
async fn done_before(ctx: &StepContext, params: &Params, client: &Client) -> Result<Option<Done>, StepError> {
    if let Some(moves) = recorded(ctx) {
        let one = &moves.0[0];
        let after = moves.stand(client).await? == Stand::After;
        return Ok(after.then(|| done(params, &one.to, ctx)));
    }
    let Some(oid) = ctx.recorded(DELETING).and_then(Value::as_u64) else { return Ok(None) };
    let gone = name_of(client, u32::try_from(oid).unwrap_or_default()).await?.is_none();
    Ok(gone.then(|| done(params, "", ctx)))
}

fn done(params: &Params, moved_to: &str, ctx: &StepContext) -> Done {
    let bytes = ctx.recorded("bytes").cloned().unwrap_or_else(|| json!(0));
    local::done(json!({ "database": params.database, "moved_to": moved_to, "bytes": bytes }))
}

async fn move_aside(
    ctx: &StepContext,
    params: &Params,
    (client, found): (&Client, &Facts),
) -> Result<Done, StepError> {
    let to = stamped(&found.name, &format!("_pre_{}", ctx.info.run.short()));
    let moves = match recorded(ctx) {
        Some(moves) => moves,
        None => {
            let moves = Moves(vec![Move::new(found, &to, false)]);
            ctx.record("bytes", found.bytes).await?;
            record_moves(ctx, client, (&params.cluster, &moves)).await?;
            ctx.record(MOVES, json!(moves)).await?;
            moves
        }
    };
    moves.make(client, params.sessions).await?;
    Ok(local::done(json!({ "database": found.name, "moved_to": moves.0[0].to, "bytes": found.bytes })))
}

async fn delete(
    ctx: &StepContext,
    params: &Params,
    (client, found): (&Client, &Facts),
) -> Result<Done, StepError> {
    let using = sessions(client, found.oid).await?;
    if params.sessions == Sessions::Refuse && !using.is_empty() {
        let mut error =
            StepError::permanent(codes::LB1802, format!("the database `{}` is in use", found.name))
                .help("stop what uses it, or give the step `sessions: disconnect`; nothing was dropped");
        error.causes = using;
        return Err(error);
    }
    ctx.record("bytes", found.bytes).await?;
    ctx.record(DELETING, found.oid).await?;
    if !using.is_empty() {
        disconnect(client, found.oid).await?;
    }
    client.batch(&format!("drop database {}", quoted(&found.name)), PATIENT).await.map_err(|error| {
        let error = error.into_step();
        StepError { message: format!("`{}` cannot be dropped: {}", found.name, error.message), ..error }
    })?;
    Ok(local::done(json!({ "database": found.name, "moved_to": "", "bytes": found.bytes })))
}
