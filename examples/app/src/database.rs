//! A small pool of Postgres connections that replaces what it loses.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::{Client, Config, NoTls};

use crate::error::{ApiError, database_message};

/// More than a demonstration needs, and far below what a server allows by default.
const CONNECTIONS: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Connections to one database, opened when needed. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    config: Config,
    idle: Arc<Mutex<Vec<Client>>>,
    permits: Arc<Semaphore>,
}

/// One connection for one request; goes back to the pool when dropped, unless it is lost.
#[derive(Debug)]
pub(crate) struct Connection {
    client: Option<Client>,
    idle: Arc<Mutex<Vec<Client>>>,
    _permit: OwnedSemaphorePermit,
}

/// Reads a connection string (URL or `key=value` words).
pub(crate) fn parse(url: &str) -> Result<Config, String> {
    let mut config: Config = url
        .parse()
        // The error is not shown: it could quote the password.
        .map_err(
            |_| "DATABASE_URL is not a Postgres connection string: write postgresql://user@host:port/name",
        )?;
    config.connect_timeout(CONNECT_TIMEOUT).application_name("member-app");
    Ok(config)
}

/// Opens one connection, driven in the background until the client is dropped.
pub(crate) async fn connect(config: &Config) -> Result<Client, String> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls));
    let (client, connection) = match connecting.await {
        Ok(Ok(pair)) => pair,
        Ok(Err(error)) => return Err(database_message(&error)),
        Err(_) => return Err(format!("no connection after {}s", CONNECT_TIMEOUT.as_secs())),
    };
    // Its error reaches whoever uses the client next, so it is not needed here.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

impl Pool {
    /// Prepares a pool; opens nothing.
    pub(crate) fn new(config: Config) -> Self {
        Self { config, idle: Arc::default(), permits: Arc::new(Semaphore::new(CONNECTIONS)) }
    }

    /// Returns a connection that is not known to be lost, waiting for one where all are in use.
    pub(crate) async fn get(&self) -> Result<Connection, ApiError> {
        let unavailable = |detail| ApiError::Unavailable { what: "postgres", detail };
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| unavailable("the pool is closed".to_owned()))?;
        let client = match self.take_idle() {
            Some(client) => client,
            None => self.open().await.map_err(unavailable)?,
        };
        Ok(Connection { client: Some(client), idle: Arc::clone(&self.idle), _permit: permit })
    }

    async fn open(&self) -> Result<Client, String> {
        let client = connect(&self.config).await?;
        // A request must not hang on a lock for ever; the client is told to try again.
        let limits = "SET statement_timeout = '10s'; SET lock_timeout = '5s'";
        client.batch_execute(limits).await.map_err(|error| database_message(&error))?;
        Ok(client)
    }

    fn take_idle(&self) -> Option<Client> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|client| !client.is_closed());
        idle.pop()
    }
}

impl Deref for Connection {
    type Target = Client;
    fn deref(&self) -> &Client {
        self.client.as_ref().expect("it is there until drop")
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        self.client.as_mut().expect("it is there until drop")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(client) = self.client.take().filter(|client| !client.is_closed()) {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_connection_string_is_not_quoted() {
        let message = parse("postgresql://user:hunter2@:::").unwrap_err();
        assert!(!message.contains("hunter2"), "{message}");
    }
}
