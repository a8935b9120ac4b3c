use std::io::{self, Write};

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use sha2::{Digest as _, Sha256};

use super::bucket::Bucket;
use super::copy::Attributes;
use super::fault::{Doing, Fault};
use super::parts::Parts;
use super::runtime::{pause, wait};
use crate::store::backend::{Put, taken};
use crate::store::crc;
use crate::store::failure;
use crate::store::key::Key;
use crate::store::named::{Announced, Existing, Intent, SHA256};
use crate::store::sums::{PART, part_size};
use crate::store::transfer::{Meter, digest_of};

/// Below this one request does it.
const WHOLE: usize = 2 * PART;
/// How often a write is tried anew that the server calls in conflict with another one.
const CONFLICT_TRIES: u32 = 5;

/// An object on its way. Dropped before it is committed, what was sent is thrown away.
#[derive(Debug)]
pub(in crate::store) struct Upload {
    bucket: Bucket,
    key: Key,
    intent: Intent,
    attributes: Attributes,
    buffer: Vec<u8>,
    /// Of what was sent in parts, where nothing is announced that is quicker to compare.
    digest: Sha256,
    size: u64,
    parts: Option<Parts>,
}

impl Bucket {
    pub(in crate::store) fn create(&self, key: &Key) -> Upload {
        self.upload(key, Intent::default())
    }

    pub(in crate::store) fn upload(&self, key: &Key, intent: Intent) -> Upload {
        let known = intent.announced.sha256().map(|known| (SHA256.to_owned(), known.to_owned()));
        Upload {
            bucket: self.clone(),
            key: key.clone(),
            intent,
            attributes: Attributes::with(known.into_iter().collect()).encrypted_for(self),
            buffer: Vec::new(),
            digest: Sha256::new(),
            size: 0,
            parts: None,
        }
    }
}

impl Upload {
    /// Makes the object visible under its name, if nothing else is.
    pub(in crate::store) fn commit(mut self) -> Result<Put, StepError> {
        let outcome = self.finish();
        if outcome.as_ref().is_err_and(|error| error.kind != FailureKind::Permanent) {
            self.leave();
        }
        outcome
    }

    /// Gives up for now: what a later attempt can go on with stays where it is.
    pub(in crate::store) fn leave(mut self) {
        if self.intent.uploads.is_some()
            && matches!(self.intent.announced, Announced::Sums(_))
            && let Some(parts) = self.parts.take()
        {
            parts.leave();
        }
    }

    fn finish(&mut self) -> Result<Put, StepError> {
        let keeps = self.intent.existing == Existing::Keep;
        // Servers that ignore conditions are told apart from those that know them by nobody; looking first leaves
        // them a small gap instead of none.
        if keeps && !self.bucket.is_s3() && self.bucket.metadata(&self.key)?.is_some() {
            self.abort();
            return self.compare();
        }
        let result = match self.parts.is_some() {
            true => self.complete()?,
            false => self.put_whole()?,
        };
        match result {
            Ok(()) => Ok(Put::Written),
            Err(fault) if fault.is_taken() && keeps => {
                self.abort();
                self.compare()
            }
            Err(fault) => Err(self.explain(&fault)),
        }
    }

    fn put_whole(&mut self) -> Result<Result<(), Fault>, StepError> {
        let (bucket, key) = (self.bucket.clone(), self.bucket.full(&self.key));
        let content = Bytes::from(std::mem::take(&mut self.buffer));
        self.digest.update(&content);
        // All of it is known before it is sent, so that it can say what it is.
        let sha256 = hex(&self.digest.clone().finalize());
        if self.intent.announced.sha256().is_some_and(|announced| announced != sha256) {
            return Ok(Err(changed()));
        }
        self.attributes.metadata.insert(SHA256.to_owned(), sha256);
        let (attributes, mut only_new) = (self.attributes.clone(), self.intent.existing == Existing::Keep);
        wait(async move {
            for number in 0.. {
                let request = bucket.client().put_object().bucket(bucket.name()).key(&key);
                let request = attributes.on_put(request).body(ByteStream::from(content.clone()));
                let request = request.set_if_none_match(only_new.then(|| "*".to_owned()));
                let Err(error) = request.send().await else { return Ok(()) };
                match Fault::of(&error) {
                    fault if fault.is_unknown() && only_new => only_new = false,
                    fault if fault.status == Some(409) && number < CONFLICT_TRIES => pause(number).await,
                    fault => return Err(fault),
                }
            }
            unreachable!("the loop is left by returning")
        })
    }

