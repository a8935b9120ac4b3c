use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::json;

use super::restore::listed;
use super::whole::{Known, Proof, Whole};
use super::{outputs, prefix, tree};
use crate::store::named::{Current, Pin};
use crate::store::parallel::each;
use crate::store::{MARKER, Marker, Meter, Store, blocking, codes, digest_of};

/// Reads objects and compares them with their checksums.
#[derive(Debug)]
pub(super) struct Verify;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    store: String,
    prefix: Option<String>,
    against: Option<PathBuf>,
    unproven: Unproven,
    allow_empty: bool,
}

/// What is done about objects of which nobody knows a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Unproven {
    Accept,
    Refuse,
}

/// Each takes up to a part of an object in memory, and large ones some parts.
const AT_ONCE: usize = 4;

const DOC: &str = "\
Reads every object to its end and compares it with the first of these that there is: the marker of the backup that it \
belongs to, the SHA-256 that objects written by Lifeboat carry, the MD5 in the tag of an object that was sent whole, the checksum of \
the whole that the server keeps (CRC64NVME, CRC32C, CRC32, SHA-256), which S3 does by itself of objects sent in parts. With \
`against`, with the file of the same name in a directory instead, and files that the store lacks are missing objects. An object \
that a marker names and that is not there is missing, too.

Objects of which nobody knows a checksum are read all the same, counted as `unproven` and named in a warning; `unproven: \
refuse` makes them an error. It fails if anything is damaged or missing, and if there is no object at all (unless \
`allow_empty`).";

#[async_trait]
impl StepKind for Verify {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "store.verify",
            "Reads the objects of a store and compares them with their checksums.",
            Effect::Read,
        )
        .doc(DOC)
        .param(Field::required("store", Type::reads(ResourceKind::Store), "Which store."))
        .param(Field::optional("prefix", Type::String, "Only what lies below this, in whole segments."))
        .param(Field::optional("against", Type::Path, "A directory with the same content."))
        .param(Field::defaulted(
            "unproven",
            Type::choice(&["accept", "refuse"]),
            "accept",
            "What to do about objects of which nobody knows a checksum.",
        ))
        .param(Field::defaulted("allow_empty", Type::Boolean, false, "Whether there may be no object."))
        .output("objects", Type::Integer, "How many objects were read.")
        .output("bytes", Type::Integer, "Their size.")
        .output("proven", Type::Integer, "How many have the checksum that is known of them.")
        .output("unproven", Type::Integer, "Of how many nobody knows one.")
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of(ctx, &params.store).await?;
        let below = prefix(params.prefix.as_deref())?;
        let listed = {
            let store = store.clone();
            blocking(move || store.everything(below.as_ref())).await?
        };
        if listed.is_empty() && !params.allow_empty {
            return Err(StepError::permanent(codes::LB1152, format!("{store} has no object there")).help(
                "is it the right store and prefix? If it is empty indeed, give the step `allow_empty: true`",
            ));
        }
        let bytes = listed.iter().map(|object| object.size).sum();
        let job = Job { store, params, meter: Meter::bytes(ctx, Some(bytes), "reading objects") };
        blocking(move || job.run(&listed, bytes)).await
    }
}

struct Job {
    store: Store,
    params: Params,
    meter: Meter,
}

#[derive(Default)]
struct Found {
    proven: u64,
    unproven: Vec<String>,
    wrong: Vec<String>,
}

impl Job {
    fn run(&self, objects: &[Current], bytes: u64) -> Result<Done, StepError> {
        let found = Mutex::new(Found::default());
        let mut known = BTreeMap::new();
        let mut missing = Vec::new();
        match &self.params.against {
            Some(dir) => missing.extend(self.missing_of(dir, objects)?),
            None => self.read_markers(objects, (&mut known, &mut missing))?,
        }
        each(objects, AT_ONCE, |object| self.one(object, &known, &found))?;
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.wrong.extend(missing);
        found.wrong.sort();
        found.unproven.sort();
        if self.params.unproven == Unproven::Refuse {
            let unproven = found.unproven.iter().map(|name| format!("{name}: nobody knows its checksum"));
            found.wrong.extend(unproven);
        }
        let check = Check {
            name: "objects that are as they were written".to_owned(),
            expected: (found.proven + found.wrong.len() as u64).to_string(),
            actual: found.proven.to_string(),
            passed: found.wrong.is_empty(),
        };
        if !found.wrong.is_empty() {
            let message =
                format!("{} objects of {} are damaged, missing or unproven", found.wrong.len(), self.store);
            return Err(listed(StepError::permanent(codes::LB1108, message), found.wrong)
                .help("bring them back from an older version (`store.promote_version`) or from a copy of the store")
                .checks(vec![check]));
        }
        let mut warnings = Vec::new();
        if !found.unproven.is_empty() {
            let some = found.unproven.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let count = found.unproven.len();
            warnings.push(format!("of {count} objects nobody knows a checksum; they can be read: {some}"));
        }
        let outputs = outputs(json!({
            "objects": objects.len(), "bytes": bytes, "proven": found.proven, "unproven": found.unproven.len(),
        }));
        Ok(Done { outputs, warnings, checks: vec![check], ..Done::default() })
    }

