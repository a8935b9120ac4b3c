use std::collections::VecDeque;
use std::io::{self, Read};
use std::time::Duration;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use lifeboat_engine::step::StepError;

use super::bucket::{Bucket, reading};
use super::fault::{Doing, Fault};
use super::runtime::{Pending, pause, start, wait};
use crate::store::backend::Metadata;
use crate::store::failure;
use crate::store::key::Key;

/// What one request fetches.
const PART: u64 = 8 << 20;
/// How many parts are fetched at once: with [`PART`] the memory that one reader takes.
const AT_ONCE: usize = 4;
/// How long a stream may stand still.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// How often a stream that breaks without having brought anything is begun again.
const TRIES: u32 = 6;

/// One version of an object, open for reading.
#[derive(Debug)]
pub(in crate::store) struct ObjectStream {
    object: Object,
    /// Where the next part begins that is not asked for yet.
    next: u64,
    parts: VecDeque<Pending<Result<Vec<u8>, Fault>>>,
    current: Vec<u8>,
    read: usize,
    /// Said again whenever more is read: what follows would not follow.
    failed: Option<StepError>,
}

/// What is read: the same content in every request.
#[derive(Clone, Debug)]
struct Object {
    bucket: Bucket,
    key: String,
    version: Option<String>,
    etag: Option<String>,
    /// Then the tag is not the MD5 of the content.
    encrypted: bool,
    size: u64,
}

impl Bucket {
    pub(in crate::store) fn metadata(&self, key: &Key) -> Result<Option<Metadata>, StepError> {
        let request = self.client().head_object().bucket(self.name()).key(self.full(key));
        let request = request.customize().config_override(reading());
        match wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })? {
            Ok(head) => {
                let modified = head.last_modified().and_then(|at| at.to_millis().ok());
                Ok(Some(Metadata {
                    size: head.content_length().unwrap_or_default().unsigned_abs(),
                    modified: modified.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()),
                }))
            }
            // An answer without a body does not tell a missing object from a missing bucket.
            Err(fault) if fault.status == Some(404) => self.check_reachable().map(|()| None),
            Err(fault) => Err(self.explain(Doing::Reading, format_args!("`{key}`"), &fault)),
        }
    }

    pub(in crate::store) fn find(&self, key: &Key) -> Result<Option<ObjectStream>, StepError> {
        self.find_full(self.full(key), None)
    }

    pub(in crate::store) fn find_beside(
        &self,
        key: &Key,
        witness: &Key,
    ) -> Result<Option<ObjectStream>, StepError> {
        match self.find(key)? {
            Some(found) => Ok(Some(found)),
            None => match self.metadata(witness)? {
                Some(_) => Ok(None),
                None => {
                    let fault = Fault::odd(
                        "it was there before, so the answer that others are absent proves nothing",
                    );
                    Err(self.explain(Doing::Reading, format_args!("`{witness}`"), &fault))
                }
            },
        }
    }

    /// Opens one version of an object by its name in the bucket, or the current one.
    pub(in crate::store) fn find_full(
        &self,
        key: String,
        version: Option<String>,
    ) -> Result<Option<ObjectStream>, StepError> {
        let object = Object { bucket: self.clone(), key, version, etag: None, encrypted: false, size: 0 };
        let opening = object.clone();
        match wait(async move { opening.open().await })? {
            Ok((object, body)) => ObjectStream::begin(object, body).map(Some),
            Err(fault) if fault.is_absent() => Ok(None),
            Err(fault) => Err(object.explain(&fault)),
        }
    }
}

impl Object {
    fn explain(&self, fault: &Fault) -> StepError {
        let name = self.key.strip_prefix(self.bucket.prefix()).unwrap_or(&self.key);
        self.bucket.explain(Doing::Reading, format_args!("`{}`", name.escape_debug()), fault)
    }

    /// Asks for the first part, and learns from the answer what the object is.
    async fn open(mut self) -> Result<(Self, Option<ByteStream>), Fault> {
        match self.get(0, PART).await {
            Ok(answer) => {
                self.size = total(&answer).ok_or_else(|| Fault::odd("the answer has no size"))?;
                self.etag = answer.e_tag.clone();
                let sse = answer.server_side_encryption.as_ref().map(|sse| sse.as_str());
                self.encrypted =
                    answer.sse_customer_algorithm.is_some() || sse.is_some_and(|sse| sse != "AES256");
                self.version = self.version.or_else(|| answer.version_id.clone());
                Ok((self, Some(answer.body)))
            }
            // There is no first byte of an empty object.
            Err(fault) if fault.status == Some(416) => Ok((self, None)),
            Err(fault) => Err(fault),
        }
    }

