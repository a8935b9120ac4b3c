//! Gives a restored database its name, and takes that back.

use lifeboat_engine::model::event::Done;
use lifeboat_engine::step::{StepContext, StepError};
use serde_json::{Value, json};

use super::super::codes;
use super::super::connect::Client;
use super::super::database::{
    Making, Move, Moves, PATIENT, Sessions, Stand, end_making, find, made_is_gone, moves_are_back, quoted,
    record_moves, stamped,
};

/// The name under which the dump is restored, recorded before a database of that name is made.
const INTO: &str = "into";
/// The renames, recorded before they happen.
const MOVES: &str = "moves";
/// The results, recorded before the renames.
const RESULT: &str = "result";

/// Returns the name of the database in the making, durable before it is used. Nothing else has it: it holds the run.
pub(super) async fn scratch(ctx: &StepContext, client: &Client, database: &str) -> Result<String, StepError> {
    if let Some(into) = ctx.recorded(INTO).and_then(Value::as_str) {
        drop_scratch(ctx, client, into).await?;
        return Ok(into.to_owned());
    }
    let into = stamped(database, &format!("_restore_{}", ctx.info.run.short()));
    if find(client, &into).await?.is_some() {
        let message = format!("there is a database `{into}` already");
        return Err(StepError::permanent(codes::LB1800, message)
            .help("another step of this run makes it; restore one after the other, or into other names"));
    }
    ctx.record(INTO, into.as_str()).await?;
    Ok(into)
}

/// Drops what half a restore left.
pub(super) async fn drop_scratch(ctx: &StepContext, client: &Client, into: &str) -> Result<(), StepError> {
    end_making(client, into).await?;
    client.batch(&format!("drop database if exists {} with (force)", quoted(into)), PATIENT).await?;
    made_is_gone(ctx, into).await
}

/// Returns the results if an earlier attempt has given the database its name.
pub(super) async fn published(ctx: &StepContext, client: &Client) -> Result<Option<Done>, StepError> {
    let (Some(moves), Some(result)) = (recorded(ctx), ctx.recorded(RESULT)) else { return Ok(None) };
    match moves.stand(client).await? {
        Stand::After => Ok(serde_json::from_value(result.clone()).ok()),
        Stand::Before => Ok(None),
    }
}

/// Gives the restored database its name, and moves the one that has it aside if it may: otherwise the server refuses.
pub(super) async fn publish(
    ctx: &StepContext,
    client: &Client,
    making: &Making<'_>,
    (mut done, aside): (Done, Option<Sessions>),
) -> Result<Done, StepError> {
    let Making { cluster, scratch: into, database } = *making;
    let gone = || {
        StepError::permanent(codes::LB1282, format!("the restored database `{into}` is gone"))
            .help("somebody has dropped or renamed it; begin a new run")
    };
    let new = find(client, into).await?.ok_or_else(gone)?;
    let old = match aside {
        Some(_) => find(client, database).await?,
        None => None,
    };
    let kept = stamped(database, &format!("_pre_{}", ctx.info.run.short()));
    let previous = if old.is_some() { kept.as_str() } else { "" };
    done.outputs.insert("previous".into(), json!(previous));
    let moved = old.as_ref().map(|old| Move::new(old, &kept, false));
    let moves = Moves(moved.into_iter().chain([Move::new(&new, database, true)]).collect());
    ctx.record(RESULT, serde_json::to_value(&done).expect("results are JSON")).await?;
    if old.is_some() {
        record_moves(ctx, client, (cluster, &moves)).await?;
    }
    ctx.record(MOVES, json!(moves)).await?;
    moves.make(client, aside.unwrap_or(Sessions::Disconnect)).await?;
    Ok(done)
}

/// Takes back what the step did: the earlier database has its name again, the restored one is kept under another; half
/// a restore is dropped.
pub(super) async fn undo(ctx: &StepContext, client: &Client) -> Result<Done, StepError> {
    let mut done = Done::default();
    let into = ctx.recorded(INTO).and_then(Value::as_str);
    let Some(moves) = recorded(ctx) else {
        if let Some(into) = into {
            drop_scratch(ctx, client, into).await?;
        }
        return Ok(done);
    };
    moves.take_back(client).await?;
    moves_are_back(ctx, &moves).await?;
    let into = into.unwrap_or_default();
    done.warnings
        .push(format!("the restored database is kept as `{into}`: drop it when nobody needs it any more"));
    if let Some(old) = moves.0.first().filter(|old| old.from != into) {
        done.facts.insert("back in its place".into(), old.from.clone());
    }
    Ok(done)
}

fn recorded(ctx: &StepContext) -> Option<Moves> {
    serde_json::from_value(ctx.recorded(MOVES)?.clone()).ok()
}
