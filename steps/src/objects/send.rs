//! Sends files into a store, each whole or not at all.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use sha2::{Digest as _, Sha256};

use super::tree;
use crate::store::named::{Existing, SHA256};
use crate::store::{Key, Meter, Put, Store, codes, copy};

/// Below this an object is sent in one request, which says by itself what it holds.
const ONE_REQUEST: u64 = 16 << 20;

/// The sending of files.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) store: Store,
    pub(super) root: PathBuf,
    pub(super) existing: Existing,
    /// The checksum of the file, where it is known.
    pub(super) sha256: Option<String>,
    pub(super) meter: Meter,
}

impl Sender {
    /// Sends one file. A large one is read twice: what an object carries is said before its content.
    pub(super) fn one(&self, name: &str, key: &Key) -> Result<(Put, u64), StepError> {
        let unread = |error: io::Error| unread(&self.root.join(name), &error);
        let (mut file, before) = tree::open(&self.root, name).map_err(unread)?;
        let mut metadata = HashMap::new();
        if before.len() >= ONE_REQUEST {
            let sha256 = match &self.sha256 {
                Some(known) => known.clone(),
                None => self.read(&mut file).map_err(unread)??,
            };
            metadata.insert(SHA256.to_owned(), sha256);
        }
        let mut object = self.store.write_object(key, self.existing, metadata)?;
        let sent = copy(&mut file, &mut object, &self.meter)?;
        let after = file.metadata().map_err(unread)?;
        if sent != before.len() || !tree::is_unchanged(&before, &after) {
            return Err(changed(&self.root.join(name)));
        }
        Ok((object.commit()?, sent))
    }

    fn read(&self, file: &mut File) -> io::Result<Result<String, StepError>> {
        let (mut state, mut buffer) = (Sha256::new(), vec![0; 256 * 1024]);
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => state.update(&buffer[..count]),
            }
            if let Err(interrupted) = self.meter.advance(0) {
                return Ok(Err(interrupted));
            }
        }
        file.seek(SeekFrom::Start(0))?;
        Ok(Ok(hex(&state.finalize())))
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
