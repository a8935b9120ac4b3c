//! What `archive_command` runs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use lifeboat_engine::resource;
use lifeboat_engine::secret::{SecretRef, Secrets};
use lifeboat_engine::step::StepError;
use serde::{Deserialize, Serialize};

use super::WalExit;
use super::archive::wal_key;
use super::fetch::{FORMS, Form, open_form};
use super::header::{LongHeader, SystemId, bad_segment};
use super::names::WalName;
use crate::postgres::codes;
use crate::store::{self, Address, Key, Store};

/// The file that `lifeboat wal put --config` reads: JSON, readable by the user of the Postgres server.
///
/// ```json
/// { "store": "dir:///var/backups/lifeboat", "compression": "zstd" }
/// ```
///
/// For a bucket, `region`, `endpoint`, the credentials, `encryption` and `kms_key` are given as in an environment; files
/// are relative to this one, and readable by the server's user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutConfig {
    /// The address of the store; its directory or bucket must exist.
    pub store: String,
    #[serde(default)]
    pub compression: Compression,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<SecretRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<SecretRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<SecretRef>,
    /// How the server of the bucket encrypts what is written; absent means as the bucket does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The key of the key store for `aws:kms`; absent means the account's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
}

/// How the server of a bucket encrypts, in its own words, which are those of an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encryption {
    #[serde(rename = "AES256")]
    Aes256,
    #[serde(rename = "aws:kms")]
    Kms,
    #[serde(rename = "aws:kms:dsse")]
    KmsTwice,
}

impl Encryption {
    fn as_str(self) -> &'static str {
        match self {
            Self::Aes256 => "AES256",
            Self::Kms => "aws:kms",
            Self::KmsTwice => "aws:kms:dsse",
        }
    }
}

/// How segments are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    #[default]
    Zstd,
    None,
}

/// Fast enough to keep up with a busy server, and within a few percent of what higher levels reach.
const LEVEL: i32 = 1;

/// Archives one file: `path` is `%p`, `name` is `%f`.
///
/// Exit code 0 means that the file is in the archive and survives a power cut. Any other one is 1, after which
/// Postgres keeps the file and tries again. A file that is there already is success if its content is the same, and
/// refused otherwise.
pub fn put_main(config: &Path, path: &Path, name: &str) -> WalExit {
    match put(config, path, name) {
        Ok(()) => WalExit::silent(0),
        Err(error) => WalExit { code: 1, message: line(&error) },
    }
}

/// One line for the server's log.
pub(super) fn line(error: &StepError) -> String {
    match &error.help {
        Some(help) => format!("{error}; {help}"),
        None => error.to_string(),
    }
}

fn put(config: &Path, path: &Path, name: &str) -> Result<(), StepError> {
    let kind = WalName::parse(name)?;
    let (file, config) = (config, PutConfig::load(config)?);
    let store = Store::open(&config.address(file)?)?;
    let content = std::fs::read(path).map_err(|error| {
        StepError::permanent(
            codes::LB1203,
            format!("the file to archive, {}, cannot be read: {error}", path.display()),
        )
    })?;
    let system = match kind {
        WalName::Segment | WalName::Partial => LongHeader::check_segment(name, &content)?.system_id,
        WalName::BackupLabel | WalName::History(_) => check_small(name, kind, &content, path)?,
    };
    put_content(&store, system, name, &content, config.compression)
}

