use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::expr;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::backup::files_of;
use super::codes;
use super::extract::compare;
use super::manifest::OutsideLinks;
use super::restore::{describe, manifest_of};
use crate::backup::{self, Wanted};
use crate::store::{BackupKind, Meter, Store, blocking};

/// Compares a directory with a backup.
#[derive(Debug)]
pub(super) struct Verify;

#[derive(Deserialize)]
struct Params {
    files: String,
    store: String,
    backup: Option<String>,
    target_time: Option<Timestamp>,
    source: Option<String>,
    expect: Vec<String>,
}

#[async_trait]
impl StepKind for Verify {
    fn spec(&self) -> KindSpec {
        let names = ["files", "bytes", "missing", "different", "extra"];
        KindSpec::new("files.verify", "Compares a directory with a backup.", Effect::Read)
            .doc(
                "Reads every file and compares type, size and SHA-256 with the manifest of a backup, chosen as by \
                 `files.restore`. `expect` judges the counts: `missing`, `different`, `extra` (there, but not in the \
                 backup), `files` and `bytes` (of the backup).",
            )
            .param(Field::required("files", Type::reads(ResourceKind::Files), "The directory."))
            .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the backup is."))
            .param(Field::optional("backup", Type::String, "The label of the backup."))
            .param(Field::optional("target_time", Type::Timestamp, "The backup was finished before it."))
            .param(Field::optional("source", Type::String, "The directory it is of, if the store has several."))
            .param(Field::defaulted(
                "expect",
                Type::conditions(&names),
                json!(["missing == 0", "different == 0"]),
                "Conditions over the counts.",
            ))
            .output("backup", Type::String, "The label of the backup.")
            .output("files", Type::Integer, "How many files the backup holds.")
            .output("bytes", Type::Integer, "Their size.")
            .output("missing", Type::Integer, "How many entries of the backup are not there.")
            .output("different", Type::Integer, "How many have another type or content.")
            .output("extra", Type::Integer, "How many are there that the backup does not have.")
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let root = files_of(ctx, &params.files)?.path.clone();
        let store = Store::of(ctx, &params.store).await?;
        let wanted = Wanted {
            kind: BackupKind::Files,
            store: params.store.clone(),
            label: params.backup.clone(),
            before: params.target_time,
            source: params.source.clone(),
            target: params.files.clone(),
            none: codes::LB1404,
        };
        let marker = backup::choose(&store, wanted).await?;
        let manifest = manifest_of(&store, &marker, OutsideLinks::Keep).await?;
        let (files, bytes) = (manifest.files().len(), manifest.bytes());
        let meter = Meter::bytes(ctx, Some(bytes), "comparing");
        let differences = blocking(move || compare(&manifest, &root, &meter)).await?;
        let Value::Object(mut outputs) = json!({
            "files": files,
            "bytes": bytes,
            "missing": differences.missing.len(),
            "different": differences.different.len(),
            "extra": differences.extra.len(),
        }) else {
            unreachable!("an object was written")
        };
        let checks = expr::check_all(&params.files, &params.expect, &outputs);
        if let Some(failed) = checks.iter().find(|check| !check.passed) {
            let message = format!(
                "`{}` differs from the backup `{}`: {} does not hold ({})",
                params.files, marker.label, failed.expected, failed.actual
            );
            let mut error = StepError::permanent(codes::LB1409, message).checks(checks);
            error.causes = describe(&differences);
            return Err(error);
        }
        outputs.insert("backup".into(), marker.label.into());
        Ok(Done { outputs, checks, ..Done::default() })
    }
}
