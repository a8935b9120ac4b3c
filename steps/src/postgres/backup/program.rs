//! Runs `pg_basebackup`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};
use serde::Deserialize;

use crate::postgres::connect::{Endpoint, Login};
use crate::postgres::tools::Tools;
use crate::postgres::{account, codes};
use crate::process::{Command, OsUser};
use crate::store::{Meter, Partial, blocking};

/// When the checkpoint that begins a backup is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Checkpoint {
    /// At once, at the cost of a burst of writing.
    Fast,
    /// Over minutes, as checkpoints usually are.
    Spread,
}

/// How the archives are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Compression {
    Zstd,
    Gzip,
    None,
}

impl Compression {
    /// Falls back to what a major version knows.
    pub(super) fn for_major(self, major: u32) -> Self {
        if self == Self::Zstd && major < 15 { Self::Gzip } else { self }
    }

    fn args(self, major: u32) -> Vec<&'static str> {
        match self {
            // On the server, so that less goes over the wire, and with more than one thread. Level 3, which others take,
            // looks for shorter repetitions, each of which is a step of its own for the one thread that decompresses:
            // where there is little to find, a restore takes twice the time for it and nothing is saved. Elsewhere level 2
            // makes objects larger by some 4 %.
            Self::Zstd => vec!["-Z", "server-zstd:level=2,workers=2"],
            Self::Gzip if major >= 15 => vec!["-Z", "client-gzip:level=1"],
            Self::Gzip => vec!["-Z", "1"],
            Self::None if major >= 15 => vec!["-Z", "none"],
            Self::None => vec![],
        }
    }
}

/// One run of the program.
pub(super) struct Program<'a> {
    pub(super) postgres: &'a Postgres,
    pub(super) login: &'a Login,
    pub(super) major: u32,
    pub(super) checkpoint: Checkpoint,
    pub(super) compression: Compression,
}

/// Where the program writes before its files are verified: it wants an empty directory.
const INCOMING: &str = "incoming";

impl Program<'_> {
    /// Takes a backup into the directory of a partial one. Returns what people should know about it.
    pub(super) async fn take(
        &self,
        ctx: &StepContext,
        partial: &Partial,
    ) -> Result<Option<String>, StepError> {
        match self.attempt(ctx, partial, self.compression).await {
            Err(error) if self.compression == Compression::Zstd && lacks_zstd(&error.message) => {
                self.attempt(ctx, partial, Compression::Gzip).await?;
                let why = "this installation of Postgres was built without zstd";
                Ok(Some(format!("{why}: the backup is compressed with gzip, which is slower")))
            }
            taken => taken.map(|()| None),
        }
    }

    async fn attempt(
        &self,
        ctx: &StepContext,
        partial: &Partial,
        compression: Compression,
    ) -> Result<(), StepError> {
        let user = self.user();
        let incoming = make_incoming(partial.path(), user.as_ref())?;
        let (postgres, major) = (self.postgres.clone(), self.major);
        let tools = blocking(move || Tools::find_clients_major(&postgres, major)).await?;
        let command = Command::new(tools.program("pg_basebackup"))
            .args(["-F", "tar", "-X", "stream", "--manifest-checksums=SHA256", "--no-password", "--no-sync"])
            .args(["-c", if self.checkpoint == Checkpoint::Fast { "fast" } else { "spread" }])
            .args(["-l", partial.label()])
            .args(compression.args(major))
            .arg("-D")
            .arg(&incoming)
            .args(["-d", &self.conninfo()])
            .env("LC_ALL", "C")
            .os_user(user.as_ref().map(|user| user.name.as_str()));
        let command = self.login.credentials(command).await?;
        let output = watched(ctx, &incoming, command.run(ctx)).await?;
        if output.exit_code != 0 {
            return Err(refused(&output.stderr.last_lines(8), output.exit_code, self.login));
        }
        take_over(&incoming, partial.path())
    }

    /// The user that the server lets in over its socket. Over the network the password alone counts.
    fn user(&self) -> Option<OsUser> {
        match self.login.endpoint {
            Endpoint::Socket { .. } => account::owner(self.postgres).ok().flatten(),
            Endpoint::Tcp { .. } => None,
        }
    }

    fn conninfo(&self) -> String {
        let (host, port) = match &self.login.endpoint {
            Endpoint::Socket { dir, port } => (dir.display().to_string(), *port),
            Endpoint::Tcp { host, port } => (host.clone(), *port),
        };
        let quoted = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
        let (host, user) = (quoted(&host), quoted(&self.login.user));
        format!("host={host} port={port} user={user} application_name=lifeboat connect_timeout=10")
    }
}

