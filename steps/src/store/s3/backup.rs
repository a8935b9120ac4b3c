//! Backups in the making: objects without a marker.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use lifeboat_engine::step::StepError;

use super::bucket::Bucket;
use super::fault::Fault;
use super::runtime::wait;
use crate::store::backend::Put;
use crate::store::failure;
use crate::store::key::Key;
use crate::store::marker::{BackupKind, MARKER, Marker};
use crate::store::named::{Announced, Existing, Intent};
use crate::store::partial::{OWNER_FILE, Owner, label_taken, not_ours};
use crate::store::transfer::{Meter, copy};

/// An owner is a short line.
const OWNER_LIMIT: u64 = 4096;

impl Bucket {
    /// Claims a label: an object names the step that writes below it, and only the first one gets there.
    pub(in crate::store) fn claim(
        &self,
        kind: BackupKind,
        label: &str,
        owner: &Owner,
    ) -> Result<(), StepError> {
        let key = kind.backup(label)?;
        if self.metadata(&key.join(MARKER)?)?.is_some() {
            return Err(label_taken(&key, self));
        }
        // Names of our own objects are no keys for others.
        let mine = Key::own(&key, OWNER_FILE);
        let text = serde_json::to_string(owner).expect("plain data can be written");
        let mut object = self.create(&mine);
        io::Write::write_all(&mut object, text.as_bytes()).map_err(|error| failure::write(&mine, &error))?;
        match object.commit() {
            Ok(Put::Written) => self.refuse_others(&key, &mine),
            // An earlier attempt of this step.
            Ok(Put::Identical) => {
                self.remove_left(&key);
                self.clear_below(&key);
                Ok(())
            }
            Err(error) if error.code == crate::store::codes::LB1105 => {
                let mut written = String::new();
                let found =
                    self.find(&mine)?.map(|object| object.take(OWNER_LIMIT).read_to_string(&mut written));
                found.transpose().map_err(|error| failure::read(&mine, &error))?;
                Err(not_ours(
                    format_args!("`{key}` in {self}"),
                    &format!("belongs to somebody else: {written}"),
                ))
            }
            Err(error) => Err(error),
        }
    }

    /// Refuses a label under which something stood before its owner.
    fn refuse_others(&self, key: &Key, mine: &Key) -> Result<(), StepError> {
        if self.list(key)?.is_empty() {
            return Ok(());
        }
        self.remove(vec![self.full(mine)]);
        Err(not_ours(format_args!("`{key}` in {self}"), "was made by something else"))
    }

    /// Sends the objects of a backup, then its marker.
    pub(in crate::store) fn publish(
        &self,
        dir: &Path,
        marker: &Marker,
        meter: &Meter,
    ) -> Result<(), StepError> {
        for object in &marker.objects {
            let (key, path) = (marker.key(&object.name)?, dir.join(&object.name));
            let mut file = File::open(&path).map_err(|error| failure::read(path.display(), &error))?;
            // The label is ours: what an earlier attempt sent may be replaced.
            let intent = Intent {
                existing: Existing::Replace,
                announced: Announced::Sha256(object.sha256.clone()),
                uploads: None,
            };
            let mut upload = self.upload(&key, intent);
            copy(&mut file, &mut upload, meter)?;
            upload.commit()?;
        }
        let key = marker.kind.backup(&marker.label)?.join(MARKER)?;
        let mut object = self.create(&key);
        io::Write::write_all(&mut object, &marker.to_text()).map_err(|error| failure::write(&key, &error))?;
        object.commit().map(drop)
    }

    /// Removes what an earlier attempt left. Where that is not permitted it is replaced, or stays and does no harm: a
    /// backup is what its marker names.
    fn remove_left(&self, key: &Key) {
        if let Ok(left) = self.list(key) {
            self.remove(left.iter().map(|object| self.full(&object.key)).collect());
        }
    }

    fn remove(&self, keys: Vec<String>) {
        const AT_ONCE: usize = 1000;
        for keys in keys.chunks(AT_ONCE) {
            let named =
                keys.iter().filter_map(|key| ObjectIdentifier::builder().key(key).build().ok()).collect();
            let Ok(delete) = Delete::builder().set_objects(Some(named)).quiet(true).build() else { continue };
            let request = self.client().delete_objects().bucket(self.name()).delete(delete);
            drop(wait(async move {
                if let Err(error) = request.send().await {
                    tracing::debug!(
                        "what an earlier attempt left cannot be removed: {:?}",
                        Fault::of(&error)
                    );
                }
            }));
        }
    }
}
