//! Finding members and deciding on them.

use axum::Json;
use axum::extract::{Path, Query, State};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::Row;

use super::App;
use super::auth::User;
use crate::error::ApiError;
use crate::members::Status;

#[derive(Debug, Deserialize)]
pub(super) struct Search {
    #[serde(default)]
    q: String,
    status: Option<Status>,
    limit: Option<i64>,
}

/// Finds members by a part of the name or the start of the address.
pub(super) async fn search(
    State(app): State<App>,
    _user: User,
    Query(search): Query<Search>,
) -> Result<Json<Value>, ApiError> {
    let question = "
        SELECT id, name, email, status, joined_at FROM members
        WHERE ($2::text IS NULL OR status = $2)
          AND (lower(name) LIKE '%' || $1 || '%' OR lower(email) LIKE $1 || '%')
        ORDER BY name, id LIMIT $3";
    let pattern = literal(&search.q.to_lowercase());
    let status = search.status.map(Status::word);
    let limit = search.limit.unwrap_or(20).clamp(1, 200);
    let rows = app.pool.get().await?.query(question, &[&pattern, &status, &limit]).await?;
    let members: Vec<_> = rows.iter().map(member).collect();
    Ok(Json(json!({ "count": members.len(), "members": members })))
}

/// A search text is text, not a pattern.
fn literal(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}

/// Shows one member.
pub(super) async fn show(
    State(app): State<App>,
    _user: User,
    Path(id): Path<i64>,
) -> Result<Json<Value>, ApiError> {
    let question = "SELECT id, name, email, status, joined_at FROM members WHERE id = $1";
    let row = app.pool.get().await?.query_opt(question, &[&id]).await?;
    row.map(|row| Json(member(&row))).ok_or_else(|| unknown(id))
}

#[derive(Debug, Deserialize)]
pub(super) struct Decision {
    status: Status,
    /// Chosen by the client: the same one twice is refused, so a decision is not made twice by a repeated request.
    reference: String,
}

/// Changes where a membership stands, and writes down who did.
pub(super) async fn decide(
    State(app): State<App>,
    User(user): User,
    Path(id): Path<i64>,
    Json(decision): Json<Decision>,
) -> Result<Json<Value>, ApiError> {
    let mut client = app.pool.get().await?;
    let transaction = client.transaction().await?;
    let lock = "SELECT status FROM members WHERE id = $1 FOR UPDATE";
    let row = transaction.query_opt(lock, &[&id]).await?.ok_or_else(|| unknown(id))?;
    let old: String = row.get(0);
    let next = decision.status.word();
    if !Status::from_word(&old).is_some_and(|status| status.may_become(decision.status)) {
        return Err(ApiError::Conflict(format!("member {id} is {old} and cannot become {next}")));
    }
    transaction.execute("UPDATE members SET status = $2 WHERE id = $1", &[&id, &next]).await?;
    let audit = "
        INSERT INTO member_audit (member_id, user_id, old_status, new_status, reference)
        VALUES ($1, $2, $3, $4, $5) RETURNING id";
    let row = transaction.query_one(audit, &[&id, &user, &old, &next, &decision.reference]).await?;
    let audit_id: i64 = row.get(0);
    transaction.commit().await?;
    Ok(Json(json!({ "member_id": id, "old_status": old, "status": next, "audit_id": audit_id })))
}

fn member(row: &Row) -> Value {
    json!({
        "id": row.get::<_, i64>(0),
        "name": row.get::<_, String>(1),
        "email": row.get::<_, String>(2),
        "status": row.get::<_, String>(3),
        "joined_at": row.get::<_, Timestamp>(4),
    })
}

pub(super) fn unknown(id: i64) -> ApiError {
    ApiError::NotFound(format!("there is no member {id}"))
}

#[cfg(test)]
mod tests {
    use super::literal;

    #[test]
    fn signs_of_patterns_are_searched_as_they_are() {
        assert_eq!(literal("50%_\\"), "50\\%\\_\\\\");
    }
}