    /// Sends the rest and puts the parts together.
    fn complete(&mut self) -> Result<Result<(), Fault>, StepError> {
        if !self.buffer.is_empty() {
            self.send_buffer()?;
        }
        if !self.is_as_announced() {
            return Ok(Err(changed()));
        }
        let Some(parts) = &mut self.parts else { return Ok(Ok(())) };
        let outcome = parts.complete(self.intent.existing)?;
        if outcome.is_ok() {
            self.parts = None;
        }
        Ok(outcome)
    }

    /// Compares all that was sent in parts with what was announced before the content was read.
    fn is_as_announced(&self) -> bool {
        match &self.intent.announced {
            Announced::Nothing => true,
            Announced::Sha256(announced) => *announced == hex(&self.digest.clone().finalize()),
            // Each part was compared before it was sent.
            Announced::Sums(sums) => sums.digest.size == self.size,
        }
    }

    /// Sends what is in the buffer in parts of the size that is due.
    fn send_buffer(&mut self) -> Result<(), StepError> {
        let mut rest = Bytes::from(std::mem::take(&mut self.buffer));
        while !rest.is_empty() {
            let part = rest.split_to(self.part_size().min(rest.len()));
            self.send_part(part)?;
        }
        Ok(())
    }

    /// Sends the next part, unless an earlier attempt has.
    fn send_part(&mut self, content: Bytes) -> Result<(), StepError> {
        let mut parts = match self.parts.take() {
            Some(parts) => parts,
            None => self.begin_parts()?,
        };
        let number = parts.count();
        let outcome = match &self.intent.announced {
            Announced::Sums(sums) => {
                let crc = crc::of_part(&content);
                match sums.parts.get(number) {
                    Some(announced) if *announced == crc => parts.send(content, Some(crc)),
                    _ => Ok(Err(changed())),
                }
            }
            Announced::Nothing | Announced::Sha256(_) => {
                self.digest.update(&content);
                parts.send(content, None)
            }
        };
        self.parts = Some(parts);
        outcome?.map_err(|fault| self.explain(&fault))
    }

    fn begin_parts(&self) -> Result<Parts, StepError> {
        let name = self.bucket.full(&self.key);
        Parts::begin(&self.bucket, name, &self.attributes, &self.intent)
            .and_then(|begun| begun.map_err(|fault| self.explain(&fault)))
    }

    /// Compares with what has the name.
    fn compare(&mut self) -> Result<Put, StepError> {
        let existing = self.bucket.find(&self.key)?.ok_or_else(|| {
            self.explain(&Fault::broken("something of that name came and went while it was written"))
        })?;
        if existing.size() != self.size {
            return Err(taken(&self.key));
        }
        let found = digest_of(existing, &Meter::silent())?;
        if found.sha256 == self.sha256() { Ok(Put::Identical) } else { Err(taken(&self.key)) }
    }

    /// Returns the checksum of all that was written.
    fn sha256(&mut self) -> String {
        if let Announced::Sums(sums) = &self.intent.announced {
            return sums.digest.sha256.clone();
        }
        self.digest.update(std::mem::take(&mut self.buffer));
        hex(&self.digest.clone().finalize())
    }

    /// Throws away what was sent in parts. Where that fails, the bucket's lifecycle removes it.
    fn abort(&mut self) {
        if let Some(parts) = self.parts.take() {
            parts.abort();
        }
    }

    fn explain(&self, fault: &Fault) -> StepError {
        self.bucket.explain(Doing::Writing, format_args!("`{}`", self.key), fault)
    }

    fn part_size(&self) -> usize {
        part_size(self.parts.as_ref().map_or(0, Parts::count))
    }

    /// How much is gathered before anything is sent.
    fn most(&self) -> usize {
        if self.parts.is_none() { WHOLE } else { self.part_size() }
    }
}

fn changed() -> Fault {
    Fault::broken("its source changed while it was read")
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = self.most();
        let count = bytes.len().min(most - self.buffer.len());
        if self.buffer.len() + count > self.buffer.capacity() && self.parts.is_some() {
            // Growing step by step would copy it several times.
            self.buffer.reserve_exact(most - self.buffer.len());
        }
        self.buffer.extend_from_slice(&bytes[..count]);
        self.size += count as u64;
        if self.buffer.len() == most {
            self.send_buffer().map_err(failure::as_io)?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.abort();
    }
}
