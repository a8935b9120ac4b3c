//! Connections to Postgres with time limits, and errors that say what happened.
//!
//! Every statement has a limit. When it passes, the server is asked to cancel and the connection is not used again:
//! dropping a query's future alone would leave the statement running and the connection busy.

mod copy;
mod error;
mod network;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use lifeboat_engine::resource::{Postgres, Tls, TlsMode};
use lifeboat_engine::step::{StepContext, StepError};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

pub use error::{DbMessage, PgError};
use network::Way;
pub use network::{Endpoint, endpoint, socket_path};

use super::account;
use super::isolation::Isolation;
use crate::process::Command;
use crate::tls::{Connector, TlsError, roots_file};

/// How long a login may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long asking the server to cancel a statement may take.
const CANCEL_LIMIT: Duration = Duration::from_secs(3);

/// Everything that a connection needs.
#[derive(Clone, Debug)]
pub struct Login {
    pub endpoint: Endpoint,
    pub user: String,
    pub database: String,
    pub password: Option<SecretString>,
    /// How connections are to be protected, as the resource says it.
    pub tls: Option<Tls>,
    /// Over a Unix socket, the user id that the server sees, so that `peer` lines work when Lifeboat is root.
    pub as_uid: Option<u32>,
    /// Ends statements early; the step's own token.
    pub cancel: CancellationToken,
}

impl Login {
    /// Returns what Postgres's own programs take as host, and the port.
    pub(super) fn address(&self) -> (String, u16) {
        match &self.endpoint {
            Endpoint::Socket { dir, port } => (dir.display().to_string(), *port),
            Endpoint::Tcp { host, port } => (host.clone(), *port),
        }
    }

    /// Lets one of Postgres's own programs log in: gives it the password, in a file that is on no disk, and the settings of
    /// TLS, so that it checks what is checked here.
    pub(super) async fn credentials(&self, command: Command) -> Result<Command, StepError> {
        let command = match self.protection(&self.addresses().await?) {
            None => command.env("PGSSLMODE", TlsMode::Disable.word()),
            Some(tls) => with_tls(command, &tls)?,
        };
        let Some(password) = &self.password else { return Ok(command) };
        let escaped = password.expose_secret().replace('\\', r"\\").replace(':', r"\:");
        command.secret_file("PGPASSFILE", &format!("*:*:*:*:{escaped}\n"))
    }

    /// Returns the login of a resource, to its default database.
    pub fn of(ctx: &StepContext, postgres: &Postgres) -> Result<Self, StepError> {
        let password = postgres.password.as_ref().map(|reference| ctx.secret(reference)).transpose()?;
        // Lifeboat's own server on restored data is always reached the private way, whatever it is reached by
        // otherwise: its roles have the passwords of another time.
        let isolated = postgres.data_dir.as_deref().and_then(Isolation::serving);
        let endpoint = match isolated {
            Some(isolated) => Endpoint::Socket { dir: isolated.dir(), port: isolated.port },
            None => endpoint(postgres),
        };
        let as_uid = match &endpoint {
            Endpoint::Socket { .. } => account::owner(postgres).ok().flatten().map(|user| user.uid),
            Endpoint::Tcp { .. } => None,
        };
        Ok(Self {
            endpoint,
            user: postgres.user.clone(),
            database: postgres.database.clone(),
            password: password.cloned(),
            tls: postgres.tls.clone(),
            as_uid,
            cancel: ctx.cancel.clone(),
        })
    }

    /// Returns the login to a server that Lifeboat has started in isolation: over its private socket, as its own user.
    pub fn isolated(
        ctx: &StepContext,
        postgres: &Postgres,
        isolation: &Isolation,
    ) -> Result<Self, StepError> {
        Ok(Self {
            endpoint: Endpoint::Socket { dir: isolation.dir(), port: isolation.port },
            user: postgres.user.clone(),
            database: postgres.database.clone(),
            password: None,
            tls: None,
            as_uid: account::owner(postgres)?.map(|user| user.uid),
            cancel: ctx.cancel.clone(),
        })
    }

    /// Returns the same login to another database.
    #[must_use]
    pub fn database(&self, name: &str) -> Self {
        Self { database: name.to_owned(), ..self.clone() }
    }

