use std::collections::HashMap;

use aws_sdk_s3::operation::copy_object::builders::CopyObjectFluentBuilder;
use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption, StorageClass, Tag};
use futures_util::{StreamExt, TryStreamExt, stream};
use lifeboat_engine::step::StepError;

use super::bucket::Bucket;
use super::fault::{Doing, Fault};
use super::runtime::wait;

/// What an object carries besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(in crate::store) content_type: Option<String>,
    pub(in crate::store) content_encoding: Option<String>,
    pub(in crate::store) content_disposition: Option<String>,
    pub(in crate::store) content_language: Option<String>,
    pub(in crate::store) cache_control: Option<String>,
    pub(in crate::store) metadata: HashMap<String, String>,
    kept: Kept,
}

/// What a server does not carry over by itself from one object to its copy: the copy gets the defaults of its bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kept {
    expires: Option<DateTime>,
    website_redirect: Option<String>,
    class: Option<StorageClass>,
    encryption: Option<ServerSideEncryption>,
    /// The key of the server's key store that encrypts it.
    kms_key: Option<String>,
    bucket_key: Option<bool>,
}

/// What one request copies at most.
const WHOLE: u64 = 5 << 30;
/// Parts of a larger object; they grow where there would be too many.
const PART: u64 = 1 << 30;
const MOST_PARTS: u64 = 10_000;
/// Copies within the server cost this machine nothing but the waiting.
const PARTS_AT_ONCE: usize = 8;

/// Returns the first and the last byte of each part that an object of this size is copied in.
fn parts_of(size: u64) -> Vec<(u64, u64)> {
    let part = PART.max(size.div_ceil(MOST_PARTS));
    let count = size.div_ceil(part);
    (0..count).map(|number| (number * part, size.min((number + 1) * part) - 1)).collect()
}

impl Attributes {
    /// Returns those of an object that has others than a new one by nothing but its own metadata.
    pub(super) fn with(metadata: HashMap<String, String>) -> Self {
        Self { metadata, ..Self::default() }
    }

    /// Lets the server encrypt as the environment says, where the object does not say itself.
    pub(super) fn encrypted_for(mut self, bucket: &Bucket) -> Self {
        let (encryption, kms_key) = bucket.wanted_encryption();
        if encryption.is_some() && self.kept.encryption.is_none() {
            (self.kept.encryption, self.kept.kms_key) = (encryption, kms_key);
        }
        self
    }

    fn of(head: HeadObjectOutput) -> Self {
        let expires = head.expires_string.as_deref();
        let kept = Kept {
            expires: expires.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok()),
            website_redirect: head.website_redirect_location,
            class: head.storage_class,
            encryption: head.server_side_encryption,
            kms_key: head.ssekms_key_id,
            bucket_key: head.bucket_key_enabled,
        };
        Self {
            content_type: head.content_type,
            content_encoding: head.content_encoding,
            content_disposition: head.content_disposition,
            content_language: head.content_language,
            cache_control: head.cache_control,
            metadata: head.metadata.unwrap_or_default(),
            kept,
        }
    }

    pub(super) fn on_put(&self, request: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        request
            .set_content_type(self.content_type.clone())
            .set_content_encoding(self.content_encoding.clone())
            .set_content_disposition(self.content_disposition.clone())
            .set_content_language(self.content_language.clone())
            .set_cache_control(self.cache_control.clone())
            .set_metadata((!self.metadata.is_empty()).then(|| self.metadata.clone()))
            .set_server_side_encryption(self.kept.encryption.clone())
            .set_ssekms_key_id(self.kept.kms_key.clone())
    }

    pub(super) fn on_parts(
        &self,
        request: CreateMultipartUploadFluentBuilder,
    ) -> CreateMultipartUploadFluentBuilder {
        request
            .set_content_type(self.content_type.clone())
            .set_content_encoding(self.content_encoding.clone())
            .set_content_disposition(self.content_disposition.clone())
            .set_content_language(self.content_language.clone())
            .set_cache_control(self.cache_control.clone())
            .set_metadata((!self.metadata.is_empty()).then(|| self.metadata.clone()))
            .set_expires(self.kept.expires)
            .set_website_redirect_location(self.kept.website_redirect.clone())
            .set_storage_class(self.kept.class.clone())
            .set_server_side_encryption(self.kept.encryption.clone())
            .set_ssekms_key_id(self.kept.kms_key.clone())
            .set_bucket_key_enabled(self.kept.bucket_key)
    }

    /// A copy in one request takes all else from its source.
    fn on_copy(&self, request: CopyObjectFluentBuilder) -> CopyObjectFluentBuilder {
        request
            .set_website_redirect_location(self.kept.website_redirect.clone())
            .set_storage_class(self.kept.class.clone())
            .set_server_side_encryption(self.kept.encryption.clone())
            .set_ssekms_key_id(self.kept.kms_key.clone())
            .set_bucket_key_enabled(self.kept.bucket_key)
    }
}

/// One version that is copied, by its name in its bucket.
#[derive(Clone, Debug)]
pub(in crate::store) struct Version {
    pub(in crate::store) key: String,
    pub(in crate::store) id: String,
    pub(in crate::store) size: u64,
}

impl Version {
    /// As the header wants it: encoded, so that a name may hold anything.
    fn source(&self, bucket: &str) -> String {
        format!("{bucket}/{}?versionId={}", encoded(&self.key), encoded(&self.id))
    }
}

