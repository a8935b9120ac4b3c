//! Puts back the files that a server had before it was restored.

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Created, CreatedKind};
use lifeboat_engine::step::{StepContext, StepError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::{Client, server};
use super::config::{Persistence, required};
use super::place::{aside_of, failed, remove_staged, sync_dir, thing_id};
use super::{codes, start};

/// Under this key the step records, before it stops the server, what it is about to replace.
const REPLACING: &str = "replacing";

/// What is replaced, and how the server stood.
#[derive(Serialize, Deserialize)]
struct Replacing {
    dump: PathBuf,
    append_dir: PathBuf,
    was_running: bool,
}

/// Records what is about to be replaced. How the server stood is what the first attempt found.
pub(super) async fn note(
    ctx: &StepContext,
    persistence: &Persistence,
    was_running: bool,
) -> Result<(), StepError> {
    let was_running = replacing(ctx).map_or(was_running, |noted| noted.was_running);
    let noted = Replacing {
        dump: persistence.dir.join(&persistence.dump),
        append_dir: persistence.dir.join(&persistence.append_dir),
        was_running,
    };
    ctx.record(REPLACING, serde_json::to_value(&noted).expect("paths are text")).await
}

fn replacing(ctx: &StepContext) -> Option<Replacing> {
    serde_json::from_value(ctx.recorded(REPLACING)?.clone()).ok()
}

/// Stops the server, puts its earlier files back and starts it again if it ran before. What was restored is kept.
pub(super) async fn undo(
    ctx: &StepContext,
    name: &str,
    load_timeout: std::time::Duration,
) -> Result<Done, StepError> {
    remove_staged(ctx, name).await?;
    // Without the record nothing was touched.
    let Some(replacing) = replacing(ctx) else { return Ok(Done::default()) };
    let (_, manager) = required(ctx, server(ctx, name)?, name)?;
    let client = Client::connect_if_up(ctx, name).await?;
    start::stop(ctx, (name, manager), client).await?;
    let mut done = Done::default();
    for (part, path) in [("dump", &replacing.dump), ("append-only-files", &replacing.append_dir)] {
        if let Some(kept) = put_back(ctx, (name, part), path).await? {
            done.facts.insert(format!("restored {part}"), kept.display().to_string());
        }
    }
    if let Some(dir) = replacing.dump.parent() {
        sync_dir(dir)?;
    }
    if replacing.was_running {
        start::start(ctx, (name, manager), load_timeout).await?;
        done.facts.insert("server".into(), "runs again with its earlier data".into());
    }
    Ok(done)
}

/// Puts one file or directory back. Whatever moment a crash picks, the second time goes on where the first one was.
async fn put_back(
    ctx: &StepContext,
    (name, part): (&str, &str),
    path: &Path,
) -> Result<Option<PathBuf>, StepError> {
    let run = ctx.info.run.short();
    let (aside, kept) = (aside_of(path, "pre", &run), aside_of(path, "undone", &run));
    let cleared = format!("cleared:{part}");
    let is_true = |key: &str| ctx.recorded(key) == Some(&Value::Bool(true));
    if !is_true(&cleared) {
        if path.exists() && is_true(super::place::ASIDE) {
            let kind = match path.is_dir() {
                true => CreatedKind::Directory { path: kept.clone() },
                false => CreatedKind::File { path: kept.clone() },
            };
            let what = format!("restored {part} of the Redis server {name}");
            ctx.created(Created { id: thing_id(name, &format!("{part}-placed")), what, kind }).await?;
            fs::rename(path, &kept).map_err(|error| failed("renamed", path, &error))?;
        }
        ctx.record(&cleared, true).await?;
    }
    if aside.exists() {
        if path.exists() {
            let message = format!("{} stands in the way of {}", path.display(), aside.display());
            return Err(StepError::permanent(codes::LB1311, message)
                .help("this run has not put it there: compare the two and keep the right one"));
        }
        fs::rename(&aside, path).map_err(|error| failed("moved back", &aside, &error))?;
    }
    // Also where an attempt that was cut off has moved it.
    let back = format!("`{}` is back in its place", path.display());
    ctx.removed(&thing_id(name, part), &back).await?;
    Ok(kept.exists().then_some(kept))
}