    async fn get(&self, from: u64, to: u64) -> Result<GetObjectOutput, Fault> {
        let request = self.bucket.client().get_object().bucket(self.bucket.name()).key(&self.key);
        let request = request.range(format!("bytes={from}-{}", to.saturating_sub(1)));
        let request = request.set_version_id(self.version.clone()).set_if_match(self.etag.clone());
        request.customize().config_override(reading()).send().await.map_err(|error| match Fault::of(&error) {
            fault if fault.is_taken() => Fault::odd("it was replaced while it was read"),
            fault => fault,
        })
    }

    /// Fetches a part, going on where a stream broke.
    async fn fetch(self, (from, to): (u64, u64), first: Option<ByteStream>) -> Result<Vec<u8>, Fault> {
        let length = usize::try_from(to - from).unwrap_or_default();
        let (mut bytes, mut body, mut fruitless) = (Vec::with_capacity(length), first, 0);
        loop {
            let before = bytes.len();
            let outcome = match body.take() {
                Some(body) => collect(body, &mut bytes, length).await,
                None => collect(self.get(from + before as u64, to).await?.body, &mut bytes, length).await,
            };
            if bytes.len() == length {
                return Ok(bytes);
            }
            let fault = outcome.err().unwrap_or_else(|| Fault::broken("the connection ended early"));
            fruitless = if bytes.len() > before { 0 } else { fruitless + 1 };
            if fruitless == TRIES {
                return Err(fault);
            }
            pause(fruitless).await;
        }
    }
}

/// Takes what comes, up to the length that was asked for.
async fn collect(mut body: ByteStream, bytes: &mut Vec<u8>, length: usize) -> Result<(), Fault> {
    while bytes.len() < length {
        let next = tokio::time::timeout(SILENCE_LIMIT, body.next()).await;
        let next =
            next.map_err(|_| Fault::broken(format_args!("nothing came for {} s", SILENCE_LIMIT.as_secs())))?;
        match next {
            Some(Ok(chunk)) => {
                let wanted = chunk.len().min(length - bytes.len());
                bytes.extend_from_slice(&chunk[..wanted]);
            }
            Some(Err(error)) => return Err(Fault::broken(error)),
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Returns the size of the whole object: what follows the `/` of `bytes 0-99/1234`.
fn total(answer: &GetObjectOutput) -> Option<u64> {
    match answer.content_range() {
        Some(range) => range.rsplit_once('/')?.1.parse().ok(),
        None => answer.content_length().map(i64::unsigned_abs),
    }
}

impl ObjectStream {
    fn begin(object: Object, body: Option<ByteStream>) -> Result<Self, StepError> {
        let next = object.size.min(PART);
        let mut stream =
            Self { object, next: 0, parts: VecDeque::new(), current: Vec::new(), read: 0, failed: None };
        if next > 0 {
            stream.parts.push_back(start(stream.object.clone().fetch((0, next), body))?);
        }
        stream.next = next;
        Ok(stream)
    }

    pub(in crate::store) fn size(&self) -> u64 {
        self.object.size
    }

    /// Returns the MD5 of the content where the tag of the object is that: it was sent whole, and is not encrypted with
    /// a key of its own.
    pub(in crate::store) fn md5(&self) -> Option<String> {
        let tag = self.object.etag.as_deref()?.trim_matches('"');
        let is_md5 = tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_md5 && !self.object.encrypted).then(|| tag.to_ascii_lowercase())
    }

    /// Gets the next part and asks for more. Returns false at the end.
    fn advance(&mut self) -> Result<bool, StepError> {
        while self.parts.len() < AT_ONCE && self.next < self.object.size {
            let to = self.object.size.min(self.next + PART);
            self.parts.push_back(start(self.object.clone().fetch((self.next, to), None))?);
            self.next = to;
        }
        let Some(part) = self.parts.pop_front() else { return Ok(false) };
        self.current = part.wait()?.map_err(|fault| self.object.explain(&fault))?;
        self.read = 0;
        Ok(true)
    }
}

impl Read for ObjectStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.current.len() {
            if let Some(failed) = &self.failed {
                return Err(failure::as_io(failed.clone()));
            }
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => self.failed = Some(error),
            }
        }
        let count = buffer.len().min(self.current.len() - self.read);
        buffer[..count].copy_from_slice(&self.current[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}
