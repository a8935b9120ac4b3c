//! `member-app traffic`: people at work, who write down everything they do.

mod client;
mod heartbeat;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::database;
use crate::error::AnyError;
use crate::ledger::{Ledger, Line};
use crate::serve::wait_for_signal;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the system answers.
    #[arg(long)]
    base_url: String,
    /// Its database, for the heartbeat row that is written every second.
    #[arg(long, env, hide_env_values = true)]
    database_url: String,
    /// The file to write everything down in; goes on at its end.
    #[arg(long)]
    ledger: PathBuf,
    /// Actions a second.
    #[arg(long, default_value_t = 5.0, value_parser = rate)]
    rate: f64,
    /// Who logs in.
    #[arg(long, default_value = "desk")]
    user: String,
    #[arg(long, env = "MEMBER_APP_PASSWORD", hide_env_values = true)]
    password: String,
    /// The size of an uploaded file, in bytes.
    #[arg(long, default_value_t = 20_000)]
    upload_bytes: usize,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.01..=1000.0).contains(&rate) { Ok(rate) } else { Err("from 0.01 to 1000 a second".to_owned()) }
}

/// Works until SIGTERM or SIGINT. Trouble with the system is reported and work goes on; trouble with the ledger ends it.
pub(crate) async fn run(args: Args) -> Result<(), AnyError> {
    let config = database::parse(&args.database_url)?;
    let ledger = Ledger::open(&args.ledger)
        .map_err(|error| format!("cannot write the ledger {}: {error}", args.ledger.display()))?;
    let ledger = Arc::new(ledger);
    ledger.write(&baseline(&config).await?)?;
    let client = client::Client::new(&args.base_url, args.user, args.password)?;
    let mut worker = work::Worker::new(client, Arc::clone(&ledger), args.upload_bytes)?;
    println!("traffic on {} at {} actions a second", args.base_url, args.rate);
    tokio::select! {
        result = heartbeat::beat(config, ledger) => result?,
        result = work(&mut worker, args.rate) => result?,
        result = wait_for_signal() => result?,
    }
    println!("{}", worker.summary());
    Ok(())
}

async fn work(worker: &mut work::Worker, rate: f64) -> Result<(), AnyError> {
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
    // After a pause of the system, people do not work faster.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Teller::default();
    loop {
        ticks.tick().await;
        let trouble = worker.act().await?;
        told.tell("traffic", trouble);
    }
}

/// Prints what changes: trouble that goes on is reported once.
#[derive(Debug, Default)]
struct Teller(Option<String>);

impl Teller {
    fn tell(&mut self, who: &str, trouble: Option<String>) {
        if self.0 != trouble {
            eprintln!("{who}: {}", trouble.as_deref().unwrap_or("works again"));
            self.0 = trouble;
        }
    }
}

async fn baseline(config: &tokio_postgres::Config) -> Result<Line, AnyError> {
    let question = "
        SELECT count(*), coalesce(sum(amount_cents), 0)::bigint FROM payments WHERE reference LIKE 'seed-%'";
    let client = database::connect(config).await?;
    let row =
        client.query_one(question, &[]).await.map_err(|error| crate::error::database_message(&error))?;
    Ok(Line::Baseline { at: jiff::Timestamp::now(), payments: row.get(0), amount_cents: row.get(1) })
}
