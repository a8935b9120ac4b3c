//! Client programs of Postgres: how they log in, and how they are called.

use std::path::Path;
use std::time::Duration;

use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};

use super::account;
use super::connect::{Endpoint, Login};
use super::tools::Tools;
use crate::process::{Command, OsUser};
use crate::store::{Meter, blocking};

/// A login for programs that use libpq. It needs nothing on disk.
#[derive(Debug)]
pub(super) struct Libpq<'a> {
    login: &'a Login,
    user: Option<OsUser>,
}

impl<'a> Libpq<'a> {
    /// Makes a login of a resource's.
    pub(super) fn new(postgres: &Postgres, login: &'a Login) -> Self {
        // Over a socket the server looks at who calls; over the network the password alone counts.
        let user = match login.endpoint {
            Endpoint::Socket { .. } => account::owner(postgres).ok().flatten(),
            Endpoint::Tcp { .. } => None,
        };
        Self { login, user }
    }

    /// Begins a command that logs in to a database.
    pub(super) async fn command(
        &self,
        tools: &Tools,
        program: &str,
        database: &str,
    ) -> Result<Command, StepError> {
        let command = self.bare(tools, program).args(["--no-password", "-d", &self.conninfo(database)]);
        self.login.credentials(command).await
    }

    /// Begins a command of the same user that logs in nowhere.
    pub(super) fn bare(&self, tools: &Tools, program: &str) -> Command {
        Command::new(tools.program(program))
            .env("LC_ALL", "C")
            .env("PGTZ", "UTC")
            .dir("/")
            .os_user(self.user.as_ref().map(|user| user.name.as_str()))
    }

    /// Returns the system user that the programs run as, if that is another one than ours.
    pub(super) fn user(&self) -> Option<&OsUser> {
        self.user.as_ref()
    }

    fn conninfo(&self, database: &str) -> String {
        let (host, port) = self.login.address();
        let quoted = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
        format!(
            "host={} port={port} user={} dbname={} application_name=lifeboat connect_timeout=10",
            quoted(&host),
            quoted(&self.login.user),
            quoted(database)
        )
    }
}

/// Finds programs for a server: of its own major version, or else newer ones, which speak to older servers.
pub(super) async fn tools_for(postgres: &Postgres, major: u32) -> Result<Tools, StepError> {
    let postgres = postgres.clone();
    blocking(move || Tools::find_clients(&postgres, major)).await
}

/// Reports how much of a file or directory has been written while a program writes it.
pub(super) async fn watched<T>(
    ctx: &StepContext,
    (path, note): (&Path, &str),
    work: impl Future<Output = T>,
) -> T {
    let meter = Meter::bytes(ctx, None, note);
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => {
                // Being told to end is the program's matter, whose run ends by itself.
                meter.advance(size_of(path).saturating_sub(meter.done())).ok();
            }
        }
    }
}

/// Returns the bytes of a file, or of the files in a directory.
pub(super) fn size_of(path: &Path) -> u64 {
    let Ok(found) = std::fs::metadata(path) else { return 0 };
    if !found.is_dir() {
        return found.len();
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}
