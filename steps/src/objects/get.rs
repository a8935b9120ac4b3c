use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Created, CreatedKind};
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fetch::{Fetcher, Proven, Wanted, failed};
use super::notes::Notes;
use super::{outputs, tree};
use crate::process::OsUser;
use crate::store::named::{Facts, Pin};
use crate::store::{Meter, Store, beneath, blocking, codes, digest_of};

/// Reads one object into a file.
#[derive(Debug)]
pub(super) struct Get;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    store: String,
    key: String,
    version: Option<String>,
    to: PathBuf,
    existing: Choice,
    sha256: Option<String>,
    owner: Option<String>,
}

/// What is done with a file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Choice {
    Refuse,
    Replace,
}

/// What an attempt records before it gives the file its name: its checksum.
const WHOLE: &str = "whole";

const DOC: &str = "\
Reads the object in parts at once, all of the content that it had when the attempt began (by its version, or by `If-Match`), \
into a file beside the target, compares it with what the store says of it, syncs it and then gives it its name: the target is \
never half a file. An attempt that follows an interrupted one goes on after the last part whose bytes and checksum are \
there, if the object is still the same, and else begins anew.

Compared with `sha256` if it is given, with the SHA-256 that objects written by Lifeboat carry, with the MD5 that the tag \
of an object is that was sent whole, or with the checksum of the whole that the server keeps (CRC64NVME, which S3 gives to what came \
without one, CRC32C or CRC32); `proven` says with which. Where the store knows none of them only the size is compared, and a \
warning says so.

A file that is there is refused unless `existing` is `replace`; a symbolic link is never followed and never replaced. An object \
in an archive is refused.";

