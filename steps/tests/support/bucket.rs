//! Buckets on a real server that speaks the protocol of S3 ([`super::moto`]).

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use jiff::Timestamp;
use lifeboat_engine::resource;
use lifeboat_steps::store::{Address, Store};

pub use super::moto::endpoint;

/// Whether a bucket keeps versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    Kept,
    None,
}

/// A bucket of its own.
#[derive(Debug)]
pub struct Bucket {
    pub name: String,
}

impl Bucket {
    pub fn make(versions: Versions) -> Self {
        let name = format!("lb-{}", uuid::Uuid::now_v7().simple());
        let bucket = Self { name };
        let request = bucket.client().create_bucket().bucket(&bucket.name).send();
        wait(async move { request.await.map(drop).expect("a bucket") });
        if versions == Versions::Kept {
            bucket.set_versioning(BucketVersioningStatus::Enabled);
        }
        bucket
    }

    pub fn set_versioning(&self, status: BucketVersioningStatus) {
        let configuration = VersioningConfiguration::builder().status(status).build();
        let request = self.client().put_bucket_versioning().bucket(&self.name);
        let request = request.versioning_configuration(configuration).send();
        wait(async move { request.await.map(drop).expect("takes it") });
    }

    pub fn client(&self) -> Client {
        static CLIENT: OnceLock<Client> = OnceLock::new();
        let make = || {
            let config = aws_sdk_s3::Config::builder()
                .behavior_version(BehaviorVersion::v2026_01_12())
                .credentials_provider(Credentials::new("testing", "testing", None, None, "test"))
                .region(Region::from_static("us-east-1"))
                .endpoint_url(endpoint())
                .force_path_style(true);
            Client::from_conf(config.build())
        };
        CLIENT.get_or_init(make).clone()
    }

    /// Describes a store below a prefix, with credentials in variables that `Rig` is given values for.
    pub fn resource(&self, prefix: &str) -> resource::Store {
        self.resource_at(prefix, endpoint())
    }

    pub fn resource_at(&self, prefix: &str, endpoint: &str) -> resource::Store {
        resource::Store {
            url: format!("s3://{}/{prefix}", self.name),
            endpoint: Some(endpoint.to_owned()),
            ..resource::Store::default()
        }
    }

    pub fn address_at(&self, prefix: &str, endpoint: &str) -> Address {
        Address::new(self.resource_at(prefix, endpoint)).with_keys("testing".into(), "testing".into(), None)
    }

    pub fn store(&self, prefix: &str) -> Store {
        Store::open(&self.address_at(prefix, endpoint())).expect("the bucket answers")
    }

    pub fn put(&self, key: &str, content: impl Into<Vec<u8>>) {
        let request = self.client().put_object().bucket(&self.name).key(key);
        let request = request.body(ByteStream::from(content.into())).send();
        wait(async move { request.await.map(drop).expect("takes the object") });
    }

    /// Writes many small objects at once.
    pub fn put_many(&self, keys: impl IntoIterator<Item = String>) {
        const AT_ONCE: usize = 32;
        let keys: Vec<_> = keys.into_iter().collect();
        for keys in keys.chunks(AT_ONCE) {
            let mut requests = tokio::task::JoinSet::new();
            for key in keys {
                let request = self.client().put_object().bucket(&self.name).key(key);
                requests.spawn_on(request.body(ByteStream::from_static(b"x")).send(), runtime().handle());
            }
            wait(async move {
                while let Some(answer) = requests.join_next().await {
                    answer.expect("does not panic").expect("takes the object");
                }
            });
        }
    }

    pub fn delete(&self, key: &str) {
        let request = self.client().delete_object().bucket(&self.name).key(key).send();
        wait(async move { request.await.map(drop).expect("deletes the object") });
    }

    /// Returns the content of an object, `None` if there is none.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let request = self.client().get_object().bucket(&self.name).key(key).send();
        wait(async move {
            match request.await {
                Ok(answer) => Some(answer.body.collect().await.expect("comes whole").to_vec()),
                Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_key()) => None,
                Err(error) => panic!("{error:?}"),
            }
        })
    }

    /// Counts versions and deletion marks of one key.
    pub fn versions(&self, key: &str) -> (usize, usize) {
        let request = self.client().list_object_versions().bucket(&self.name).prefix(key).send();
        let answer = wait(async move { request.await.expect("lists") });
        (answer.versions().len(), answer.delete_markers().len())
    }

    pub fn keys(&self) -> Vec<String> {
        let request = self.client().list_objects_v2().bucket(&self.name).send();
        let answer = wait(async move { request.await.expect("lists") });
        answer.contents().iter().filter_map(|object| object.key().map(ToOwned::to_owned)).collect()
    }

    /// Begins an upload in parts that nobody goes on with.
    pub fn begin_upload(&self, key: &str) {
        let request = self.client().create_multipart_upload().bucket(&self.name).key(key).send();
        wait(async move { request.await.map(drop).expect("begins") });
    }

    /// Throws away all uploads in parts, as a lifecycle rule does.
    pub fn abort_uploads(&self) {
        let list = self.client().list_multipart_uploads().bucket(&self.name).send();
        let (client, bucket) = (self.client(), self.name.clone());
        wait(async move {
            for upload in list.await.expect("lists").uploads() {
                let abort = client.abort_multipart_upload().bucket(&bucket);
                let abort = abort.set_key(upload.key.clone()).set_upload_id(upload.upload_id.clone());
                abort.send().await.expect("throws it away");
            }
        });
    }

    /// Counts uploads in parts that were begun and neither completed nor thrown away.
    pub fn unfinished_uploads(&self) -> usize {
        let request = self.client().list_multipart_uploads().bucket(&self.name).send();
        wait(async move { request.await.expect("lists").uploads().len() })
    }
}

/// Bytes that differ everywhere, so that no part can stand for another one.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

/// Waits for the next second, because the times of versions have no finer resolution. Returns its beginning.
pub fn next_second() -> Timestamp {
    let now = Timestamp::now().as_second();
    while Timestamp::now().as_second() <= now {
        std::thread::sleep(Duration::from_millis(5));
    }
    Timestamp::from_second(now + 1).expect("a time")
}

/// Does something on a runtime of its own: tests call this from within theirs.
pub fn wait<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime().spawn(async move { drop(sender.send(work.await)) });
    receiver.recv().expect("the work did not panic")
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().expect("a runtime"))
}
