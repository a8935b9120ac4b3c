//! What decides which file a Redis server loads, read from the running server or from its configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lifeboat_engine::resource::{self, Manager};
use lifeboat_engine::step::{StepContext, StepError};

use super::client::Client;
use super::codes;

const NAMES: [&str; 6] =
    ["dir", "dbfilename", "appendonly", "appendfilename", "appenddirname", "cluster-enabled"];

/// How a server keeps its data.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Persistence {
    pub(super) dir: PathBuf,
    pub(super) dump: String,
    pub(super) append_only: bool,
    pub(super) append_file: String,
    pub(super) append_dir: String,
    pub(super) cluster: bool,
}

impl Persistence {
    /// Asks a running server.
    pub(super) async fn of_running(client: &mut Client) -> Result<Self, StepError> {
        let mut settings = client.config(&NAMES).await?;
        let dir = client.dir().await?;
        settings.insert("dir".into(), dir.display().to_string());
        Ok(Self::from_settings(&settings, Path::new("/")))
    }

    /// Reads the configuration file and the arguments of a server that does not run.
    pub(super) fn of_stopped(redis: &resource::Redis, data_dir: &Path) -> Result<Self, StepError> {
        let mut settings = BTreeMap::new();
        let (file, arguments) = command_line(redis);
        if let Some(file) = file {
            let text = std::fs::read_to_string(&file).map_err(|error| {
                let message =
                    format!("the configuration {} of the Redis server cannot be read", file.display());
                StepError::permanent(codes::LB1307, message)
                    .help("correct `config_file` of the resource, or the permissions of the file")
                    .caused_by(&error)
            })?;
            read_file(&text, &mut settings);
            if settings.contains_key("include") {
                let message = format!(
                    "{} includes other files, so it is not known which file the Redis server will load",
                    file.display()
                );
                return Err(StepError::permanent(codes::LB1307, message)
                    .help("start the server before the restore, so that it can be asked"));
            }
        }
        settings.extend(arguments);
        Ok(Self::from_settings(&settings, data_dir))
    }

    fn from_settings(settings: &BTreeMap<String, String>, data_dir: &Path) -> Self {
        let text = |name: &str, otherwise: &str| {
            settings.get(name).filter(|value| !value.is_empty()).map_or(otherwise, String::as_str).to_owned()
        };
        Self {
            dir: settings
                .get("dir")
                .filter(|dir| dir.starts_with('/'))
                .map_or(data_dir.to_owned(), PathBuf::from),
            dump: text("dbfilename", "dump.rdb"),
            append_only: text("appendonly", "no") == "yes",
            append_file: text("appendfilename", "appendonly.aof"),
            append_dir: text("appenddirname", "appendonlydir"),
            cluster: text("cluster-enabled", "no") == "yes",
        }
    }
}

/// Returns the configuration file and the settings that follow it on the command line.
fn command_line(redis: &resource::Redis) -> (Option<PathBuf>, BTreeMap<String, String>) {
    let mut file = redis.config_file.clone();
    let mut settings = BTreeMap::new();
    if let Some(Manager::Process { command, dir, .. }) = &redis.service {
        let mut words = command.iter().skip(1).peekable();
        if let Some(first) = words.next_if(|word| !word.starts_with("--")) {
            let first = dir.as_ref().map_or_else(|| PathBuf::from(first), |dir| dir.join(first));
            file.get_or_insert(first);
        }
        while let Some(word) = words.next() {
            if let Some(name) = word.strip_prefix("--") {
                let value = words.next_if(|value| !value.starts_with("--")).cloned().unwrap_or_default();
                settings.insert(name.to_lowercase(), value);
            }
        }
    }
    (file, settings)
}

fn read_file(text: &str, settings: &mut BTreeMap<String, String>) {
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        settings.insert(name.to_lowercase(), value.trim().trim_matches(['"', '\'']).to_owned());
    }
}