#[async_trait]
impl StepKind for Get {
    fn spec(&self) -> KindSpec {
        let mut spec =
            KindSpec::new("store.get", "Reads one object of a store into a file.", Effect::Idempotent)
                .doc(DOC)
                .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the object is."))
                .param(Field::required("key", Type::String, "Its name, below the store's prefix."))
                .param(Field::optional(
                    "version",
                    Type::String,
                    "Which version of it; the current one if absent.",
                ))
                .param(Field::required("to", Type::Path, "The file."))
                .param(Field::defaulted(
                    "existing",
                    Type::choice(&["refuse", "replace"]),
                    "refuse",
                    "What to do with a file that is there.",
                ))
                .param(Field::optional("sha256", Type::String, "The checksum that it must have."))
                .param(Field::optional("owner", Type::String, "The system user that owns the file."))
                .output("path", Type::Path, "The file.")
                .output("bytes", Type::Integer, "Its size.")
                .output("sha256", Type::String, "Its checksum.")
                .output(
                    "proven",
                    Type::choice(&["sha256", "md5", "crc", "size"]),
                    "What it was compared with.",
                )
                .writes_path("to")
                .destroys("with `existing: replace`, the file that is there");
        spec.outputs.push(Field::optional("version", Type::String, "Which version was read."));
        spec.outputs.push(Field::optional("modified", Type::Timestamp, "When the object got its content."));
        spec
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let store = super::url(ctx, &params.store)?;
        let to = params.to.display();
        let there = params.to.symlink_metadata().is_ok();
        let destroys = match (params.existing, there) {
            (_, false) => "nothing: there is no such file".to_owned(),
            (Choice::Refuse, true) => "nothing: the file is there, and the step would be refused".to_owned(),
            (Choice::Replace, true) => format!("{to} as it is"),
        };
        Ok(Preview {
            actions: vec![format!("read `{}` of {store} into {to}", params.key)],
            destroys: vec![destroys],
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        super::check_key(&params.key)?;
        let (root, name) = super::split(&params.to)?;
        let store = Store::of(ctx, &params.store).await?;
        let facts = find(&store, &params).await?;
        if let Some(done) = finished(ctx, &params, &facts)? {
            return Ok(done);
        }
        check_target(&params, (&root, &name))?;
        let staged = format!("{}get-{}-{}", tree::OURS, ctx.info.run.short(), ctx.info.step);
        let what = format!("`{}` while it is read", params.key);
        let id = format!("store:{}:staging", ctx.info.step);
        let kind = CreatedKind::File { path: root.join(&staged) };
        ctx.created(Created { id: id.clone(), what, kind }).await?;
        let fetcher = fetcher(ctx, &store, (&params, &root), facts.size)?;
        let wanted = Wanted {
            object: params.key.clone(),
            name: staged.clone(),
            size: facts.size,
            modified: facts.modified,
            pin: facts.pin.clone(),
        };
        let (at, expected) = (root.join(&staged), params.sha256.clone());
        let (sha256, proven) = blocking(move || {
            let sha256 = fetcher.one(&wanted)?;
            check_expected(&at, expected.as_deref(), &sha256)?;
            let file = fs::File::open(&at).map_err(|error| failed("read", &at, &error))?;
            file.sync_all().map_err(|error| failed("synced", &at, &error))?;
            Ok((sha256, fetcher.proven.counts()))
        })
        .await?;
        let proven = match (&params.sha256, proven) {
            (Some(_), _) | (None, [1, ..]) => "sha256",
            (None, [_, 1, ..]) => "md5",
            (None, [_, _, 1, _]) => "crc",
            // An attempt that had only the end left to do compared nothing but the parts that it had noted.
            (None, _) => "size",
        };
        ctx.record(WHOLE, json!({ "sha256": sha256, "proven": proven })).await?;
        publish(&root, (&staged, &name))?;
        ctx.removed(&id, "it has its own name now").await?;
        Ok(done(&params, &facts, (&sha256, proven)))
    }
}

/// Finds the object as it is now, or the version that is wanted.
async fn find(store: &Store, params: &Params) -> Result<Facts, StepError> {
    let (of, key) = (store.clone(), params.key.clone());
    let pin = Pin { version: params.version.clone(), etag: None };
    let found = blocking(move || of.facts(&key, &pin)).await?;
    found.ok_or_else(|| {
        let version =
            params.version.as_ref().map_or(String::new(), |version| format!(" of version {version}"));
        let message = format!("there is no object {}{version}", store.address_of(&params.key));
        StepError::permanent(codes::LB1104, message).help("list what is there with `store.list`, or by hand")
    })
}

/// Returns the results if an earlier attempt has put the file in place.
fn finished(ctx: &StepContext, params: &Params, facts: &Facts) -> Result<Option<Done>, StepError> {
    let recorded = |key: &str| ctx.recorded(WHOLE).and_then(|it| it.get(key)).and_then(Value::as_str);
    let (Some(sha256), Some(proven)) = (recorded("sha256"), recorded("proven")) else { return Ok(None) };
    let (root, name) = super::split(&params.to)?;
    let Ok((file, _)) = tree::open(&root, &name) else { return Ok(None) };
    let is = digest_of(file, &Meter::silent())?.sha256 == sha256;
    Ok(is.then(|| done(params, facts, (sha256, proven))))
}

fn check_target(params: &Params, (root, name): (&Path, &str)) -> Result<(), StepError> {
    let refuse = |why: &str| StepError::permanent(codes::LB1120, format!("{} {why}", params.to.display()));
    let found = match root.join(name).symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(found) => found.file_type(),
    };
    match (found.is_file(), params.existing) {
        (false, _) => Err(refuse("is there and is no regular file").help("give the step another `to`")),
        (true, Choice::Refuse) => Err(refuse("is there, and `existing` is `refuse`")
            .help("move it away, or let the step replace it with `existing: replace`")),
        (true, Choice::Replace) => Ok(()),
    }
}

fn fetcher(
    ctx: &StepContext,
    store: &Store,
    (params, root): (&Params, &Path),
    size: u64,
) -> Result<Fetcher, StepError> {
    let path = ctx.work_dir()?.join("parts.jsonl");
    let owner = params.owner.as_deref().filter(|_| rustix::process::geteuid().is_root());
    let owner = owner.map(OsUser::lookup).transpose()?.map(|user| (user.uid, user.gid));
    Ok(Fetcher {
        store: store.clone(),
        root: root.to_owned(),
        owner,
        notes: Notes::open(&path).map_err(|error| failed("opened", &path, &error))?,
        meter: Meter::bytes(ctx, Some(size), "reading"),
        proven: Proven::default(),
    })
}

/// Compares with the checksum that the runbook names.
fn check_expected(path: &Path, expected: Option<&str>, sha256: &str) -> Result<(), StepError> {
    match expected {
        Some(expected) if !expected.eq_ignore_ascii_case(sha256) => {
            fs::remove_file(path).ok();
            let message = format!("the object has the SHA-256 {sha256}, and must have {expected}");
            Err(StepError::permanent(codes::LB1108, message)
                .help("it is damaged or another one: find a version or a copy of it with that checksum"))
        }
        _ => Ok(()),
    }
}

fn publish(root: &Path, (from, to): (&str, &str)) -> Result<(), StepError> {
    let renamed = beneath::open_root(root).and_then(|dir| {
        rustix::fs::renameat(&dir, from, &dir, to)?;
        Ok(rustix::fs::fsync(&dir)?)
    });
    renamed.map_err(|error| failed("put in place", &root.join(to), &error))
}

fn done(params: &Params, facts: &Facts, (sha256, proven): (&str, &str)) -> Done {
    let mut outputs = outputs(json!({
        "path": params.to, "bytes": facts.size, "sha256": sha256, "proven": proven,
    }));
    if let Some(version) = &facts.pin.version {
        outputs.insert("version".to_owned(), json!(version));
    }
    if let Some(modified) = facts.modified {
        outputs.insert("modified".to_owned(), json!(modified.to_string()));
    }
    let check = Check {
        name: format!("`{}` by {proven}", params.key),
        expected: facts.size.to_string(),
        actual: facts.size.to_string(),
        passed: true,
    };
    let mut done = Done { outputs, checks: vec![check], ..Done::default() };
    if proven == "size" {
        done.warnings.push(format!(
            "the store knows no checksum of `{}`: only its size was compared; give `sha256` where it is known",
            params.key
        ));
    }
    done
}
