//! Where requests run: the calls of a store block, those of the client do not.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use lifeboat_engine::step::StepError;
use tokio::runtime::{Builder, Runtime};

use crate::store::codes;

/// Requests wait far more than they compute.
const THREADS: usize = 2;

/// One runtime for all buckets, apart from the one that runs steps, so that blocking calls may come from anywhere.
fn runtime() -> Result<&'static Runtime, StepError> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        Builder::new_multi_thread().worker_threads(THREADS).thread_name("s3").enable_all().build()
    });
    made.as_ref().map_err(|error| {
        StepError::transient(
            codes::LB1103,
            format!("no thread can be started for requests to a bucket: {error}"),
        )
        .help("look at the limits of this user: `ulimit -u`")
    })
}

/// The result of work that runs meanwhile.
#[derive(Debug)]
pub(super) struct Pending<T>(Receiver<T>);

impl<T> Pending<T> {
    /// Waits for it.
    pub(super) fn wait(self) -> Result<T, StepError> {
        // The sender goes without a word only if the work panicked.
        self.0.recv().map_err(|_| StepError::uncertain(codes::LB1109, "a request to a bucket was cut off"))
    }
}

/// Starts work whose result is waited for later.
pub(super) fn start<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<Pending<T>, StepError> {
    let (sender, receiver) = sync_channel(1);
    runtime()?.spawn(async move {
        // Nobody may be waiting any more.
        sender.send(work.await).ok();
    });
    Ok(Pending(receiver))
}

/// Does work and waits for its result.
pub(super) fn wait<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, StepError> {
    start(work)?.wait()
}

/// Pauses before repetition `number` (from 0): a random part of 200 ms, 400 ms, … up to 10 s.
pub(super) async fn pause(number: u32) {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(10);
    let limit = FIRST.saturating_mul(2u32.saturating_pow(number)).min(LONGEST);
    let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
    // Seeded afresh by the standard library each time; nothing here needs to be unpredictable.
    let random = RandomState::new().build_hasher().finish() % millis;
    tokio::time::sleep(Duration::from_millis(random)).await;
}
