use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::time::Duration;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, ChecksumType};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::bucket::{Bucket, reading};
use super::fault::{Doing, Fault};
use super::listing::moment;
use super::runtime::{Pending, pause, start, wait};
use crate::store::backend::Metadata;
use crate::store::crc::{Algorithm, Crc};
use crate::store::failure;
use crate::store::key::Key;
use crate::store::named::{Facts, Kept, Pin, SHA256};

/// What one request fetches.
const PART: u64 = 8 << 20;
/// How many parts are fetched ahead, by all readers together: with [`PART`] the memory that they take. Each has one
/// part on its way besides, whatever the others do.
static AHEAD: Semaphore = Semaphore::const_new(7);
/// How long a stream may stand still.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// How often a stream that breaks without having brought anything is begun again.
const TRIES: u32 = 6;

/// One version of an object, open for reading.
#[derive(Debug)]
pub(in crate::store) struct ObjectStream {
    object: Object,
    facts: Facts,
    /// Where the next part begins that is not asked for yet.
    next: u64,
    parts: VecDeque<Part>,
    current: Vec<u8>,
    read: usize,
    /// Said again whenever more is read: what follows would not follow.
    failed: Option<StepError>,
}

/// A part on its way, and the permission to fetch it ahead of others.
type Part = (Pending<Result<Vec<u8>, Fault>>, Option<SemaphorePermit<'static>>);

/// What is read: the same content in every request.
#[derive(Clone, Debug)]
struct Object {
    bucket: Bucket,
    key: String,
    pin: Pin,
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
        self.find_at(self.full(key), 0, &Pin::default())
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

    /// Opens an object by its name in the bucket, from a position: the content that the pin names, or the current one.
    pub(in crate::store) fn find_at(
        &self,
        key: String,
        from: u64,
        pin: &Pin,
    ) -> Result<Option<ObjectStream>, StepError> {
        let object = Object { bucket: self.clone(), key, pin: pin.clone(), size: 0 };
        let opening = object.clone();
        match wait(async move { opening.open(from).await })? {
            Ok(opened) => ObjectStream::begin(opened, from).map(Some),
            Err(fault) if fault.is_absent() => Ok(None),
            Err(fault) => Err(object.explain(&fault)),
        }
    }

    /// Returns the checksum that the server keeps of an object. Not part of [`Bucket::facts`]: of an object that is
    /// encrypted with a key it takes the right to decrypt, which who only writes need not have.
    pub(in crate::store) fn kept(&self, name: &str, pin: &Pin) -> Result<Option<Kept>, StepError> {
        let request = self.client().head_object().bucket(self.name()).key(format!("{}{name}", self.prefix()));
        let request = request.set_version_id(pin.version.clone()).set_if_match(pin.etag.clone());
        let request = request.checksum_mode(ChecksumMode::Enabled).customize().config_override(reading());
        match wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })? {
            Ok(head) => Ok(kept_of_head(&head)),
            Err(fault) if fault.passes() => {
                Err(self.explain(Doing::Reading, format_args!("`{}`", name.escape_debug()), &fault))
            }
            // Who reads the object finds out what is wrong with it.
            Err(_) => Ok(None),
        }
    }

    /// Returns what the server says of an object without its content.
    pub(in crate::store) fn facts(&self, name: &str, pin: &Pin) -> Result<Option<Facts>, StepError> {
        let request = self.client().head_object().bucket(self.name()).key(format!("{}{name}", self.prefix()));
        let request = request.set_version_id(pin.version.clone()).set_if_match(pin.etag.clone());
        match wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })? {
            Ok(head) => Ok(Some(facts_of_head(&head))),
            // An answer without a body does not tell a missing object from a missing bucket.
            Err(fault) if fault.status == Some(404) => self.check_reachable().map(|()| None),
            Err(fault) => {
                Err(self.explain(Doing::Reading, format_args!("`{}`", name.escape_debug()), &fault))
            }
        }
    }
}