impl Bucket {
    /// Copies a version of `from` to a name of this bucket, with all that it carries, within the server.
    pub(in crate::store) fn copy_version(
        &self,
        from: &Bucket,
        version: &Version,
        to: &str,
    ) -> Result<(), StepError> {
        let source = version.source(from.name());
        let (bucket, from, version) = (self.clone(), from.clone(), version.clone());
        let key = to.to_owned();
        let name = format!("`{}`", to.strip_prefix(self.prefix()).unwrap_or(to).escape_debug());
        wait(async move {
            let attributes = from.attributes_of(&version).await?.encrypted_for(&bucket);
            match version.size <= WHOLE {
                true => bucket.copy_whole(&attributes, (&source, &key)).await,
                false => {
                    let tags = from.tags_of(&version).await?;
                    bucket.copy_parts((&attributes, tags), version.size, (&source, &key)).await
                }
            }
        })?
        .map_err(|fault| self.explain(Doing::Writing, name, &fault))
    }

    async fn attributes_of(&self, version: &Version) -> Result<Attributes, Fault> {
        let head = self.client().head_object().bucket(self.name()).key(&version.key).version_id(&version.id);
        head.send().await.map(Attributes::of).map_err(|error| match Fault::of(&error) {
            fault if fault.status == Some(404) => Fault::odd("the version is no longer there"),
            fault => fault,
        })
    }

    /// Returns the tags of a version as a request takes them; an upload in parts does not bring them along.
    async fn tags_of(&self, version: &Version) -> Result<Option<String>, Fault> {
        let request = self.client().get_object_tagging().bucket(self.name()).key(&version.key);
        match request.version_id(&version.id).send().await.map_err(|error| Fault::of(&error)) {
            Ok(answer) => Ok(tagging(&answer.tag_set)),
            Err(fault) if fault.is_unknown() => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn copy_whole(&self, attributes: &Attributes, (source, key): (&str, &str)) -> Result<(), Fault> {
        let request = self.client().copy_object().bucket(self.name()).key(key).copy_source(source);
        attributes.on_copy(request).send().await.map(drop).map_err(|error| Fault::of(&error))
    }

    async fn copy_parts(
        &self,
        (attributes, tags): (&Attributes, Option<String>),
        size: u64,
        (source, key): (&str, &str),
    ) -> Result<(), Fault> {
        let begun = self.client().create_multipart_upload().bucket(self.name()).key(key).set_tagging(tags);
        let begun = attributes.on_parts(begun).send().await.map_err(|error| Fault::of(&error))?;
        let id = begun.upload_id.ok_or_else(|| Fault::odd("the answer has no upload id"))?;
        let copied = self.copy_each_part(size, &id, (source, key)).await;
        if copied.is_err() {
            let abort = self.client().abort_multipart_upload().bucket(self.name()).key(key).upload_id(&id);
            abort.send().await.ok();
        }
        copied
    }

    async fn copy_each_part(&self, size: u64, id: &str, (source, key): (&str, &str)) -> Result<(), Fault> {
        let copies = (1..).zip(parts_of(size)).map(|(number, (first, last))| {
            let request = self.client().upload_part_copy().bucket(self.name()).key(key).upload_id(id);
            let request = request.part_number(number).copy_source(source);
            let request = request.copy_source_range(format!("bytes={first}-{last}"));
            async move {
                let answer = request.send().await.map_err(|error| Fault::of(&error))?;
                let etag = answer.copy_part_result.and_then(|part| part.e_tag);
                Ok::<_, Fault>(CompletedPart::builder().part_number(number).set_e_tag(etag).build())
            }
        });
        let parts = stream::iter(copies).buffered(PARTS_AT_ONCE).try_collect().await?;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self.client().complete_multipart_upload().bucket(self.name()).key(key);
        let request = request.upload_id(id).multipart_upload(parts);
        request.send().await.map(drop).map_err(|error| Fault::of(&error))
    }
}

/// Writes tags as the query of an address.
fn tagging(tags: &[Tag]) -> Option<String> {
    let pairs = tags.iter().map(|tag| format!("{}={}", in_query(tag.key()), in_query(tag.value())));
    let text = pairs.collect::<Vec<_>>().join("&");
    (!text.is_empty()).then_some(text)
}

fn in_query(text: &str) -> String {
    encoded(text).replace('/', "%2F")
}

/// Encodes all but unreserved characters and `/`.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(byte.into())
            }
            other => {
                use std::fmt::Write as _;
                write!(out, "%{other:02X}").expect("text takes all that is written");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_a_copy_is_encoded() {
        let version = Version { key: "a b/ä?x+y".to_owned(), id: "null".to_owned(), size: 0 };
        assert_eq!(version.source("b"), "b/a%20b/%C3%A4%3Fx%2By?versionId=null");
    }

    #[test]
    fn parts_cover_an_object_whatever_its_size() {
        const TIB: u64 = 1 << 40;
        for size in [WHOLE + 1, 5 * PART, 7 * PART + 3, 5 * TIB, 10 * TIB, 48 * TIB] {
            let parts = parts_of(size);
            assert!(parts.len() as u64 <= MOST_PARTS, "{size}: {} parts", parts.len());
            assert_eq!(parts.first().map(|part| part.0), Some(0));
            assert_eq!(parts.last().map(|part| part.1), Some(size - 1));
            assert!(parts.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0), "{size}: a gap");
            let largest = parts.iter().map(|(first, last)| last - first + 1).max();
            assert!(largest <= Some(WHOLE), "{size}: a part is too large for one request");
        }
        assert_eq!(parts_of(WHOLE + 1).len(), 6);
        assert!(parts_of(0).is_empty());
    }

    #[test]
    fn tags_are_written_as_a_query() {
        let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build().expect("a tag");
        assert_eq!(tagging(&[]), None);
        assert_eq!(
            tagging(&[tag("a b", "x&y=z"), tag("c", "d/e")]).as_deref(),
            Some("a%20b=x%26y%3Dz&c=d%2Fe")
        );
    }
}
