//! Proves a snapshot: by the check tool, and by a throw-away server that loads it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_engine::resource;
use lifeboat_engine::step::{StepContext, StepError};

use super::client::Client;
use super::codes;
use super::info::{Info, KeyCount};
use crate::process::Command;

const POLL: Duration = Duration::from_millis(50);

/// What the check tool found in a snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Checked {
    pub(super) keys: u64,
    pub(super) expires: u64,
    /// When the server began to write it, by its own clock.
    pub(super) created: Option<Timestamp>,
    pub(super) redis_version: String,
}

/// Returns a program of Redis, from `bin_dir` or PATH.
pub(super) fn program(redis: &resource::Redis, name: &str) -> OsString {
    redis.bin_dir.as_ref().map_or_else(|| name.into(), |dir| dir.join(name).into_os_string())
}

/// Reads a snapshot whole with `redis-check-rdb`.
pub(super) async fn with_tool(
    ctx: &StepContext,
    redis: &resource::Redis,
    file: &Path,
) -> Result<Checked, StepError> {
    let tool = Command::new(program(redis, "redis-check-rdb")).arg(file).quiet_stdout();
    let output = tool.run(ctx).await?;
    let text = output.stdout.text();
    if output.exit_code != 0 {
        if text.contains("handle RDB format version") {
            return Err(newer(file, "redis-check-rdb of this machine"));
        }
        let mut error = damaged(file, "redis-check-rdb finds it damaged");
        error.causes = output.stdout.last_lines(5);
        return Err(error);
    }
    parse(&text).ok_or_else(|| damaged(file, "redis-check-rdb did not say how many keys it holds"))
}

/// Refuses a snapshot of a newer format than a server of this version reads.
pub(super) fn readable_by(file: &Path, redis_version: &str, name: &str) -> Result<(), StepError> {
    let (Some(format), Some(newest)) = (format_of(file), newest_format(redis_version)) else { return Ok(()) };
    if format <= newest {
        return Ok(());
    }
    Err(newer(file, &format!("the server `{name}`, Redis {redis_version}")))
}

/// A dump begins with `REDIS` and four digits.
fn format_of(file: &Path) -> Option<u32> {
    let mut head = [0; 9];
    std::fs::File::open(file).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut head)).ok()?;
    std::str::from_utf8(head.strip_prefix(b"REDIS")?).ok()?.parse().ok()
}

/// The newest format that a version reads; `None` for versions that are newer than this table.
fn newest_format(redis_version: &str) -> Option<u32> {
    let mut parts = redis_version.split('.').map_while(|part| part.parse::<u32>().ok());
    match (parts.next()?, parts.next()?) {
        (..=4, _) => Some(8),
        (5 | 6, _) => Some(9),
        (7, 0 | 1) => Some(10),
        (7, 2 | 3) => Some(11),
        (7, 4) => Some(12),
        _ => None,
    }
}

fn newer(file: &Path, reader: &str) -> StepError {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let message = format!("the Redis snapshot `{name}` was written by a newer version than {reader}");
    StepError::permanent(codes::LB1334, message)
        .help("use programs of at least that version (`bin_dir` of the resource), or choose an older snapshot with `backup`")
}

fn parse(text: &str) -> Option<Checked> {
    let counted = |what: &str| {
        text.lines().find_map(|line| line.strip_prefix("[info] ")?.strip_suffix(what)?.trim().parse().ok())
    };
    let aux = |name: &str| {
        let mark = format!("AUX FIELD {name} = '");
        text.lines().find_map(|line| line.split_once(&mark)?.1.strip_suffix('\''))
    };
    let created = aux("ctime").and_then(|seconds| Timestamp::from_second(seconds.parse().ok()?).ok());
    let redis_version = aux("redis-ver").unwrap_or_default().to_owned();
    Some(Checked { keys: counted(" keys read")?, expires: counted(" expires")?, created, redis_version })
}

