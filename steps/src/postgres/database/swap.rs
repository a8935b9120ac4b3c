//! `postgres.swap_database`

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, Preview, Probe, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::connect::{Client, Login};
use super::super::{codes, local};
use super::facts::{check_name, connect_beside, find, missing, quoted, refuse_own, stamped};
use super::made::{self, moves_are_back, record_moves};
use super::moves::{Move, Moves, Sessions, Stand};
use crate::probe::bytes;

/// Puts one database in the place of another.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct SwapDatabase;

#[derive(Deserialize)]
struct Params {
    cluster: String,
    database: String,
    with: String,
    keep_as: Option<String>,
    sessions: Sessions,
}

/// The renames, recorded before they happen.
const MOVES: &str = "moves";

const DOC: &str = "\
Gives the database `with` the name `database`, and keeps the one that had it as `NAME_pre_RUN`, to which nobody can log \
in. Both renames are one transaction, so that there is no moment without a database of that name, and a crash leaves \
either the old one or the new one there. Logins are closed and sessions ended first; with `sessions: refuse` the step \
fails instead while anybody is logged in to one of the two.

Undo swaps them back, and so does a drill in the end. Roles, grants and settings that belong to a database (`ALTER \
DATABASE … SET`, `ALTER ROLE … IN DATABASE`) stay with it and do not change hands. Drop the old one with \
`postgres.drop_database` when it is signed off.";

#[async_trait]
impl StepKind for SwapDatabase {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "postgres.swap_database",
            "Puts a database in the place of another, which is kept.",
            Effect::Guarded,
        )
        .doc(DOC)
        .param(Field::required("cluster", Type::writes(ResourceKind::Postgres), "The server."))
        .param(Field::required("database", Type::String, "The name that the new one gets."))
        .param(Field::required("with", Type::String, "The new one, verified before."))
        .param(Field::optional(
            "keep_as",
            Type::String,
            "What the old one is called then; `NAME_pre_RUN` if absent.",
        ))
        .param(Field::defaulted(
            "sessions",
            Type::choice(&["refuse", "disconnect"]),
            "disconnect",
            "What to do about people who are logged in.",
        ))
        .output("database", Type::String, "The name that the new one has now.")
        .output("previous", Type::String, "The name that the old one has now.")
        .destroys("the database of that name: it is moved aside")
        .undoes("swaps the two databases back")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let (client, place) = beside(ctx, &params).await?;
        let actions = vec![
            format!("alter database {} rename to {}", quoted(&params.database), quoted(&kept(ctx, &params))),
            format!("alter database {} rename to {}", quoted(&params.with), quoted(&params.database)),
        ];
        let destroys = match find(&client, &params.database).await? {
            Some(found) => format!(
                "database `{}` on {place}: {}, {} sessions; moved aside",
                found.name,
                bytes(found.bytes),
                found.sessions
            ),
            None => format!("no database `{}` on {place}", params.database),
        };
        Ok(Preview { actions, destroys: vec![destroys] })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (client, place) = beside(ctx, &params).await?;
        let moves = match recorded(ctx) {
            Some(moves) => moves,
            None => plan(ctx, &params, (&client, &place)).await?,
        };
        moves.make(&client, params.sessions).await?;
        Ok(done(&moves))
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let Some(moves) = recorded(ctx) else { return Ok(Probe::NotDone) };
        let (client, _) = beside(ctx, &ctx.params()?).await?;
        Ok(match moves.stand(&client).await? {
            Stand::After => Probe::Done(done(&moves)),
            Stand::Before => Probe::NotDone,
        })
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let Some(moves) = recorded(ctx) else { return Ok(Done::default()) };
        let (client, _) = beside(ctx, &ctx.params()?).await?;
        moves.take_back(&client).await?;
        moves_are_back(ctx, &moves).await?;
        let mut done = Done::default();
        done.facts.insert("back in its place".into(), moves.0[0].from.clone());
        Ok(done)
    }

    async fn clean_up(&self, ctx: &StepContext, resource: &str, handle: &Value) -> Result<String, StepError> {
        made::clean_up(ctx, resource, handle).await
    }
}

fn recorded(ctx: &StepContext) -> Option<Moves> {
    serde_json::from_value(ctx.recorded(MOVES)?.clone()).ok()
}

async fn beside(ctx: &StepContext, params: &Params) -> Result<(Client, String), StepError> {
    let login = Login::of(ctx, local::cluster(ctx, &params.cluster)?)?;
    let place = format!("`{}` ({})", params.cluster, login.endpoint);
    Ok((connect_beside(&login, &[&params.database, &params.with]).await?, place))
}

fn kept(ctx: &StepContext, params: &Params) -> String {
    let name = || stamped(&params.database, &format!("_pre_{}", ctx.info.run.short()));
    params.keep_as.clone().unwrap_or_else(name)
}

/// Looks at everything before anything is changed, and records what will be done.
async fn plan(
    ctx: &StepContext,
    params: &Params,
    (client, place): (&Client, &str),
) -> Result<Moves, StepError> {
    let kept = kept(ctx, params);
    for name in [&params.database, &params.with, &kept] {
        check_name(name)?;
        refuse_own(name)?;
    }
    let old = find(client, &params.database).await?.ok_or_else(|| missing(&params.database, place))?;
    let new = find(client, &params.with).await?.ok_or_else(|| missing(&params.with, place))?;
    if old.oid == new.oid {
        let message = format!("`database` and `with` are the same database, `{}`", old.name);
        return Err(StepError::permanent(codes::LB1803, message).help("name two databases"));
    }
    if find(client, &kept).await?.is_some() {
        return Err(StepError::permanent(codes::LB1800, format!("there is a database `{kept}` already"))
            .help("give `keep_as` another name; nothing was renamed"));
    }
    let moves = Moves(vec![Move::new(&old, &kept, false), Move::new(&new, &params.database, true)]);
    record_moves(ctx, client, (&params.cluster, &moves)).await?;
    ctx.record(MOVES, json!(moves)).await?;
    Ok(moves)
}

fn done(moves: &Moves) -> Done {
    local::done(json!({ "database": moves.0[1].to, "previous": moves.0[0].to }))
}