    /// Connects and logs in.
    pub async fn connect(&self) -> Result<Client, PgError> {
        let opened = timeout(CONNECT_LIMIT, self.open());
        tokio::select! {
            opened = opened => opened.unwrap_or_else(|_| {
                let what = format!("the login to Postgres at {}", self.endpoint);
                Err(PgError::timed_out(&what, CONNECT_LIMIT))
            }),
            () = self.cancel.cancelled() => Err(PgError::Cancelled),
        }
    }

    async fn open(&self) -> Result<Client, PgError> {
        let addresses = self.addresses().await?;
        let tls = match self.protection(&addresses) {
            Some(tls) => Some(Connector::load(tls, self.peer()).await.map_err(PgError::Tls)?),
            None => None,
        };
        let config = self.config(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        let stream = self.stream(&addresses).await?;
        let started = match &tls {
            None => start(&config, stream, NoTls).await,
            Some(tls) => start(&config, stream, over(tls)?).await,
        };
        let inner = started.map_err(|error| self.login_error(&error, tls.as_ref()))?;
        Ok(Client { inner, login: self.clone(), tls, usable: AtomicBool::new(true) })
    }

    fn config(&self, mode: SslMode) -> Config {
        let mut config = Config::new();
        config.user(&self.user).dbname(&self.database).application_name("lifeboat").ssl_mode(mode);
        if let Some(password) = &self.password {
            config.password(password.expose_secret());
        }
        config
    }

    fn login_error(&self, error: &tokio_postgres::Error, tls: Option<&Connector>) -> PgError {
        let at = self.endpoint.to_string();
        if let Some(problem) = tls.and_then(|tls| tls.explain(error)) {
            return PgError::Tls(problem);
        }
        match PgError::from_driver(error) {
            PgError::Database(db) if db.is_login_failure() => self.refused(&db, tls),
            // The driver says so before anything else is sent.
            PgError::Lost(why) if tls.is_some() && why.contains("server does not support TLS") => {
                PgError::Tls(TlsError::no_tls(&self.peer()))
            }
            PgError::Lost(why) if why.contains("password") || why.contains("authentication") => {
                PgError::LoginRefused { user: self.user.clone(), at, why }
            }
            PgError::Lost(why) => PgError::Unreachable { endpoint: at, why },
            other => other,
        }
    }

    /// Tells a login that the server refused from one that it did not even look at.
    fn refused(&self, db: &DbMessage, tls: Option<&Connector>) -> PgError {
        let is_tcp = matches!(self.endpoint, Endpoint::Tcp { .. });
        // From version 14 on, and before it.
        let is_clear = ["no encryption", "SSL off"].iter().any(|words| db.message.ends_with(words));
        match tls {
            None if is_tcp && is_clear => PgError::Tls(TlsError::demanded(&self.peer(), &db.to_string())),
            Some(tls) if db.message.contains("client certificate") => {
                PgError::Tls(TlsError::client_certificate(tls.peer(), tls.tls(), &db.to_string()))
            }
            _ => {
                let at = self.endpoint.to_string();
                PgError::LoginRefused { user: self.user.clone(), at, why: db.to_string() }
            }
        }
    }
}

/// Gives settings of TLS to a program that uses libpq, in the words of its variables.
fn with_tls(command: Command, tls: &Tls) -> Result<Command, StepError> {
    // An encryption of another sort would take the place of TLS, and of its checks.
    let mut command = command.env("PGSSLMODE", tls.mode.word()).env("PGGSSENCMODE", "disable");
    if matches!(tls.mode, TlsMode::VerifyCa | TlsMode::VerifyFull) {
        command = command.env("PGSSLROOTCERT", roots_file(tls)?);
    }
    for (name, file) in [("PGSSLCERT", &tls.cert_file), ("PGSSLKEY", &tls.key_file)] {
        if let Some(file) = file {
            command = command.env(name, file);
        }
    }
    Ok(command)
}

/// Returns what does the handshake after the server has agreed to it.
fn over(tls: &Connector) -> Result<impl TlsConnect<Way, Stream: Send, Future: Send> + use<>, PgError> {
    let mut connect = MakeRustlsConnect::new(tls.config());
    MakeTlsConnect::<Way>::make_tls_connect(&mut connect, tls.host())
        .map_err(|_| PgError::Tls(TlsError::no_name(tls.peer())))
}

async fn start<T>(
    config: &Config,
    stream: Way,
    tls: T,
) -> Result<tokio_postgres::Client, tokio_postgres::Error>
where
    T: TlsConnect<Way>,
    T::Stream: Send + 'static,
{
    let (client, connection) = config.connect_raw(stream, tls).await?;
    // Ends by itself when the client is dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("Postgres connection ended: {error}");
        }
    });
    Ok(client)
}

