//! The media feed: rows in Postgres, files in the uploads directory, the list in Redis for a moment.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::header::{CONTENT_TYPE, ETAG};
use axum::http::{HeaderName, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::auth::User;
use crate::error::ApiError;
use crate::uploads;

/// Lists the newest items that can be fetched. A row whose file is not there is counted under `missing`.
pub(super) async fn feed(State(app): State<App>, _user: User) -> Result<Json<Value>, ApiError> {
    // Without Redis the feed is slower, not gone.
    let kept = app.cache.feed().await.ok().flatten();
    if let Some(mut feed) = kept.and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
        feed["cached"] = json!(true);
        return Ok(Json(feed));
    }
    let feed = read_feed(&app).await?;
    if let Err(error) = app.cache.keep_feed(&feed.to_string()).await {
        eprintln!("the feed is not kept: {error}");
    }
    Ok(Json(feed))
}

async fn read_feed(app: &App) -> Result<Value, ApiError> {
    let question = "
        SELECT id, title, path, sha256, bytes, uploaded_at FROM media
        ORDER BY uploaded_at DESC, id DESC LIMIT 50";
    let rows = app.pool.get().await?.query(question, &[]).await?;
    let (there, missing): (Vec<_>, Vec<_>) = rows.iter().partition(|row| app.uploads.has(row.get(2)));
    let items: Vec<_> = there
        .iter()
        .map(|row| {
            json!({
                "id": row.get::<_, i64>(0),
                "title": row.get::<_, String>(1),
                "sha256": row.get::<_, String>(3),
                "bytes": row.get::<_, i64>(4),
                "uploaded_at": row.get::<_, Timestamp>(5),
            })
        })
        .collect();
    Ok(json!({ "count": items.len(), "items": items, "missing": missing.len(), "cached": false }))
}

/// Sends one file, if it is what was uploaded.
pub(super) async fn fetch(
    State(app): State<App>,
    _user: User,
    Path(id): Path<i64>,
) -> Result<([(HeaderName, String); 2], Vec<u8>), ApiError> {
    let question = "SELECT path, sha256 FROM media WHERE id = $1";
    let row = app.pool.get().await?.query_opt(question, &[&id]).await?;
    let row = row.ok_or_else(|| ApiError::NotFound(format!("there is no media item {id}")))?;
    let (path, sha256): (String, String) = (row.get(0), row.get(1));
    let bytes = app.uploads.get(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ApiError::NotFound(format!("the file of media item {id} is missing")),
        _ => ApiError::Unavailable { what: "uploads", detail: format!("{path}: {error}") },
    })?;
    if uploads::checksum(&bytes) != sha256 {
        return Err(ApiError::Internal(format!("{path} is not what was uploaded as media item {id}")));
    }
    let content = if bytes.starts_with(b"<svg") { "image/svg+xml" } else { "application/octet-stream" };
    Ok(([(CONTENT_TYPE, content.to_owned()), (ETAG, format!("\"{sha256}\""))], bytes))
}

#[derive(Debug, Deserialize)]
pub(super) struct About {
    title: String,
    /// Chosen by the client: the same one twice is refused.
    reference: String,
}

/// Takes a file. Answers once both the file and its row are durable; a file without a row is harmless.
pub(super) async fn upload(
    State(app): State<App>,
    User(user): User,
    Query(about): Query<About>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    if body.is_empty() {
        return Err(ApiError::Invalid("the file is empty".to_owned()));
    }
    let (uploads, bytes) = (app.uploads.clone(), body.len());
    let put = tokio::task::spawn_blocking(move || uploads.put(&body)).await;
    let (path, sha256) = put
        .map_err(|error| ApiError::Internal(error.to_string()))?
        .map_err(|error| ApiError::Unavailable { what: "uploads", detail: error.to_string() })?;
    let insert = "
        INSERT INTO media (title, reference, path, sha256, bytes, uploaded_by)
        VALUES ($1, $2, $3, $4, $5, $6) RETURNING id";
    let bytes = i64::try_from(bytes).map_err(|error| ApiError::Internal(error.to_string()))?;
    let About { title, reference } = &about;
    let client = app.pool.get().await?;
    let row = client.query_one(insert, &[title, reference, &path, &sha256, &bytes, &user]).await?;
    if let Err(error) = app.cache.forget_feed().await {
        eprintln!("the kept feed stays until it expires: {error}");
    }
    let id: i64 = row.get(0);
    Ok((StatusCode::CREATED, Json(json!({ "id": id, "path": path, "sha256": sha256 }))))
}
