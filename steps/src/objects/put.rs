use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::json;

use super::send::{Sender, unread, uploads_of};
use super::{outputs, tree};
use crate::probe::bytes;
use crate::store::named::{Existing, Pin};
use crate::store::sums::sums_of;
use crate::store::{Digest, Key, Meter, Put as Written, Store, blocking, codes};

/// Writes one file into a store.
#[derive(Debug)]
pub(super) struct Put;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    file: PathBuf,
    store: String,
    key: String,
    existing: Choice,
}

/// What is done where another object has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Choice {
    Refuse,
    Replace,
}

const DOC: &str = "\
Sends the file in one request up to 16 MiB and in parts above, and the object appears under its name whole or not at \
all. In a bucket it carries the SHA-256 of its content, with which `store.get`, `store.sync` and `store.verify` compare \
what comes back. A file that changes while it is read is not sent. An attempt that follows an interrupted one sends only the parts \
that the server has not acknowledged, if the file is still the same.

An object of that name with the same content is success. With other content it is refused, unless `existing` is \
`replace`: then a bucket with versions keeps the old one, and any other store loses it. Whether the name is free is \
decided by the server (`If-None-Match`); of a server other than S3 it is found out first whether it knows that, and if not, \
a warning says that another writer in the same instant would not be noticed.

The key is segments with `/` between them; `..`, empty segments, backslashes and control characters are refused.";

#[async_trait]
impl StepKind for Put {
    fn spec(&self) -> KindSpec {
        KindSpec::new("store.put", "Writes one file into a store.", Effect::Idempotent)
            .doc(DOC)
            .param(Field::required("file", Type::Path, "The file."))
            .param(Field::required("store", Type::writes(ResourceKind::Store), "Where it goes."))
            .param(Field::required("key", Type::String, "The name of the object, below the store's prefix."))
            .param(Field::defaulted(
                "existing",
                Type::choice(&["refuse", "replace"]),
                "refuse",
                "What to do where another object has the name.",
            ))
            .output("key", Type::String, "The name of the object.")
            .output("bytes", Type::Integer, "Its size.")
            .output("sha256", Type::String, "Its checksum.")
            .output("written", Type::Boolean, "False if the same content was there already.")
            .destroys("with `existing: replace`, an object of that name; a bucket with versions keeps it")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let store = super::url(ctx, &params.store)?;
        let size =
            std::fs::metadata(&params.file).map_or_else(|_| "?".to_owned(), |found| bytes(found.len()));
        let action = format!("write {} ({size}) as `{}` into {store}", params.file.display(), params.key);
        let destroys = match params.existing {
            Choice::Refuse => vec!["nothing: another object of that name is refused".to_owned()],
            Choice::Replace => {
                vec![format!("`{}` in {store}, if it is there with other content", params.key)]
            }
        };
        Ok(Preview { actions: vec![action], destroys })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let key = Key::new(params.key.clone())?;
        let (root, name) = super::split(&params.file)?;
        let size = tree::open(&root, &name).map_err(|error| unread(&params.file, &error))?.1.len();
        let store = Store::of_for_writing(ctx, &params.store).await?;
        let reading = Meter::bytes(ctx, Some(size), "reading, for its checksum");
        let meter = Meter::bytes(ctx, Some(size), "sending");
        let (wanted, existing) = (params.clone(), params.existing);
        let uploads = uploads_of(ctx)?;
        blocking(move || {
            let (mut file, _) = tree::open(&root, &name).map_err(|error| unread(&wanted.file, &error))?;
            let sums = sums_of(&mut file, &reading, |error| unread(&wanted.file, error))?;
            let digest = sums.digest.clone();
            let mut warnings = Vec::new();
            let same = has(&store, &key, &digest)?;
            let send = |existing| {
                let (store, sums, uploads) = (store.clone(), Some(Arc::new(sums)), Arc::clone(&uploads));
                let sender = Sender { store, root, existing, sums, uploads, meter };
                sender.one(&name, &key).map(|(put, _)| put)
            };
            let put = match (same, existing) {
                (true, _) => Written::Identical,
                (false, Choice::Replace) => send(Existing::Replace)?,
                (false, Choice::Refuse) => {
                    if !store.decides_names()? {
                        warnings.push(format!(
                            "{store} does not know conditional writes: another writer of `{key}` in the same instant \
                             would not have been noticed"
                        ));
                    }
                    send(Existing::Keep)?
                }
            };
            store.clear(&uploads);
            let found = store.facts(key.as_str(), &Pin::default())?;
            let check = Check {
                name: format!("bytes of `{key}` in the store"),
                expected: digest.size.to_string(),
                actual: found.as_ref().map_or_else(|| "absent".to_owned(), |found| found.size.to_string()),
                passed: found.is_some_and(|found| {
                    found.size == digest.size && found.sha256.is_none_or(|known| known == digest.sha256)
                }),
            };
            if !check.passed {
                let message = format!("`{key}` in {store} is not what was written");
                return Err(StepError::transient(codes::LB1122, message)
                    .help("something else writes there: stop it, then run the step again")
                    .checks(vec![check]));
            }
            let outputs = outputs(json!({
                "key": key.as_str(), "bytes": digest.size, "sha256": digest.sha256,
                "written": put == Written::Written,
            }));
            let mut done = Done { outputs, warnings, checks: vec![check], ..Done::default() };
            if uploads.kept() > 0 {
                done.facts.insert("sent by an earlier attempt".into(), bytes(uploads.kept()));
            }
            Ok(done)
        })
        .await
    }
}

/// Says whether the store has this content under the name, as far as it can tell without reading.
fn has(store: &Store, key: &Key, digest: &Digest) -> Result<bool, StepError> {
    let found = store.facts(key.as_str(), &Pin::default())?;
    Ok(found
        .is_some_and(|found| found.size == digest.size && found.sha256.as_deref() == Some(&digest.sha256)))
}
