//! Measures how many events a second the journal makes durable here: `cargo run --release --example journal_speed`,
//! with a directory on the disk to be measured as its argument.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lifeboat_engine::clock::SystemClock;
use lifeboat_engine::journal::{Header, Journal, Reader};
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::model::{RunId, StepId};
use lifeboat_engine::plan::Plan;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    for (producers, each) in [(1, 3_000), (16, 1_000), (64, 500)] {
        let dir = tempfile::tempdir_in(&parent)?;
        let begin = Instant::now();
        runtime.block_on(write(dir.path(), producers, each))?;
        let seconds = begin.elapsed().as_secs_f64();
        let events = producers * each;
        let begin = Instant::now();
        let head = Reader::open(dir.path())?.verify()?;
        println!(
            "{producers:3} producers: {:7.0} durable events/s; verified {} events in {:.0} ms",
            f64::from(events) / seconds,
            head.seq,
            begin.elapsed().as_secs_f64() * 1e3
        );
    }
    Ok(())
}

async fn write(dir: &Path, producers: u32, each: u32) -> Result<(), Box<dyn Error>> {
    let journal = Arc::new(Journal::create(dir, header()?, Arc::new(SystemClock))?);
    let step = StepId::new("base")?;
    let tasks: Vec<_> = (0..producers)
        .map(|producer| {
            let (journal, step) = (Arc::clone(&journal), step.clone());
            tokio::spawn(async move {
                for attempt in 0..each {
                    let with = json!({ "producer": producer, "padding": "x".repeat(200) });
                    let event = EventKind::AttemptStarted { step: step.clone(), attempt, with };
                    journal.append(vec![event]).await?;
                }
                Ok::<_, lifeboat_engine::journal::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn header() -> Result<Header, serde_json::Error> {
    let plan: Plan = serde_json::from_value(json!({
        "format": 1, "project": "speed", "project_dir": "/", "runbook": "speed", "title": "Speed", "owner": null,
        "environment": "sandbox", "protected": false, "mode": "drill", "commit": null,
        "objective": { "rto": null, "rpo": null }, "milestones": {}, "roles": {}, "inputs": {}, "vars": {},
        "resources": {}, "secrets": {}, "auto_approvals": false, "steps": [], "groups": [], "sources": {}
    }))?;
    Ok(Header { run: RunId::generate(), engine: env!("CARGO_PKG_VERSION").to_owned(), created_ms: 0, plan })
}