fn make_incoming(partial: &Path, user: Option<&OsUser>) -> Result<PathBuf, StepError> {
    use std::os::unix::fs::{DirBuilderExt, chown};
    let incoming = partial.join(INCOMING);
    let emptied = match std::fs::remove_dir_all(&incoming) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        emptied => emptied,
    };
    emptied.map_err(|error| failed("what an attempt has left cannot be removed", &error))?;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&incoming)
        .and_then(|()| user.map_or(Ok(()), |user| chown(&incoming, Some(user.uid), Some(user.gid))))
        .map_err(|error| failed("no directory can be made for the backup", &error))?;
    Ok(incoming)
}

/// Moves the files to where they will be published, as our own.
fn take_over(incoming: &Path, partial: &Path) -> Result<(), StepError> {
    use std::os::unix::fs::{PermissionsExt, chown};
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let moved = || -> std::io::Result<()> {
        for entry in std::fs::read_dir(incoming)? {
            let entry = entry?;
            chown(entry.path(), Some(uid), Some(gid))?;
            std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o640))?;
            std::fs::rename(entry.path(), partial.join(entry.file_name()))?;
        }
        std::fs::remove_dir(incoming)
    };
    moved().map_err(|error| failed("the files of the backup cannot be taken over", &error))
}

/// Reports how much has been written while a program writes it.
async fn watched<T>(ctx: &StepContext, dir: &Path, work: impl Future<Output = T>) -> T {
    let meter = Meter::bytes(ctx, None, "pg_basebackup");
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => {
                // Being told to end is the program's matter, whose run ends by itself.
                meter.advance(written(dir).saturating_sub(meter.done())).ok();
            }
        }
    }
}

fn written(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// What `pg_basebackup` said decides whether a repetition can help.
fn refused(lines: &[String], exit_code: i32, login: &Login) -> StepError {
    let text = lines.join("\n");
    let message = format!("pg_basebackup ended with exit code {exit_code}: {text}");
    if text.contains("no pg_hba.conf entry") || text.contains("authentication failed") {
        return StepError::permanent(codes::LB1214, message).help(format!(
            "let `{}` connect for replication: a line `local replication {} peer` (or host, scram-sha-256) in \
             pg_hba.conf, then reload the server",
            login.user, login.user
        ));
    }
    if text.contains("No space left") {
        return StepError::transient(codes::LB1214, message).help("make room in the store (`df -h`)");
    }
    if text.contains("Permission denied") {
        return StepError::permanent(codes::LB1214, message).help(
            "the user of the Postgres server must be able to enter the store's directories (`chmod o+x`)",
        );
    }
    if text.contains("compression") || text.contains("not supported by this build") {
        return StepError::permanent(codes::LB1214, message)
            .help("this installation lacks that compression; give the step `compression: gzip`");
    }
    StepError::transient(codes::LB1214, message).help("the server's log may say more; nothing was published")
}

/// As the client says it, and as the server does: both only before anything is sent.
fn lacks_zstd(message: &str) -> bool {
    let message = message.to_lowercase();
    message.contains("zstd")
        && (message.contains("build does not support compression")
            || message.contains("not supported by this build"))
}

fn failed(what: &str, error: &std::io::Error) -> StepError {
    StepError::permanent(crate::store::codes::LB1111, format!("{what}: {error}"))
        .help("check that the store is mounted for writing and not full")
}
