//! A bucket that refuses, fails, hangs, drips and hangs up, while a backup is chosen, unpacked and recovered.

use std::future::Future;
use std::time::Duration;

use lifeboat_engine::code::Code;
use lifeboat_engine::model::outcome::FailureKind::{self, Permanent, Transient};
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::store::codes as store_codes;

use super::scene::{BURST, Case, assert_says};
use crate::support::bucket::endpoint;
use crate::support::proxy::{Fault, Proxy};

/// Requests for a list of keys.
const LIST: &str = "list-type=2";
/// Requests for the archive with the data directory.
const BASE: &str = "/base.tar";

const REFUSED: Fault = Fault::Status(403, "AccessDenied");
const BROKEN: Fault = Fault::Status(500, "InternalError");
const BUSY: Fault = Fault::Status(503, "SlowDown");

/// A case whose bucket is behind a proxy.
struct Behind {
    case: Case,
    proxy: Proxy,
}

impl Behind {
    fn new() -> Self {
        let proxy = Proxy::before(endpoint());
        Self { case: Case::in_bucket(&proxy.endpoint), proxy }
    }

    /// Names a segment behind both backups.
    fn segment(&self) -> String {
        let segments = self.case.original.segments();
        format!("{}.zst", segments[segments.len() - 3])
    }

    async fn choose(&self) -> Result<(), StepError> {
        self.case.choose(Some(self.case.original.moments[&3])).await.map(drop)
    }

    async fn restore(&self) -> Result<(), StepError> {
        self.case.restore().await.map(drop)
    }

    async fn recover(&self) -> Result<(), StepError> {
        self.case.recover(Some(self.case.original.moments[BURST.end()])).await.map(drop)
    }

    /// With the bucket mended, everything comes right.
    async fn comes_right(&self) {
        self.choose().await.expect("chooses");
        if !self.case.data_dir().join("PG_VERSION").exists() {
            self.restore().await.expect("restores");
        }
        self.recover().await.expect("recovers");
        self.case.assert_rows(*BURST.end());
    }
}

fn is_hit(proxy: &Proxy) {
    assert!(!proxy.hit().is_empty(), "nothing met the fault among {:#?}", proxy.seen());
}

/// Does one thing while the bucket has a fault that stays, and again when it is gone.
async fn fails(
    behind: &Behind,
    (on, fault): (&str, Fault),
    step: impl AsyncFn(&Behind) -> Result<(), StepError>,
    (code, kind, words): (Code, FailureKind, &[&str]),
) {
    behind.proxy.on(on, fault);
    let error = step(behind).await.expect_err("the bucket does not do what it is asked");
    is_hit(&behind.proxy);
    assert_says(&error, (code, kind), words);
    behind.case.assert_no_server();
    behind.proxy.heal();
}