/// A connection that is logged in. Statements run one after the other.
pub struct Client {
    inner: tokio_postgres::Client,
    login: Login,
    /// What protects it; also for the request to cancel, which goes over a connection of its own.
    tls: Option<Connector>,
    usable: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("at", &self.login.endpoint).finish_non_exhaustive()
    }
}

/// Parameters of a statement.
pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Client {
    /// Runs one statement and returns its rows.
    pub async fn query(&self, sql: &str, params: Params<'_>, limit: Duration) -> Result<Vec<Row>, PgError> {
        self.within(limit, self.inner.query(sql, params)).await
    }

    /// Runs one statement that gives exactly one row.
    pub async fn query_one(&self, sql: &str, params: Params<'_>, limit: Duration) -> Result<Row, PgError> {
        self.within(limit, self.inner.query_one(sql, params)).await
    }

    /// Runs statements without parameters and without looking at rows.
    pub async fn batch(&self, sql: &str, limit: Duration) -> Result<(), PgError> {
        self.within(limit, self.inner.batch_execute(sql)).await
    }

    /// Prepares a statement, which finds the types of its parameters and columns.
    pub async fn prepare(&self, sql: &str, limit: Duration) -> Result<tokio_postgres::Statement, PgError> {
        self.within(limit, self.inner.prepare(sql)).await
    }

    /// Runs a prepared statement and returns its rows.
    pub async fn query_prepared(
        &self,
        statement: &tokio_postgres::Statement,
        params: Params<'_>,
        limit: Duration,
    ) -> Result<Vec<Row>, PgError> {
        self.within(limit, self.inner.query(statement, params)).await
    }

    /// Runs a prepared statement and returns its rows, or `None` as soon as one of them does not fit: then the statement is
    /// ended, and the connection with it.
    pub async fn query_while(
        &self,
        statement: &tokio_postgres::Statement,
        params: Params<'_>,
        limit: Duration,
        mut fits: impl FnMut(&Row) -> bool,
    ) -> Result<Option<Vec<Row>>, PgError> {
        let read = async {
            let mut stream = std::pin::pin!(self.inner.query_raw(statement, params.iter().copied()).await?);
            let mut rows = Vec::new();
            while let Some(row) = stream.try_next().await? {
                if !fits(&row) {
                    return Ok(None);
                }
                rows.push(row);
            }
            Ok(Some(rows))
        };
        let rows = self.within(limit, read).await?;
        if rows.is_none() {
            self.usable.store(false, Ordering::Release);
            self.cancel_statement().await;
        }
        Ok(rows)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, PgError> {
        if !self.usable.load(Ordering::Acquire) {
            return Err(PgError::Lost("the connection was given up after a time limit".to_owned()));
        }
        let ended = tokio::select! {
            result = timeout(limit, work) => match result {
                Ok(result) => return result.map_err(|error| PgError::from_driver(&error)),
                Err(_) => PgError::timed_out("a statement", limit),
            },
            () = self.login.cancel.cancelled() => PgError::Cancelled,
        };
        self.usable.store(false, Ordering::Release);
        self.cancel_statement().await;
        Err(ended)
    }

    async fn cancel_statement(&self) {
        let token = self.inner.cancel_token();
        let ask = async {
            let stream = self.login.stream(&self.login.addresses().await?).await?;
            let asked = match &self.tls {
                None => token.cancel_query_raw(stream, NoTls).await,
                Some(tls) => token.cancel_query_raw(stream, over(tls)?).await,
            };
            asked.map_err(|error| PgError::from_driver(&error))
        };
        if !matches!(timeout(CANCEL_LIMIT, ask).await, Ok(Ok(()))) {
            tracing::debug!("the server could not be asked to cancel a statement");
        }
    }
}