/// Returns the strongest checksum of the whole object; one that is composed of those of its parts says nothing of that.
fn kept_of_head(head: &HeadObjectOutput) -> Option<Kept> {
    // Of an object that was sent in parts most are composed: those end with `-` and a number, which is no base64, and a
    // server that forgets the number does not say of the type that it is of the whole.
    let is_whole = match head.checksum_type() {
        Some(told) => *told == ChecksumType::FullObject,
        None => head.e_tag().is_some_and(|tag| !tag.contains('-')),
    };
    let bytes =
        |text: Option<&str>, length: usize| STANDARD.decode(text?).ok().filter(|bytes| bytes.len() == length);
    let crc = |algorithm: Algorithm, text: Option<&str>| {
        let bytes = bytes(text, algorithm.bytes())?;
        let value = bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        Some(Kept::Crc(Crc { algorithm, value }))
    };
    bytes(head.checksum_sha256().filter(|_| is_whole), 32)
        .map(|bytes| Kept::Sha256(hex(&bytes)))
        // This one is always of the whole.
        .or_else(|| crc(Algorithm::Crc64Nvme, head.checksum_crc64_nvme()))
        .or_else(|| crc(Algorithm::Crc32c, head.checksum_crc32_c().filter(|_| is_whole)))
        .or_else(|| crc(Algorithm::Crc32, head.checksum_crc32().filter(|_| is_whole)))
}

/// An object that answered, and what came with the answer.
struct Opened {
    object: Object,
    facts: Facts,
    /// The content of a small object, read to its end.
    whole: Option<Vec<u8>>,
    /// The beginning of a large one, which is still coming.
    body: Option<ByteStream>,
}

fn facts_of_head(head: &HeadObjectOutput) -> Facts {
    let sse = head.server_side_encryption().map(AsRef::as_ref);
    let encrypted = head.sse_customer_algorithm().is_some() || sse.is_some_and(|sse| sse != "AES256");
    Facts {
        size: head.content_length().unwrap_or_default().unsigned_abs(),
        modified: head.last_modified().and_then(moment),
        pin: Pin {
            version: head.version_id().map(ToOwned::to_owned),
            etag: head.e_tag().map(ToOwned::to_owned),
        },
        sha256: head.metadata().and_then(known_sha256),
        md5: head.e_tag().filter(|_| !encrypted).and_then(md5_in),
    }
}

fn facts_of(answer: &GetObjectOutput, size: u64) -> Facts {
    let sse = answer.server_side_encryption().map(AsRef::as_ref);
    let encrypted = answer.sse_customer_algorithm().is_some() || sse.is_some_and(|sse| sse != "AES256");
    Facts {
        size,
        modified: answer.last_modified().and_then(moment),
        pin: Pin {
            version: answer.version_id().map(ToOwned::to_owned),
            etag: answer.e_tag().map(ToOwned::to_owned),
        },
        sha256: answer.metadata().and_then(known_sha256),
        md5: answer.e_tag().filter(|_| !encrypted).and_then(md5_in),
    }
}

/// Returns the checksum that an object carries, if it is one.
fn known_sha256(metadata: &HashMap<String, String>) -> Option<String> {
    let known = metadata.get(SHA256)?;
    (known.len() == 64 && known.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| known.to_lowercase())
}

/// Returns the MD5 of the content where the tag of the object is that: it was sent whole, and is not encrypted with a key
/// of its own.
pub(crate) fn md5_in(etag: &str) -> Option<String> {
    let tag = etag.trim_matches('"');
    let is_md5 = tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_md5.then(|| tag.to_ascii_lowercase())
}

impl Object {
    fn explain(&self, fault: &Fault) -> StepError {
        let name = self.key.strip_prefix(self.bucket.prefix()).unwrap_or(&self.key);
        self.bucket.explain(Doing::Reading, format_args!("`{}`", name.escape_debug()), fault)
    }

    /// Asks for the first part, and learns from the answer what the object is.
    async fn open(mut self, from: u64) -> Result<Opened, Fault> {
        let answer = match self.get(from, from + PART).await {
            // There is no first byte of an empty object, and none after the last.
            Err(fault) if fault.status == Some(416) => return self.at_end(from).await,
            other => other?,
        };
        self.size = total(&answer).ok_or_else(|| Fault::odd("the answer has no size"))?;
        let facts = facts_of(&answer, self.size);
        self.pin.etag = self.pin.etag.or_else(|| facts.pin.etag.clone());
        self.pin.version = self.pin.version.or_else(|| facts.pin.version.clone());
        if self.size.saturating_sub(from) > PART {
            return Ok(Opened { object: self, facts, whole: None, body: Some(answer.body) });
        }
        let whole = self.clone().fetch((from, self.size), Some(answer.body)).await?;
        Ok(Opened { object: self, facts, whole: Some(whole), body: None })
    }

