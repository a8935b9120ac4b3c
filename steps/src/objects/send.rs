//! Sends files into a store, each whole or not at all.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::{StepContext, StepError};

use super::fetch::failed;
use super::tree;
use crate::store::named::{Announced, Existing, Intent};
use crate::store::sums::{Sums, sums_of};
use crate::store::uploads::Uploads;
use crate::store::{Key, Meter, Put, Store, codes, copy};

/// Below this an object is sent in one request, which says by itself what it holds.
const ONE_REQUEST: u64 = 16 << 20;

/// The sending of files.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) store: Store,
    pub(super) root: PathBuf,
    pub(super) existing: Existing,
    /// The checksums of the file, where they are known.
    pub(super) sums: Option<Arc<Sums>>,
    pub(super) uploads: Arc<Uploads>,
    pub(super) meter: Meter,
}

/// Opens the notes of a step on uploads in parts.
pub(super) fn uploads_of(ctx: &StepContext) -> Result<Arc<Uploads>, StepError> {
    let path = ctx.work_dir()?.join("uploads.jsonl");
    Uploads::open(&path).map(Arc::new).map_err(|error| failed("opened", &path, &error))
}

impl Sender {
    /// Sends one file. A large one is read twice for a bucket: what an object carries is said before its content.
    pub(super) fn one(&self, name: &str, key: &Key) -> Result<(Put, u64), StepError> {
        let unread = |error: io::Error| unread(&self.root.join(name), &error);
        let (mut file, before) = tree::open(&self.root, name).map_err(unread)?;
        let announced = match before.len() >= ONE_REQUEST && self.store.carries_checksums() {
            true => Announced::Sums(self.sums(name, &mut file)?),
            false => Announced::Nothing,
        };
        let uploads = Some(Arc::clone(&self.uploads));
        let intent = Intent { existing: self.existing, announced, uploads };
        let mut object = self.store.write_object(key, intent)?;
        let sent = match copy(&mut file, &mut object, &self.meter) {
            Ok(sent) => sent,
            Err(error) => {
                // A later attempt goes on from there, unless it would fail the same way.
                if error.kind != FailureKind::Permanent {
                    object.leave();
                }
                return Err(error);
            }
        };
        let after = file.metadata().map_err(unread)?;
        if sent != before.len() || !tree::is_unchanged(&before, &after) {
            return Err(changed(&self.root.join(name)));
        }
        Ok((object.commit()?, sent))
    }

    fn sums(&self, name: &str, file: &mut File) -> Result<Arc<Sums>, StepError> {
        if let Some(known) = &self.sums {
            return Ok(Arc::clone(known));
        }
        let path = self.root.join(name);
        let sums = sums_of(file, &self.meter.uncounted(), |error| unread(&path, error))?;
        file.seek(SeekFrom::Start(0)).map_err(|error| unread(&path, &error))?;
        Ok(Arc::new(sums))
    }
}

fn changed(path: &Path) -> StepError {
    StepError::transient(
        codes::LB1151,
        format!("{} changed while it was read; it was not sent", path.display()),
    )
    .help("stop what writes there, or copy a snapshot of it; then run the step again")
}

pub(super) fn unread(path: &Path, error: &io::Error) -> StepError {
    StepError::permanent(codes::LB1103, format!("{} cannot be read: {error}", path.display()))
        .help("check that it is a regular file and that the user of Lifeboat may read it: `ls -l`")
}