/// Refuses a server that must not be restored by placing a snapshot.
pub(super) fn check_role(
    persistence: &Persistence,
    info: &super::info::Info,
    name: &str,
) -> Result<(), StepError> {
    if persistence.cluster { Err(refused_role(name, IN_CLUSTER)) } else { check_alone(info, name) }
}

const IN_CLUSTER: &str = "is a node of a cluster, whose slots must fit those of the other nodes";

/// Refuses a server whose data belongs to others too: a node of a cluster, a replica, a sentinel.
pub(super) fn check_alone(info: &super::info::Info, name: &str) -> Result<(), StepError> {
    let problem = match (info.text("redis_mode"), info.text("role")) {
        ("cluster", _) => IN_CLUSTER,
        ("sentinel", _) | (_, "sentinel") => "is a sentinel, which watches servers and holds no data",
        (_, "slave") => "is a replica, which holds what its master holds and nothing else",
        _ => return Ok(()),
    };
    Err(refused_role(name, problem))
}

fn refused_role(name: &str, problem: &str) -> StepError {
    StepError::permanent(codes::LB1307, format!("the Redis server `{name}` {problem}")).help(
        "name the master as the target; `redis-cli INFO replication` shows where it is. A cluster is restored shard by \
         shard, by hand: each node from a snapshot of its own, with the same slots",
    )
}

/// Refuses a server that answers in place of the one that is to be restored.
pub(super) fn check_dir(found: &Path, data_dir: &Path, name: &str) -> Result<(), StepError> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real(found) == real(data_dir) {
        return Ok(());
    }
    let message = format!(
        "the server that answers for `{name}` keeps its files in {}, not in {}",
        found.display(),
        data_dir.display()
    );
    Err(StepError::permanent(codes::LB1308, message).help("correct `url` or `data_dir` of the resource"))
}

/// Returns the data directory and the manager, without which nothing can be placed.
pub(super) fn required<'a>(
    ctx: &'a StepContext,
    redis: &'a resource::Redis,
    name: &str,
) -> Result<(&'a Path, &'a Manager), StepError> {
    let missing = |what: &str| {
        let message = format!("the Redis server `{name}` cannot be restored: its resource has no `{what}`");
        StepError::permanent(codes::LB1307, message)
            .help(format!("add `{what}` to the resource in environments/{}.yaml", ctx.info.environment))
    };
    let dir = redis.data_dir.as_deref().ok_or_else(|| missing("data_dir"))?;
    let manager = redis.service.as_ref().ok_or_else(|| missing("service"))?;
    Ok((dir, manager))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn server(command: &[&str], config_file: Option<&Path>) -> resource::Redis {
        let written = json!({
            "url": "redis://127.0.0.1:1", "config_file": config_file,
            "service": { "manager": "process", "command": command },
        });
        serde_json::from_value(written).expect("a resource")
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("redis.conf");
        std::fs::write(&file, "# comment\nappendonly yes\ndbfilename \"my.rdb\"\nSave 60 1\n")
            .expect("written");
        let data = Path::new("/data");
        let of =
            |command: &[&str]| Persistence::of_stopped(&server(command, Some(&file)), data).expect("read");
        let plain = of(&["redis-server"]);
        assert!(plain.append_only);
        assert_eq!((plain.dump.as_str(), plain.dir.as_path()), ("my.rdb", data));
        let overridden = of(&["redis-server", "--appendonly", "no", "--save", "", "--dir", "/other"]);
        assert!(!overridden.append_only);
        assert_eq!(overridden.dir, Path::new("/other"));
    }

    #[test]
    fn a_file_that_includes_others_is_not_guessed_at() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("redis.conf");
        std::fs::write(&file, "include /etc/redis/more.conf\n").expect("written");
        let named = server(&["redis-server", file.to_str().expect("text")], None);
        let error = Persistence::of_stopped(&named, Path::new("/data")).expect_err("unknown");
        assert_eq!(error.code, codes::LB1307);
    }
}