/// Loads a snapshot into a server of its own, which is ended at once, and returns the keys of each database.
///
/// `dir` must be empty and of this step; the server listens on a socket in it and nowhere else. Fails unless every
/// key was loaded or had expired.
pub(super) async fn with_server(
    ctx: &StepContext,
    redis: &resource::Redis,
    (file, dir): (&Path, &Path),
    expected_keys: u64,
) -> Result<BTreeMap<u32, KeyCount>, StepError> {
    let (folder, name) = (file.parent().unwrap_or(Path::new("/")), file.file_name().unwrap_or_default());
    // A socket's path is limited to 107 bytes, which a work directory may exceed.
    let socket_dir = tempfile::Builder::new().prefix("lifeboat-").tempdir().map_err(|error| {
        StepError::transient(codes::LB1305, "no temporary directory for the throw-away server")
            .caused_by(&error)
    })?;
    let socket = socket_dir.path().join("redis.sock");
    let server = Command::new(program(redis, "redis-server"))
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"])
        .arg("--unixsocket")
        .arg(&socket)
        .arg("--unixsocketperm")
        .arg("700")
        .arg("--dir")
        .arg(folder)
        .arg("--dbfilename")
        .arg(name)
        .dir(dir)
        .name("throw-away redis-server")
        .quiet_stdout()
        .grace(Duration::from_secs(2));
    tokio::select! {
        // Dropped with its group when the other branch is ready.
        ended = server.run(ctx) => {
            let output = ended?;
            let mut error = damaged(file, "a throw-away server ended while it loaded the snapshot");
            error.causes = output.stdout.last_lines(5);
            Err(error)
        }
        loaded = loaded(&socket) => {
            let info = loaded?;
            compare(file, &info, expected_keys)?;
            Ok(info.keyspace())
        }
    }
}

fn compare(file: &Path, info: &Info, expected: u64) -> Result<(), StepError> {
    let found = loaded_and_expired(info);
    if found == expected {
        return Ok(());
    }
    Err(damaged(file, &format!("a throw-away server loaded {found} keys, not {expected}")))
}

/// Returns how many keys the last load brought, expired ones included. Before Redis 7 only those that are there.
pub(super) fn loaded_and_expired(info: &Info) -> u64 {
    match (info.number("rdb_last_load_keys_loaded"), info.number("rdb_last_load_keys_expired")) {
        (Some(loaded), Some(expired)) => loaded + expired,
        _ => info.keyspace().values().map(|count| count.keys).sum(),
    }
}

/// Polls until the server behind the socket has loaded its data. Ends with the server, by the caller.
async fn loaded(socket: &Path) -> Result<Info, StepError> {
    const APPEARS_WITHIN: Duration = Duration::from_secs(60);
    let begun = Instant::now();
    loop {
        if let Ok(mut client) = Client::connect_socket(socket, "throw-away").await
            && let Ok(info) = client.info().await
        {
            if !info.flag("loading") {
                return Ok(info);
            }
        } else if begun.elapsed() > APPEARS_WITHIN {
            return Err(StepError::transient(codes::LB1305, "the throw-away Redis server does not answer"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Makes an empty directory of the step.
pub(super) fn scratch(ctx: &StepContext, name: &str) -> Result<PathBuf, StepError> {
    let dir = ctx.work_dir()?.join(name);
    let made = match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::create_dir_all(&dir),
    };
    made.map(|()| dir.clone()).map_err(|error| {
        StepError::transient(codes::LB1311, format!("{} cannot be made", dir.display())).caused_by(&error)
    })
}

fn damaged(file: &Path, problem: &str) -> StepError {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    StepError::permanent(codes::LB1305, format!("the Redis snapshot `{name}` cannot be used: {problem}"))
        .help("choose another snapshot with `backup`; the target was not touched")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_version() {
        for (version, format) in [
            ("4.0.14", Some(8)),
            ("6.2.7", Some(9)),
            ("7.0.15", Some(10)),
            ("7.2.4", Some(11)),
            ("8.0.1", None),
            ("", None),
        ] {
            assert_eq!(newest_format(version), format, "{version}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("dump.rdb");
        std::fs::write(&file, "REDIS0011rest").expect("written");
        assert_eq!(format_of(&file), Some(11));
        assert_eq!(readable_by(&file, "7.0.15", "cache").expect_err("newer").code, codes::LB1334);
        assert!(readable_by(&file, "7.2.0", "cache").is_ok());
        std::fs::write(&file, "REDI").expect("written");
        assert_eq!(format_of(&file), None);
    }

    #[test]
    fn what_the_check_tool_says_is_read() {
        let text = "[offset 27] AUX FIELD redis-ver = '7.0.15'\n[offset 53] AUX FIELD ctime = '1795262720'\n\
                    [offset 113] \\o/ RDB looks OK! \\o/\n[info] 2 keys read\n[info] 1 expires\n[info] 0 already expired";
        let checked = parse(text).expect("complete");
        assert_eq!((checked.keys, checked.expires, checked.redis_version.as_str()), (2, 1, "7.0.15"));
        assert_eq!(checked.created.expect("has one").as_second(), 1_795_262_720);
        assert!(parse("[info] 2 keys").is_none());
    }
}
