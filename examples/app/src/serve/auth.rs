//! Logins: a token for a password, kept in Redis for an hour.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use crate::error::ApiError;
use crate::{cache, password, random};

/// Who sent a request, proven by a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct User(pub(super) i64);

#[derive(Debug, Deserialize)]
pub(super) struct Login {
    user: String,
    password: String,
}

/// Gives a token to who knows the password.
pub(super) async fn login(State(app): State<App>, Json(login): Json<Login>) -> Result<Json<Value>, ApiError> {
    let question = "SELECT id, password_hash FROM users WHERE name = $1";
    let row = app.pool.get().await?.query_opt(question, &[&login.user]).await?;
    let (id, stored) = row.map_or((0, String::new()), |row| (row.get(0), row.get(1)));
    // Takes a while on purpose, so it must not hold up other requests.
    let right = tokio::task::spawn_blocking(move || password::matches(&login.password, &stored)).await;
    if !right.map_err(|error| ApiError::Internal(error.to_string()))? {
        return Err(ApiError::Unauthorized("the user or the password is wrong"));
    }
    let token = random::bytes::<24>().map(|bytes| random::hex(&bytes));
    let token = token.map_err(|error| ApiError::Internal(error.to_string()))?;
    let logins = app.cache.begin_session(&token, id).await?;
    let lifetime = SignedDuration::from_secs(i64::try_from(cache::SESSION_SECONDS).unwrap_or(i64::MAX));
    Ok(Json(json!({
        "token": token,
        "user_id": id,
        "expires_at": Timestamp::now() + lifetime,
        "session_key": cache::session_key(&token),
        "counter": { "key": cache::logins_key(id), "value": logins },
    })))
}

impl FromRequestParts<App> for User {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer "));
        let token = token.ok_or(ApiError::Unauthorized("log in first: POST /login"))?;
        let user = app.cache.session_user(token).await?;
        user.map(Self).ok_or(ApiError::Unauthorized("the session has ended: log in again"))
    }
}
