//! Why connections and statements fail, told with what to do next.

use std::fmt;
use std::time::Duration;

use lifeboat_engine::code::Code;
use lifeboat_engine::step::StepError;
use tokio_postgres::error::SqlState;

use crate::postgres::codes;
use crate::tls::TlsError;

/// What the server said was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DbMessage {
    pub severity: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub sqlstate: String,
}

impl DbMessage {
    /// Class 28 is authorization; 3D000 names a database that is not there and is no matter of passwords.
    pub(super) fn is_login_failure(&self) -> bool {
        self.sqlstate.starts_with("28")
    }
}

impl fmt::Display for DbMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        write!(f, " [SQLSTATE {}]", self.sqlstate)
    }
}

/// Why a connection or a statement failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PgError {
    #[error("no Postgres answers at {endpoint}: {why}")]
    Unreachable { endpoint: String, why: String },
    #[error("Postgres at {at} refused the login of `{user}`: {why}")]
    LoginRefused { user: String, at: String, why: String },
    /// Nothing was sent to the server but what TLS itself takes.
    #[error("{0}")]
    Tls(TlsError),
    /// The server starts, stops or recovers and takes no connections yet.
    #[error("Postgres accepts no connections yet: {0}")]
    NotReady(String),
    #[error("{what} did not end within {limit}")]
    TimedOut { what: String, limit: String },
    #[error("interrupted")]
    Cancelled,
    #[error("{0}")]
    Database(DbMessage),
    /// The connection broke; a statement in flight may have taken effect.
    #[error("the connection to Postgres was lost: {0}")]
    Lost(String),
}

impl PgError {
    pub(super) fn timed_out(what: &str, limit: Duration) -> Self {
        Self::TimedOut { what: what.to_owned(), limit: humantime::format_duration(limit).to_string() }
    }

    pub(super) fn from_driver(error: &tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return Self::Lost(chain(error));
        };
        if db.code() == &SqlState::CANNOT_CONNECT_NOW {
            return Self::NotReady(db.message().to_owned());
        }
        Self::Database(DbMessage {
            severity: db.severity().to_owned(),
            message: db.message().to_owned(),
            detail: db.detail().map(ToOwned::to_owned),
            hint: db.hint().map(ToOwned::to_owned),
            sqlstate: db.code().code().to_owned(),
        })
    }

    /// Says of a login that failed whether a server that is starting, or a machine that is busy, may be the reason, so that
    /// waiting makes sense.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NotReady(_) | Self::TimedOut { .. })
    }

    /// Returns the failure of a step whose statements only read or can be repeated.
    pub fn into_step(self) -> StepError {
        let (code, transient, help) = self.verdict();
        let message = self.to_string();
        let error =
            if transient { StepError::transient(code, message) } else { StepError::permanent(code, message) };
        match help {
            Some(help) => error.help(help),
            None => error,
        }
    }

    fn verdict(&self) -> (Code, bool, Option<String>) {
        match self {
            Self::Unreachable { .. } => (
                codes::LB1240,
                true,
                Some(
                    "check that the server runs, and `host`, `port` or `socket_dir` of the resource"
                        .to_owned(),
                ),
            ),
            Self::LoginRefused { user, .. } => (
                codes::LB1241,
                false,
                Some(format!(
                    "check the resource's `password` and that pg_hba.conf lets `{user}` in, then try again"
                )),
            ),
            Self::Tls(error) => (error.code(), false, Some(error.help().to_owned())),
            Self::NotReady(_) | Self::Lost(_) => (codes::LB1240, true, None),
            Self::TimedOut { .. } | Self::Cancelled => (codes::LB1243, true, None),
            // Taken back by the server: a conflict with others (class 40), or a session that it ended (57P0x).
            Self::Database(db) => {
                let passes = db.sqlstate.starts_with("40") || db.sqlstate.starts_with("57P0");
                (codes::LB1244, passes, db.hint.clone())
            }
        }
    }
}

impl From<PgError> for StepError {
    fn from(error: PgError) -> Self {
        error.into_step()
    }
}

/// The driver's own text leaves out its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