    /// Reads one object and compares it.
    fn one(
        &self,
        object: &Current,
        known: &BTreeMap<String, (u64, String)>,
        found: &Mutex<Found>,
    ) -> Result<(), StepError> {
        let name = format!("`{}`", object.name.escape_debug());
        let outcome = match (object.archived, object.name.ends_with('/')) {
            (true, _) => Err(format!("{name}: it lies in an archive and cannot be read")),
            (false, true) if object.size == 0 => Ok(true),
            _ => self.compare(object, known)?.map_err(|why| format!("{name}: {why}")),
        };
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(true) => found.proven += 1,
            Ok(false) => found.unproven.push(name),
            Err(why) => found.wrong.push(why),
        }
        Ok(())
    }

    /// Returns whether it is proven, or what is wrong with it.
    fn compare(
        &self,
        object: &Current,
        known: &BTreeMap<String, (u64, String)>,
    ) -> Result<Result<bool, String>, StepError> {
        let expected = match &self.params.against {
            Some(dir) => {
                let below = self.below(&object.name);
                let Ok((file, _)) = tree::open(dir, below) else {
                    return Ok(Err(format!("{} has no such file", dir.display())));
                };
                Some(digest_of(file, &self.meter.uncounted())?.sha256)
            }
            None => known.get(&object.name).map(|(_, sha256)| sha256.clone()),
        };
        let pin = Pin { version: None, etag: object.etag.clone() };
        let Some((facts, mut content)) = self.store.open_at(&object.name, 0, &pin)? else {
            return Ok(Err("it went while it was verified".to_owned()));
        };
        let expected = match expected {
            Some(sha256) => Known::Sha256(sha256),
            None => Known::of(&self.store, &object.name, &facts)?,
        };
        let (mut whole, mut buffer, mut size) = (Whole::only(expected), vec![0; 256 * 1024], 0);
        loop {
            let count = match content.read(&mut buffer) {
                Ok(count) => count,
                Err(error) => {
                    return crate::store::of_store(&error).cloned().map_or(Ok(Err(error.to_string())), Err);
                }
            };
            if count == 0 {
                break;
            }
            whole.update(&buffer[..count]);
            size += count as u64;
            self.meter.advance(count as u64)?;
        }
        if size != object.size {
            return Ok(Err(format!("it has {size} bytes, and the list says {}", object.size)));
        }
        Ok(whole.compare().map(|proof| proof != Proof::Nothing))
    }

    /// Returns the name below the prefix that was asked for.
    fn below<'n>(&self, name: &'n str) -> &'n str {
        let prefix = self.params.prefix.as_deref().unwrap_or_default().trim_end_matches('/');
        name.strip_prefix(prefix).map_or(name, |rest| rest.trim_start_matches('/'))
    }

    fn missing_of(&self, dir: &std::path::Path, objects: &[Current]) -> Result<Vec<String>, StepError> {
        let there: std::collections::BTreeSet<_> =
            objects.iter().map(|object| self.below(&object.name)).collect();
        let files = tree::Tree::read(dir)?.files;
        let missing = files.iter().filter(|file| !there.contains(file.name.as_str()));
        Ok(missing.map(|file| format!("`{}`: the store lacks it", file.name.escape_debug())).collect())
    }

    /// Collects what the markers of backups say of objects.
    fn read_markers(
        &self,
        objects: &[Current],
        (known, missing): (&mut BTreeMap<String, (u64, String)>, &mut Vec<String>),
    ) -> Result<(), StepError> {
        let sizes: BTreeMap<_, _> =
            objects.iter().map(|object| (object.name.as_str(), object.size)).collect();
        for marker in objects.iter().filter(|object| object.name.rsplit('/').next() == Some(MARKER)) {
            let Some((dir, _)) = marker.name.rsplit_once('/') else { continue };
            let Some((_, mut content)) = self.store.open_at(&marker.name, 0, &Pin::default())? else {
                continue;
            };
            let mut text = Vec::new();
            let read = content.read_to_end(&mut text).map(|_| serde_json::from_slice::<Marker>(&text));
            let Ok(Ok(read)) = read else {
                missing.push(format!("`{}`: it is no marker of a backup", marker.name.escape_debug()));
                continue;
            };
            for object in read.objects {
                let name = format!("{dir}/{}", object.name);
                match sizes.get(name.as_str()) {
                    Some(size) if *size == object.size => {
                        known.insert(name, (object.size, object.sha256));
                    }
                    Some(size) => missing
                        .push(format!("`{name}`: it has {size} bytes, and the marker says {}", object.size)),
                    None => missing.push(format!("`{name}`: the marker names it, and it is not there")),
                }
            }
        }
        Ok(())
    }
}
