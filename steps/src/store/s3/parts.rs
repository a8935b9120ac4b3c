//! An object that is sent in parts, in this attempt or partly in an earlier one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use lifeboat_engine::step::StepError;

use super::bucket::Bucket;
use super::copy::Attributes;
use super::fault::Fault;
use super::runtime::{Pending, start, wait};
use crate::store::failure;
use crate::store::named::{Announced, Existing, Intent};
use crate::store::sums::{PART, part_size};
use crate::store::uploads::{Acknowledged, Begun, Uploads};

/// How many parts are sent at once while they have their first size. Servers take their time for each.
const AT_ONCE: usize = 6;

/// Parts on their way.
#[derive(Debug)]
pub(super) struct Parts {
    bucket: Bucket,
    /// The object's name in the bucket.
    name: String,
    id: String,
    count: usize,
    sending: VecDeque<Pending<Result<CompletedPart, Fault>>>,
    sent: Vec<CompletedPart>,
    uploads: Option<Arc<Uploads>>,
    /// What an earlier attempt has sent.
    there: BTreeMap<i32, Acknowledged>,
}

impl Parts {
    /// Goes on with the upload of an earlier attempt that had the same content, or begins one. What had another content is
    /// thrown away.
    pub(super) fn begin(
        bucket: &Bucket,
        name: String,
        attributes: &Attributes,
        intent: &Intent,
    ) -> Result<Result<Self, Fault>, StepError> {
        let uploads = intent.uploads.clone();
        let mut parts = Self {
            bucket: bucket.clone(),
            name,
            id: String::new(),
            count: 0,
            sending: VecDeque::new(),
            sent: Vec::new(),
            uploads: uploads.clone(),
            there: BTreeMap::new(),
        };
        let Some(uploads) = uploads else { return parts.begin_anew(attributes) };
        let object = bucket.object(&parts.name);
        let wanted = match &intent.announced {
            Announced::Sums(sums) => Some(&sums.digest.sha256),
            Announced::Nothing | Announced::Sha256(_) => None,
        };
        for (id, begun) in uploads.to(&object) {
            let is_same = wanted.is_some() && begun.sha256.as_ref() == wanted && parts.id.is_empty();
            match if is_same { bucket.there(&parts.name, &id, &begun)? } else { Ok(None) } {
                Ok(Some(there)) => (parts.id, parts.there) = (id, there),
                Ok(None) => bucket.throw_away(&parts.name, &id, &uploads),
                Err(fault) => return Ok(Err(fault)),
            }
        }
        if !parts.id.is_empty() {
            return Ok(Ok(parts));
        }
        let parts = match parts.begin_anew(attributes)? {
            Ok(parts) => parts,
            Err(fault) => return Ok(Err(fault)),
        };
        if let Err(error) = uploads.began(&parts.id, &object, intent.announced.sha256()) {
            parts.abort();
            return Err(failure::write("the note of an upload", &error));
        }
        Ok(Ok(parts))
    }

    fn begin_anew(mut self, attributes: &Attributes) -> Result<Result<Self, Fault>, StepError> {
        let request = self.bucket.client().create_multipart_upload();
        let request = attributes.on_parts(request.bucket(self.bucket.name()).key(&self.name));
        let answer = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?;
        Ok(answer.and_then(|answer| {
            self.id = answer.upload_id.ok_or_else(|| Fault::odd("the answer has no upload id"))?;
            Ok(self)
        }))
    }

