//! Payments.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::Transaction;

use super::App;
use super::auth::User;
use super::members::unknown;
use crate::cache;
use crate::error::ApiError;

#[derive(Debug, Deserialize)]
pub(super) struct Payment {
    member_id: i64,
    amount_cents: i64,
    method: String,
    /// Chosen by the client: the same one twice is the same payment.
    reference: String,
}

/// Enters a payment. Answers 201 once it is committed, and 200 if the same payment was there already.
pub(super) async fn enter(
    State(app): State<App>,
    User(user): User,
    Json(payment): Json<Payment>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let mut client = app.pool.get().await?;
    let transaction = client.transaction().await?;
    let member = "SELECT 1 FROM members WHERE id = $1";
    if transaction.query_opt(member, &[&payment.member_id]).await?.is_none() {
        return Err(unknown(payment.member_id));
    }
    let insert = "
        INSERT INTO payments (member_id, amount_cents, method, reference, entered_by)
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT (reference) DO NOTHING RETURNING id";
    let Payment { member_id, amount_cents, method, reference } = &payment;
    let row = transaction.query_opt(insert, &[member_id, amount_cents, method, reference, &user]).await?;
    let Some(row) = row else { return Ok((StatusCode::OK, Json(earlier(&transaction, &payment).await?))) };
    let id: i64 = row.get(0);
    let audit = "
        INSERT INTO payment_audit (payment, action, user_id, amount_cents) VALUES ($1, 'entered', $2, $3)";
    transaction.execute(audit, &[reference, &user, amount_cents]).await?;
    transaction.commit().await?;
    Ok((StatusCode::CREATED, Json(json!({ "id": id, "counter": count(&app, payment.member_id).await }))))
}

/// The payment is committed: if Redis cannot count it, it is entered all the same.
async fn count(app: &App, member: i64) -> Value {
    match app.cache.count_payment(member).await {
        Ok(value) => json!({ "key": cache::payments_key(member), "value": value }),
        Err(error) => {
            eprintln!("a payment of member {member} is not counted: {error}");
            Value::Null
        }
    }
}

/// Returns the payment with the same reference, if it is the same in all else.
async fn earlier(transaction: &Transaction<'_>, payment: &Payment) -> Result<Value, ApiError> {
    let question = "SELECT id, member_id, amount_cents FROM payments WHERE reference = $1";
    let row = transaction.query_one(question, &[&payment.reference]).await?;
    if (row.get::<_, i64>(1), row.get::<_, i64>(2)) != (payment.member_id, payment.amount_cents) {
        return Err(ApiError::Conflict(format!(
            "the reference {} belongs to another payment",
            payment.reference
        )));
    }
    Ok(json!({ "id": row.get::<_, i64>(0), "counter": null }))
}

#[derive(Debug, Deserialize)]
pub(super) struct Of {
    member_id: i64,
}

/// Lists the payments of a member, newest first.
pub(super) async fn list(
    State(app): State<App>,
    _user: User,
    Query(of): Query<Of>,
) -> Result<Json<Value>, ApiError> {
    let question = "
        SELECT id, amount_cents, method, reference, entered_at FROM payments
        WHERE member_id = $1 ORDER BY entered_at DESC, id DESC LIMIT 200";
    let rows = app.pool.get().await?.query(question, &[&of.member_id]).await?;
    let payments: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "id": row.get::<_, i64>(0),
                "amount_cents": row.get::<_, i64>(1),
                "method": row.get::<_, String>(2),
                "reference": row.get::<_, String>(3),
                "entered_at": row.get::<_, Timestamp>(4),
            })
        })
        .collect();
    Ok(Json(json!({ "count": payments.len(), "payments": payments })))
}
