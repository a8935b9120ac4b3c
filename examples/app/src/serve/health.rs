//! Whether this instance runs, and whether what it needs is there.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::App;
use crate::error::{ApiError, database_message};

/// Answers as long as the program runs.
pub(super) async fn live(State(app): State<App>) -> Json<Value> {
    Json(json!({ "live": true, "instance": name(&app) }))
}

/// Answers 200 if requests can be served and 503 otherwise, with what is wrong with each part.
pub(super) async fn ready(State(app): State<App>) -> (StatusCode, Json<Value>) {
    let (postgres, redis) = tokio::join!(postgres(&app), redis(&app));
    let uploads = app.uploads.probe().map_err(|error| error.to_string());
    let ready = postgres.is_ok() && redis.is_ok() && uploads.is_ok();
    let word = |state: Result<(), String>| state.err().unwrap_or_else(|| "ok".to_owned());
    let body = json!({
        "ready": ready,
        "instance": name(&app),
        "checks": { "postgres": word(postgres), "redis": word(redis), "uploads": word(uploads) },
    });
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body))
}

fn name(app: &App) -> String {
    String::from_utf8_lossy(app.instance.as_bytes()).into_owned()
}

/// A server that is still replaying answers queries, but cannot take a payment.
async fn postgres(app: &App) -> Result<(), String> {
    let client = app.pool.get().await.map_err(|error| match error {
        ApiError::Unavailable { detail, .. } => detail,
        other => format!("{other:?}"),
    })?;
    let question = "SELECT pg_is_in_recovery(), to_regclass('members') IS NOT NULL";
    let row = client.query_one(question, &[]).await.map_err(|error| database_message(&error))?;
    match (row.get(0), row.get(1)) {
        (true, _) => Err("the server is in recovery and takes no writes".to_owned()),
        (false, false) => Err("the table members is not there".to_owned()),
        (false, true) => Ok(()),
    }
}

async fn redis(app: &App) -> Result<(), String> {
    app.cache.ping().await.map_err(|error| error.to_string())
}