    /// How many parts there are so far.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Sends the next part, and waits before if too many are on their way.
    pub(super) fn send(&mut self, content: Bytes, crc: Option<u64>) -> Result<Result<(), Fault>, StepError> {
        // Together they take the same memory when they have grown.
        let most = (AT_ONCE * PART / part_size(self.count)).max(2);
        self.count += 1;
        let number = i32::try_from(self.count).unwrap_or(i32::MAX);
        let size = content.len() as u64;
        let is_there = |part: &&Acknowledged| Some(part.crc) == crc && part.size == size;
        if let Some(part) = self.there.get(&number).filter(is_there) {
            let sent = CompletedPart::builder().part_number(number).e_tag(&part.etag);
            self.sent.push(sent.build());
            if let Some(uploads) = &self.uploads {
                uploads.keep(size);
            }
            return Ok(Ok(()));
        }
        if let Err(fault) = self.settle(most - 1)? {
            return Ok(Err(fault));
        }
        let request = self.bucket.client().upload_part().bucket(self.bucket.name()).key(&self.name);
        let request = request.upload_id(&self.id).part_number(number).body(ByteStream::from(content));
        let (uploads, id) = (self.uploads.clone(), self.id.clone());
        self.sending.push_back(start(async move {
            let answer = request.send().await.map_err(|error| Fault::of(&error))?;
            if let (Some(uploads), Some(crc), Some(etag)) = (uploads, crc, answer.e_tag.clone()) {
                // Without the note this part is sent again.
                uploads.sent(&id, number, Acknowledged { etag, size, crc }).ok();
            }
            Ok(CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag).build())
        })?);
        Ok(Ok(()))
    }

    /// Waits until no more than `left` parts are on their way.
    fn settle(&mut self, left: usize) -> Result<Result<(), Fault>, StepError> {
        while self.sending.len() > left {
            let Some(pending) = self.sending.pop_front() else { break };
            match pending.wait()? {
                Ok(part) => self.sent.push(part),
                Err(fault) => return Ok(Err(fault)),
            }
        }
        Ok(Ok(()))
    }

    /// Waits for all parts and puts them together.
    pub(super) fn complete(&mut self, existing: Existing) -> Result<Result<(), Fault>, StepError> {
        if let Err(fault) = self.settle(0)? {
            return Ok(Err(fault));
        }
        self.sent.sort_by_key(CompletedPart::part_number);
        let (bucket, name, id) = (self.bucket.clone(), self.name.clone(), self.id.clone());
        let (sent, mut only_new) = (self.sent.clone(), existing == Existing::Keep);
        let outcome = wait(async move {
            let parts = CompletedMultipartUpload::builder().set_parts(Some(sent)).build();
            loop {
                let request = bucket.client().complete_multipart_upload().bucket(bucket.name()).key(&name);
                let request = request.upload_id(&id).multipart_upload(parts.clone());
                let request = request.set_if_none_match(only_new.then(|| "*".to_owned()));
                let Err(error) = request.send().await else { return Ok(()) };
                match Fault::of(&error) {
                    fault if fault.is_unknown() && only_new => only_new = false,
                    fault => return Err(fault),
                }
            }
        })?;
        match (&outcome, &self.uploads) {
            (Ok(()), Some(uploads)) => drop(uploads.ended(&self.id)),
            // A later attempt that trusted them would fail the same way.
            (Err(fault), Some(uploads)) if !self.there.is_empty() && fault.is_of_parts() => {
                self.bucket.throw_away(&self.name, &self.id, uploads);
                return Ok(Err(Fault::broken(
                    "the server no longer has what an earlier attempt has sent; all of it is sent again",
                )));
            }
            _ => {}
        }
        Ok(outcome)
    }

    /// Leaves what was sent for a later attempt.
    pub(super) fn leave(self) {
        // What is still on its way is noted when it has arrived.
        self.sending.into_iter().for_each(|pending| drop(pending.wait()));
    }

    /// Throws away what was sent. Where that fails, the bucket's lifecycle removes it.
    pub(super) fn abort(self) {
        // A part that arrives after the end of its upload would stay.
        self.sending.into_iter().for_each(|pending| drop(pending.wait()));
        match &self.uploads {
            Some(uploads) => self.bucket.throw_away(&self.name, &self.id, uploads),
            None => drop(self.bucket.abort_upload(&self.name, &self.id)),
        }
    }
}

impl Bucket {
    /// Returns the name of an object among those of all buckets.
    fn object(&self, name: &str) -> String {
        format!("{}/{name}", self.name())
    }

    /// Returns the parts of an upload that the server has as they were noted; `None` if it can or will not say.
    fn there(
        &self,
        name: &str,
        id: &str,
        begun: &Begun,
    ) -> Result<Result<Option<BTreeMap<i32, Acknowledged>>, Fault>, StepError> {
        let (mut there, mut after) = (BTreeMap::new(), None::<String>);
        loop {
            let request = self.client().list_parts().bucket(self.name()).key(name).upload_id(id);
            let request = request.set_part_number_marker(after);
            let page = match wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })? {
                Ok(page) => page,
                Err(fault) if fault.passes() => return Ok(Err(fault)),
                Err(fault) => {
                    tracing::debug!("an upload of `{name}` cannot be gone on with: {fault:?}");
                    return Ok(Ok(None));
                }
            };
            for part in page.parts() {
                let Some(noted) = part.part_number().and_then(|number| begun.parts.get_key_value(&number))
                else {
                    continue;
                };
                let size = part.size().unwrap_or_default().unsigned_abs();
                if part.e_tag() == Some(&noted.1.etag) && size == noted.1.size {
                    there.insert(*noted.0, noted.1.clone());
                }
            }
            match page.next_part_number_marker() {
                Some(next) if page.is_truncated() == Some(true) => after = Some(next.to_owned()),
                _ => return Ok(Ok(Some(there))),
            }
        }
    }

    /// Throws away an upload, and notes it if that is so.
    pub(super) fn throw_away(&self, name: &str, id: &str, uploads: &Uploads) {
        if self.abort_upload(name, id) {
            uploads.ended(id).ok();
        }
    }

    /// Throws away an upload. Returns false if it may still be there.
    pub(super) fn abort_upload(&self, name: &str, id: &str) -> bool {
        let request = self.client().abort_multipart_upload().bucket(self.name()).key(name).upload_id(id);
        let answer = wait(async move { request.send().await.map(drop).map_err(|error| Fault::of(&error)) });
        match answer {
            Ok(Ok(())) => true,
            Ok(Err(fault)) if fault.is_of_parts() => true,
            Ok(Err(fault)) => {
                tracing::warn!("what was sent of `{name}` cannot be removed: {fault:?}");
                false
            }
            Err(_) => false,
        }
    }
}
