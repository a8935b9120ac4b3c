//! Uploads in parts that nobody has completed.

use aws_sdk_s3::types::MultipartUpload;
use lifeboat_engine::step::StepError;

use super::bucket::{Bucket, reading};
use super::fault::{Doing, Fault};
use super::listing::moment;
use super::runtime::wait;
use crate::store::key::Key;
use crate::store::policy::{Told, Unfinished};
use crate::store::uploads::Uploads;

/// What one request lists.
const PAGE: i32 = 1000;

impl Bucket {
    /// Throws away all uploads that are noted.
    pub(in crate::store) fn clear(&self, uploads: &Uploads) {
        for (id, begun) in uploads.left() {
            if let Some(name) = begun.object.strip_prefix(self.name()).and_then(|name| name.strip_prefix('/'))
            {
                self.throw_away(name, &id, uploads);
            }
        }
    }

    /// Throws away all uploads below a key that is ours alone. Where that is not permitted, they stay and are no object.
    pub(super) fn clear_below(&self, key: &Key) {
        let prefix = format!("{}/", self.full(key));
        let found = match self.unfinished_below(&prefix) {
            Ok(Ok((found, _))) => found,
            Ok(Err(fault)) => {
                tracing::debug!("uploads below `{key}` cannot be listed: {fault:?}");
                return;
            }
            Err(_) => return,
        };
        for upload in found {
            if let (Some(name), Some(id)) = (upload.key(), upload.upload_id()) {
                self.abort_upload(name, id);
            }
        }
    }

    /// Counts uploads below the prefix of the store.
    pub(in crate::store) fn unfinished(&self) -> Result<Told<Unfinished>, StepError> {
        match self.unfinished_below(self.prefix())? {
            Ok((found, is_all)) => {
                let begun = found.iter().filter_map(|upload| upload.initiated().and_then(moment));
                Ok(Told::Yes(Unfinished { count: found.len(), is_all, oldest: begun.min() }))
            }
            Err(fault) => {
                let error = self.explain(Doing::Reading, "the list of unfinished uploads", &fault);
                if fault.passes() { Err(error) } else { Ok(Told::Unknown(error.message)) }
            }
        }
    }

    /// Lists some, and says whether they are all.
    fn unfinished_below(
        &self,
        prefix: &str,
    ) -> Result<Result<(Vec<MultipartUpload>, bool), Fault>, StepError> {
        let request = self.client().list_multipart_uploads().bucket(self.name()).prefix(prefix);
        let request = request.max_uploads(PAGE).customize().config_override(reading());
        let answer = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?;
        Ok(answer.map(|page| {
            let is_all = page.is_truncated() != Some(true);
            (page.uploads.unwrap_or_default(), is_all)
        }))
    }
}