    /// Nothing is left to read: finds out whether the object is of that size.
    async fn at_end(mut self, from: u64) -> Result<Opened, Fault> {
        let request = self.bucket.client().head_object().bucket(self.bucket.name()).key(&self.key);
        let request = request.set_version_id(self.pin.version.clone()).set_if_match(self.pin.etag.clone());
        let facts = facts_of_head(&request.send().await.map_err(|error| Fault::of(&error))?);
        if facts.size != from {
            return Err(Fault::odd(format_args!(
                "the server has nothing from byte {from} of an object of {}",
                facts.size
            )));
        }
        self.size = facts.size;
        Ok(Opened { object: self, facts, whole: Some(Vec::new()), body: None })
    }

    /// Asks for bytes of the content that is pinned, and refuses others: a server or a proxy may know no ranges.
    async fn get(&self, from: u64, to: u64) -> Result<GetObjectOutput, Fault> {
        let request = self.bucket.client().get_object().bucket(self.bucket.name()).key(&self.key);
        let request = request.range(format!("bytes={from}-{}", to.saturating_sub(1)));
        let request = request.set_version_id(self.pin.version.clone()).set_if_match(self.pin.etag.clone());
        let request = request.customize().config_override(reading());
        let answer = request.send().await.map_err(|error| match Fault::of(&error) {
            fault if fault.is_taken() => Fault::odd("it was replaced while it was read"),
            fault => fault,
        })?;
        let begins = answer.content_range().map_or(Some(0), first_of);
        if begins != Some(from) {
            return Err(Fault::odd(format_args!(
                "asked for the bytes from {from}, the server answers with those from {}",
                begins.map_or_else(|| "nowhere".to_owned(), |begins| begins.to_string())
            )));
        }
        let is_other = |mine: Option<&str>, its: Option<&str>| mine.is_some() && its.is_some() && mine != its;
        if is_other(self.pin.etag.as_deref(), answer.e_tag())
            || (self.size > 0 && total(&answer) != Some(self.size))
        {
            return Err(Fault::odd("it was replaced while it was read"));
        }
        Ok(answer)
    }

    /// Fetches a part, going on where a stream broke.
    async fn fetch(self, (from, to): (u64, u64), first: Option<ByteStream>) -> Result<Vec<u8>, Fault> {
        let length = usize::try_from(to - from).unwrap_or_default();
        let (mut bytes, mut body, mut fruitless) = (Vec::with_capacity(length), first, 0);
        loop {
            let before = bytes.len();
            let outcome = match body.take() {
                Some(body) => collect(body, &mut bytes, length).await,
                None if length == 0 => Ok(()),
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

/// Returns where a range begins: what stands before the `-` of `bytes 0-99/1234`.
fn first_of(range: &str) -> Option<u64> {
    range.trim_start_matches("bytes").trim_start().split_once('-')?.0.parse().ok()
}

impl ObjectStream {
    fn begin(opened: Opened, from: u64) -> Result<Self, StepError> {
        let Opened { object, facts, whole, body } = opened;
        let (mut parts, mut next) = (VecDeque::new(), object.size);
        if body.is_some() {
            next = object.size.min(from + PART);
            parts.push_back((start(object.clone().fetch((from, next), body))?, None));
        }
        let current = whole.unwrap_or_default();
        Ok(Self { object, facts, next, parts, current, read: 0, failed: None })
    }

    pub(in crate::store) fn size(&self) -> u64 {
        self.object.size
    }

    pub(in crate::store) fn facts(&self) -> Facts {
        self.facts.clone()
    }

    /// Gets the next part and asks for more. Returns false at the end.
    fn advance(&mut self) -> Result<bool, StepError> {
        while self.next < self.object.size {
            let ahead = AHEAD.try_acquire().ok();
            if ahead.is_none() && !self.parts.is_empty() {
                break;
            }
            let to = self.object.size.min(self.next + PART);
            self.parts.push_back((start(self.object.clone().fetch((self.next, to), None))?, ahead));
            self.next = to;
        }
        let Some((part, _)) = self.parts.pop_front() else { return Ok(false) };
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
