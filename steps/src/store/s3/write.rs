use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use sha2::{Digest as _, Sha256};

use super::bucket::Bucket;
use super::copy::Attributes;
use super::fault::{Doing, Fault};
use super::runtime::{Pending, pause, start, wait};
use crate::store::backend::{Put, taken};
use crate::store::failure;
use crate::store::key::Key;
use crate::store::named::{Existing, SHA256};
use crate::store::transfer::{Meter, digest_of};

/// Below this one request does it.
const WHOLE: usize = 2 * PART;
/// The size of the first parts, which are all alike: some servers demand it.
const PART: usize = 8 << 20;
/// How many parts are sent at once while they have that size. Servers take their time for each.
const AT_ONCE: usize = 6;
/// Parts grow by their first size every so many, so that 10,000 of them reach 460 GB.
const GROW_EVERY: i32 = 1000;
const MOST_PARTS: i32 = 10_000;
/// How often a write is tried anew that the server calls in conflict with another one.
const CONFLICT_TRIES: u32 = 5;

/// An object on its way. Dropped before it is committed, what was sent is thrown away.
#[derive(Debug)]
pub(in crate::store) struct Upload {
    bucket: Bucket,
    key: Key,
    existing: Existing,
    attributes: Attributes,
    buffer: Vec<u8>,
    digest: Sha256,
    size: u64,
    parts: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    id: String,
    number: i32,
    sending: VecDeque<Pending<Result<CompletedPart, Fault>>>,
    sent: Vec<CompletedPart>,
}

impl Bucket {
    pub(in crate::store) fn create(&self, key: &Key) -> Upload {
        self.upload(key, Existing::Keep, Attributes::default())
    }

    /// Begins an object with metadata of its own.
    pub(in crate::store) fn upload_with(
        &self,
        key: &Key,
        existing: Existing,
        metadata: HashMap<String, String>,
    ) -> Upload {
        self.upload(key, existing, Attributes::with(metadata))
    }