/// Runs cases at the same time: they wait for most of it.
async fn all(cases: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>) {
    let mut running = tokio::task::JoinSet::new();
    cases.into_iter().for_each(|case| drop(running.spawn(case)));
    running.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_no_absence() {
    let behind = Behind::new();
    let refused = (store_codes::LB1113, Permanent);
    fails(&behind, (LIST, REFUSED), Behind::choose, (refused.0, refused.1, &["s3:ListBucket"])).await;
    fails(&behind, (BASE, REFUSED), Behind::restore, (refused.0, refused.1, &["base.tar", "s3:GetObject"]))
        .await;
    behind.case.assert_untouched();
    behind.restore().await.expect("restores");
    let segment = behind.segment();
    let words: &[&str] = &[&segment[..24], "LB1113"];
    fails(&behind, (&segment, REFUSED), Behind::recover, (codes::LB1266, Transient, words)).await;
    behind.comes_right().await;
}

/// Without the right to list, S3 answers "forbidden" for what is not there: nobody may take that for the end of the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_behind_the_last_segment_is_not_the_end_of_the_log() {
    let behind = Behind::new();
    behind.restore().await.expect("restores");
    let last = behind.case.original.segments().pop().expect("a segment");
    let number = u64::from_str_radix(&last[16..], 16).expect("hexadecimal") + 1;
    let next = format!("{}{number:08X}", &last[..16]);
    behind.proxy.on(&next, REFUSED);
    let error = behind.case.recover(None).await.expect_err("nobody knows what follows");
    is_hit(&behind.proxy);
    assert_says(&error, (codes::LB1266, Transient), &[&next, "LB1113"]);
    behind.proxy.heal();
    behind.case.recover(None).await.expect("recovers");
    behind.case.assert_rows(super::scene::LAST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_for_good_is_named_and_everything_goes_on_when_it_is_back() {
    let listed = async {
        let behind = Behind::new();
        let words: &[&str] = &[&behind.proxy.endpoint];
        fails(&behind, (LIST, BROKEN), Behind::choose, (store_codes::LB1103, Transient, words)).await;
    };
    let unpacked = async {
        let behind = Behind::new();
        fails(&behind, (BASE, BROKEN), Behind::restore, (store_codes::LB1103, Transient, &["base.tar"]))
            .await;
        behind.case.assert_untouched();
        behind.comes_right().await;
    };
    let cut = async {
        let behind = Behind::new();
        let expected = (store_codes::LB1103, Transient, &["base.tar"][..]);
        fails(&behind, (BASE, Fault::ResetAfterHead), Behind::restore, expected).await;
        behind.case.assert_untouched();
        behind.comes_right().await;
    };
    let replayed = async {
        let behind = Behind::new();
        behind.restore().await.expect("restores");
        let segment = behind.segment();
        let expected = (codes::LB1266, Transient, &[&segment[..24], "LB1103"][..]);
        fails(&behind, (&segment, BROKEN), Behind::recover, expected).await;
        behind.comes_right().await;
    };
    let hung_up = async {
        let behind = Behind::new();
        behind.restore().await.expect("restores");
        let segment = behind.segment();
        let expected = (codes::LB1266, Transient, &[&segment[..24], "LB1103"][..]);
        fails(&behind, (&segment, Fault::ResetAfterHead), Behind::recover, expected).await;
        behind.comes_right().await;
    };
    all(vec![Box::pin(listed), Box::pin(unpacked), Box::pin(cut), Box::pin(replayed), Box::pin(hung_up)])
        .await;
}

/// What passes is waited for, without a word of failure.
#[tokio::test(flavor = "multi_thread")]
async fn faults_that_pass_are_waited_for() {
    let behind = Behind::new();
    let segment = behind.segment();
    for on in [LIST, BASE, &segment] {
        for fault in [BROKEN, BUSY, Fault::ResetAfterHead] {
            // Each fault finds requests of its own: the rules are used up in their order.
            behind.proxy.times(1, on, fault);
        }
    }
    behind.comes_right().await;
    for on in [LIST, BASE, &segment] {
        assert!(behind.proxy.hit().iter().any(|line| line.contains(on)), "{on}");
    }
}

/// Slow is not broken: as long as something comes, it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_drips_is_taken_as_it_comes() {
    let behind = Behind::new();
    let segment = behind.segment();
    behind.proxy.on(BASE, Fault::Drip(64 * 1024, Duration::from_millis(20)));
    behind.proxy.on(&segment, Fault::Drip(8, Duration::from_millis(2)));
    behind.comes_right().await;
    is_hit(&behind.proxy);
    let reported = behind.case.rig.reported();
    assert!(reported.progress.iter().any(|it| it.note.contains("unpacking")), "progress is told");
}

/// A request that is never answered is given up after a while and made again.
#[tokio::test(flavor = "multi_thread")]
async fn silence_that_passes_is_waited_for() {
    let silent = |on: &'static str| async move {
        let behind = Behind::new();
        let segment = behind.segment();
        behind.proxy.times(1, if on.is_empty() { &segment } else { on }, Fault::Silence);
        behind.comes_right().await;
        is_hit(&behind.proxy);
    };
    all(vec![Box::pin(silent(LIST)), Box::pin(silent("GET *base.tar")), Box::pin(silent(""))]).await;
}

/// Whoever wants to stop does not have to wait for a bucket that says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn silence_holds_nobody_who_wants_to_stop() {
    let behind = Behind::new();
    behind.restore().await.expect("restores");
    let segment = behind.segment();
    behind.proxy.on(&segment, Fault::Silence);
    let stop = async {
        while behind.proxy.hit().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        behind.case.rig.cancel.cancel();
    };
    let (recovered, ()) = tokio::join!(behind.recover(), stop);
    // The bucket still says nothing: nobody has waited for its answer.
    assert_eq!(recovered.expect_err("was interrupted").code, codes::LB1243);
    behind.case.assert_no_server();
}

/// It takes two minutes until somebody is told, and names the segment.
#[tokio::test(flavor = "multi_thread")]
async fn silence_that_stays_is_told() {
    if std::env::var_os("LIFEBOAT_TEST_LONG").is_none() {
        return eprintln!("SKIPPED: takes three minutes; LIFEBOAT_TEST_LONG=1 runs it");
    }
    let behind = Behind::new();
    behind.restore().await.expect("restores");
    let segment = behind.segment();
    let words: &[&str] = &[&segment[..24], "LB1103"];
    fails(&behind, (&segment, Fault::Silence), Behind::recover, (codes::LB1266, Transient, words)).await;
    behind.comes_right().await;
}
