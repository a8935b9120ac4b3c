//! What can go wrong while a request is answered, and what the client is told.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio_postgres::error::SqlState;

/// Any error of the commands, shown as it is.
pub(crate) type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A request that is not answered with what it asked for.
#[derive(Debug)]
pub(crate) enum ApiError {
    Unauthorized(&'static str),
    NotFound(String),
    Invalid(String),
    Conflict(String),
    /// Something this program depends on does not answer; the client may try again.
    Unavailable {
        what: &'static str,
        detail: String,
    },
    Internal(String),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Unauthorized(_) => "unauthorized",
            Self::NotFound(_) => "not_found",
            Self::Invalid(_) => "invalid",
            Self::Conflict(_) => "conflict",
            Self::Unavailable { .. } => "unavailable",
            Self::Internal(_) => "internal",
        }
    }

    /// What the client may know. Details of failures inside go to the log alone.
    fn message(self) -> String {
        match self {
            Self::Unauthorized(message) => message.to_owned(),
            Self::NotFound(message) | Self::Invalid(message) | Self::Conflict(message) => message,
            Self::Unavailable { what, detail } => {
                eprintln!("{what} is not available: {detail}");
                format!("{what} is not available, try again")
            }
            Self::Internal(detail) => {
                eprintln!("request failed: {detail}");
                "the request failed, see the server's log".to_owned()
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = (self.status(), self.code());
        let body = Json(json!({ "error": { "code": code, "message": self.message() } }));
        (status, body).into_response()
    }
}

impl From<tokio_postgres::Error> for ApiError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(refusal) = error.as_db_error() else {
            return Self::Unavailable { what: "postgres", detail: database_message(&error) };
        };
        let message = refusal.message().to_owned();
        match *refusal.code() {
            SqlState::UNIQUE_VIOLATION => Self::Conflict(message),
            SqlState::FOREIGN_KEY_VIOLATION | SqlState::CHECK_VIOLATION => Self::Invalid(message),
            SqlState::ADMIN_SHUTDOWN
            | SqlState::CRASH_SHUTDOWN
            | SqlState::CANNOT_CONNECT_NOW
            | SqlState::TOO_MANY_CONNECTIONS
            | SqlState::READ_ONLY_SQL_TRANSACTION
            | SqlState::QUERY_CANCELED => Self::Unavailable { what: "postgres", detail: message },
            _ => Self::Internal(database_message(&error)),
        }
    }
}

impl From<redis::RedisError> for ApiError {
    fn from(error: redis::RedisError) -> Self {
        Self::Unavailable { what: "redis", detail: error.to_string() }
    }
}

/// Says what a database error is about: the client library itself only prints "db error".
pub(crate) fn database_message(error: &tokio_postgres::Error) -> String {
    if let Some(refusal) = error.as_db_error() {
        return format!("{} ({})", refusal.message(), refusal.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