    pub(super) fn upload(&self, key: &Key, existing: Existing, attributes: Attributes) -> Upload {
        Upload {
            bucket: self.clone(),
            key: key.clone(),
            existing,
            attributes: attributes.encrypted_for(self),
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
        // Servers that ignore conditions are told apart from those that know them by nobody; looking first leaves
        // them a small gap instead of none.
        if self.existing == Existing::Keep
            && !self.bucket.is_s3()
            && self.bucket.metadata(&self.key)?.is_some()
        {
            self.abort();
            return self.compare();
        }
        let result = match self.parts.is_some() {
            true => self.complete()?,
            false => self.put_whole()?,
        };
        match result {
            Ok(()) => Ok(Put::Written),
            Err(fault) if fault.is_taken() && self.existing == Existing::Keep => {
                self.abort();
                self.compare()
            }
            Err(fault) => Err(self.explain(&fault)),
        }
    }

    fn put_whole(&mut self) -> Result<Result<(), Fault>, StepError> {
        let (bucket, key) = (self.bucket.clone(), self.bucket.full(&self.key));
        let content = Bytes::from(std::mem::take(&mut self.buffer));
        if let Err(fault) = self.check_announced() {
            return Ok(Err(fault));
        }
        // All of it is known before it is sent, so that it can say what it is.
        self.attributes.metadata.insert(SHA256.to_owned(), hex(&self.digest.clone().finalize()));
        let (attributes, mut only_new) = (self.attributes.clone(), self.existing == Existing::Keep);
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
        self.settle(0)?;
        if let Err(fault) = self.check_announced() {
            return Ok(Err(fault));
        }
        let Some(parts) = &self.parts else { return Ok(Ok(())) };
        let (bucket, key) = (self.bucket.clone(), self.bucket.full(&self.key));
        let (id, sent) = (parts.id.clone(), parts.sent.clone());
        let mut only_new = self.existing == Existing::Keep;
        let outcome = wait(async move {
            let parts = CompletedMultipartUpload::builder().set_parts(Some(sent)).build();
            loop {
                let request = bucket.client().complete_multipart_upload().bucket(bucket.name()).key(&key);
                let request = request.upload_id(&id).multipart_upload(parts.clone());
                let request = request.set_if_none_match(only_new.then(|| "*".to_owned()));
                let Err(error) = request.send().await else { return Ok(()) };
                match Fault::of(&error) {
                    fault if fault.is_unknown() && only_new => only_new = false,
                    fault => return Err(fault),
                }
            }
        })?;
        if outcome.is_ok() {
            self.parts = None;
        }
        Ok(outcome)
    }

    /// Compares with the checksum that was announced before the content was read.
    fn check_announced(&self) -> Result<(), Fault> {
        let announced = self.attributes.metadata.get(SHA256);
        match announced.is_none_or(|announced| *announced == hex(&self.digest.clone().finalize())) {
            true => Ok(()),
            false => Err(Fault::broken("its source changed while it was read")),
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

    /// Sends the next part, and waits before if too many are on their way.
    fn send_part(&mut self, content: Bytes) -> Result<(), StepError> {
        if self.parts.is_none() {
            let id = self.begin_parts()?;
            self.parts = Some(Parts { id, number: 0, sending: VecDeque::new(), sent: Vec::new() });
        }
        // Together they take the same memory when they have grown.
        self.settle((AT_ONCE * PART / self.part_size()).max(2) - 1)?;
        let (bucket, key) = (self.bucket.clone(), self.bucket.full(&self.key));
        let Some(parts) = &mut self.parts else { return Ok(()) };
        parts.number += 1;
        let (id, number) = (parts.id.clone(), parts.number);
        parts.sending.push_back(start(async move {
            let request = bucket.client().upload_part().bucket(bucket.name()).key(&key).upload_id(id);
            let request = request.part_number(number).body(ByteStream::from(content));
            let answer = request.send().await.map_err(|error| Fault::of(&error))?;
            Ok(CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag).build())
        })?);
        Ok(())
    }

    fn begin_parts(&self) -> Result<String, StepError> {
        let request = self.bucket.client().create_multipart_upload();
        let request = request.bucket(self.bucket.name()).key(self.bucket.full(&self.key));
        let request = self.attributes.on_parts(request);
        let answer = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?;
        let answer = answer.map_err(|fault| self.explain(&fault))?;
        answer.upload_id.ok_or_else(|| self.explain(&Fault::odd("the answer has no upload id")))
    }

    /// Waits until no more than `left` parts are on their way.
    fn settle(&mut self, left: usize) -> Result<(), StepError> {
        loop {
            let Some(parts) = &mut self.parts else { return Ok(()) };
            if parts.sending.len() <= left {
                return Ok(());
            }
            let Some(pending) = parts.sending.pop_front() else { return Ok(()) };
            match pending.wait()? {
                Ok(part) => parts.sent.push(part),
                Err(fault) => return Err(self.explain(&fault)),
            }
        }
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
        let ours = hex(&std::mem::take(&mut self.digest).finalize());
        if found.sha256 == ours { Ok(Put::Identical) } else { Err(taken(&self.key)) }
    }

    /// Throws away what was sent in parts. Where that fails, the bucket's lifecycle removes it.
    fn abort(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        // A part that arrives after the end of its upload would stay.
        parts.sending.into_iter().for_each(|pending| drop(pending.wait()));
        let request = self.bucket.client().abort_multipart_upload().bucket(self.bucket.name());
        let request = request.key(self.bucket.full(&self.key)).upload_id(parts.id);
        let key = self.key.clone();
        drop(wait(async move {
            if let Err(error) = request.send().await {
                tracing::warn!("what was sent of `{key}` cannot be removed: {:?}", Fault::of(&error));
            }
        }));
    }

    fn explain(&self, fault: &Fault) -> StepError {
        self.bucket.explain(Doing::Writing, format_args!("`{}`", self.key), fault)
    }

    fn part_size(&self) -> usize {
        let number = self.parts.as_ref().map_or(0, |parts| parts.number.min(MOST_PARTS));
        PART * usize::try_from(1 + number / GROW_EVERY).unwrap_or(1)
    }

    /// How much is gathered before anything is sent.
    fn most(&self) -> usize {
        if self.parts.is_none() { WHOLE } else { self.part_size() }
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = self.most();
        let count = bytes.len().min(most - self.buffer.len());
        self.digest.update(&bytes[..count]);
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