fn put_content(
    store: &Store,
    system: SystemId,
    name: &str,
    content: &[u8],
    compression: Compression,
) -> Result<(), StepError> {
    if let Some(existing) = open_form(store, system, name)? {
        return accept_identical(store, system, name, (existing, content));
    }
    // The small files stay readable without a tool.
    let form = match (compression, WalName::parse(name)?) {
        (Compression::Zstd, WalName::Segment | WalName::Partial) => Form::Zstd,
        _ => Form::Plain,
    };
    let key = Key::new(format!("{}{}", wal_key(system, name)?, form.suffix()))?;
    let mut object = store.create(&key)?;
    write_as(form, content, &mut object).map_err(|error| {
        StepError::transient(store::codes::LB1111, format!("{name} cannot be stored: {error}"))
    })?;
    match object.commit() {
        Ok(_) => Ok(()),
        // Somebody else was faster; its bytes differ if another version compressed it.
        Err(error) if error.code == store::codes::LB1105 => match open_form(store, system, name)? {
            Some(existing) => accept_identical(store, system, name, (existing, content)),
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

fn write_as(form: Form, content: &[u8], to: &mut impl Write) -> io::Result<()> {
    match form {
        Form::Plain => to.write_all(content),
        Form::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(to, LEVEL)?;
            encoder.include_checksum(true)?;
            encoder.set_pledged_src_size(Some(content.len() as u64))?;
            encoder.write_all(content)?;
            encoder.finish().map(drop)
        }
    }
}

/// Succeeds if what the archive holds under the name is the same, and makes sure that it is durable.
fn accept_identical(
    store: &Store,
    system: SystemId,
    name: &str,
    (existing, content): (impl Read, &[u8]),
) -> Result<(), StepError> {
    let mut found = Vec::with_capacity(content.len());
    let read = existing.take(content.len() as u64 + 1).read_to_end(&mut found);
    if read.is_ok() && found == content {
        return sync_existing(store, system, name);
    }
    let how = match read {
        Ok(_) => "with different content".to_owned(),
        Err(error) => format!("and cannot be read to its end: {error}"),
    };
    Err(StepError::permanent(
        codes::LB1203,
        format!("{name} is in the archive of cluster {system} already, {how}; it was left as it is"),
    )
    .help("make sure that no other server or copy archives into this store: `lifeboat explain LB1203`"))
}

/// The process that wrote it may have died between the rename and the sync.
fn sync_existing(store: &Store, system: SystemId, name: &str) -> Result<(), StepError> {
    let key = wal_key(system, name)?;
    for form in FORMS {
        let key = Key::new(format!("{key}{}", form.suffix()))?;
        if store.metadata(&key)?.is_some() {
            store.sync(&key)?;
        }
    }
    Ok(())
}

/// Checks a file that is no segment, and finds out which cluster it belongs to.
fn check_small(name: &str, kind: WalName, content: &[u8], path: &Path) -> Result<SystemId, StepError> {
    let text = std::str::from_utf8(content).map_err(|_| bad_segment(name, "it is no text"))?;
    match kind {
        WalName::History(timeline) => drop(super::History::parse(timeline, text)?),
        _ if text.starts_with("START WAL LOCATION:") => {}
        _ => return Err(bad_segment(name, "it does not say where a backup began")),
    }
    system_of(path)
}

/// Reads the system identifier of the cluster whose `pg_wal` a file is in.
///
/// Postgres runs the command in the data directory; `pg_wal` may be a link, so that its parent proves nothing.
fn system_of(path: &Path) -> Result<SystemId, StepError> {
    let data_dir = match path.is_relative() {
        true => Some(Path::new("")),
        false => path.parent().and_then(Path::parent),
    };
    let control = data_dir.unwrap_or(Path::new("")).join("global/pg_control");
    let mut first = [0; 8];
    File::open(&control).and_then(|mut file| file.read_exact(&mut first)).map_err(|error| {
        StepError::permanent(codes::LB1203, format!("{} cannot be read: {error}", control.display()))
            .help("run it as archive_command, in the data directory of the server, with `%p` unchanged")
    })?;
    match u64::from_ne_bytes(first) {
        0 => Err(StepError::permanent(codes::LB1203, format!("{} names no cluster", control.display()))),
        id => Ok(SystemId(id)),
    }
}

impl PutConfig {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self, StepError> {
        let text = std::fs::read(path).map_err(|error| Self::invalid(path, &error))?;
        serde_json::from_slice(&text).map_err(|error| Self::invalid(path, &error))
    }

    /// Returns where the store is, with its credentials read from where they are kept.
    fn address(&self, path: &Path) -> Result<Address, StepError> {
        self.check_encryption().map_err(|problem| Self::invalid(path, &problem))?;
        let address = Address::new(resource::Store {
            url: self.store.clone(),
            region: self.region.clone(),
            endpoint: self.endpoint.clone(),
            encryption: self.encryption.map(|encryption| encryption.as_str().to_owned()),
            kms_key: self.kms_key.clone(),
            ..resource::Store::default()
        });
        let references = [&self.access_key, &self.secret_key, &self.session_token].into_iter().flatten();
        let base = path.parent().unwrap_or(Path::new(""));
        let secrets = Secrets::resolve(references, base).map_err(|unread| {
            let problems: Vec<_> = unread.iter().map(ToString::to_string).collect();
            Self::invalid(path, &problems.join("; "))
        })?;
        let value = |reference: &Option<SecretRef>| secrets.get(reference.as_ref()?).cloned();
        match (value(&self.access_key), value(&self.secret_key)) {
            (Some(id), Some(secret)) => Ok(address.with_keys(id, secret, value(&self.session_token))),
            (None, None) => Ok(address),
            _ => Err(Self::invalid(path, &"`access_key` and `secret_key` come together")),
        }
    }

    /// What is not going to be encrypted must not look as if it were.
    fn check_encryption(&self) -> Result<(), &'static str> {
        match (self.encryption, &self.kms_key) {
            (Some(_), _) if self.store.starts_with("dir:") => {
                Err("`encryption` belongs to a store at `s3://`; a directory is not encrypted by it")
            }
            (None, Some(_)) => Err("`kms_key` is of no use without `encryption`"),
            (Some(Encryption::Aes256), Some(_)) => {
                Err("`AES256` takes no `kms_key`; `\"encryption\": \"aws:kms\"` does")
            }
            _ => Ok(()),
        }
    }

    fn invalid(path: &Path, problem: &dyn std::fmt::Display) -> StepError {
        StepError::permanent(codes::LB1205, format!("{} cannot be used: {problem}", path.display()))
            .help("it must be readable by the server's user and hold {\"store\": \"dir:///path\"}")
    }
}
