//! Puts back what stood at the place of a restored data directory.

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Created, CreatedKind};
use lifeboat_engine::step::{StepContext, StepError};

use super::super::codes;
use super::super::pidfile::PidFile;
use super::super::restore_note::RestoreNote;
use super::target::{Found, Target};
use super::unpack::unwritable;
use crate::store::blocking;

/// Brings the earlier data directory back. What the step has restored is kept beside it if it is complete, because
/// somebody may have looked at it or written to it; half a restore is deleted.
///
/// Whatever moment a crash picks, what the journal says was made never names a directory with earlier files in it.
pub(super) async fn undo(ctx: &StepContext, target: &Target, inode: Option<u64>) -> Result<Done, StepError> {
    let kept = match target.look()? {
        Found::Own => {
            let own = target.clone();
            blocking(move || own.wipe_own()).await?;
            remove_empty(target)?;
            None
        }
        Found::Foreign(_) if target.is_restored(inode) => Some(set_aside(ctx, target).await?),
        Found::Foreign(names) if target.aside().is_some() => return Err(not_ours(target, &names)),
        // It stands where it stood before: nothing was moved, or it has been moved back.
        Found::Foreign(_) => return Ok(Done::default()),
        Found::Empty if target.aside().is_some() => {
            remove_empty(target)?;
            None
        }
        Found::Empty | Found::Nothing => None,
    };
    put_back(ctx, target, kept).await
}

fn remove_empty(target: &Target) -> Result<(), StepError> {
    fs::remove_dir(&target.data_dir).map_err(|error| unwritable(&target.data_dir, &error))
}

/// Renames the restored directory, recorded before it happens.
async fn set_aside(ctx: &StepContext, target: &Target) -> Result<PathBuf, StepError> {
    let data_dir = &target.data_dir;
    let kept = kept(ctx, target);
    if let Some((file, _)) = PidFile::live(data_dir) {
        let message = format!("a Postgres server (process {}) runs on {}", file.pid, data_dir.display());
        return Err(StepError::permanent(codes::LB1250, message).help(by_hand(target, &kept)));
    }
    if fs::symlink_metadata(&kept).is_ok() {
        let message = format!("{} cannot be moved aside: {} exists", data_dir.display(), kept.display());
        return Err(StepError::permanent(codes::LB1253, message).help(by_hand(target, &kept)));
    }
    announce(ctx, target, &kept).await?;
    if let Err(error) = fs::rename(data_dir, &kept) {
        announce(ctx, target, data_dir).await?;
        return Err(unwritable(data_dir, &error));
    }
    target.sync_parent()?;
    Ok(kept)
}

/// Returns where a restored directory is kept.
pub(super) fn kept(ctx: &StepContext, target: &Target) -> PathBuf {
    target.beside(&format!("undone-{}", ctx.info.run.short()))
}

async fn announce(ctx: &StepContext, target: &Target, path: &Path) -> Result<(), StepError> {
    ctx.created(Created {
        id: target.data_id(),
        what: format!("restored {}", target.what()),
        kind: CreatedKind::Directory { path: path.to_owned() },
    })
    .await
}

async fn put_back(ctx: &StepContext, target: &Target, kept: Option<PathBuf>) -> Result<Done, StepError> {
    let place = target.data_dir.display();
    if kept.is_none() {
        // Before anything earlier stands there again: the end of a drill removes what it has made.
        ctx.removed(&target.data_id(), &format!("`{place}` was undone")).await?;
    }
    RestoreNote::remove(&target.data_dir);
    ctx.removed(&target.note_id(), "the note was removed").await?;
    let mut done = Done::default();
    if let Some(aside) = target.aside().map(Path::to_owned) {
        fs::rename(&aside, &target.data_dir).map_err(|error| unwritable(&aside, &error))?;
        target.sync_parent()?;
        ctx.removed(&target.aside_id(), &format!("`{place}` is back in its place")).await?;
        done.facts
            .insert(format!("moved back: {}", target.what()), format!("{} to {place}", aside.display()));
    }
    if let Some(kept) = kept {
        done.facts.insert(format!("restored {}", target.what()), kept.display().to_string());
        done.warnings.push(format!(
            "what was restored is kept as {}: delete it when nobody needs it any more",
            kept.display()
        ));
    }
    Ok(done)
}

fn not_ours(target: &Target, names: &[String]) -> StepError {
    let error = target.in_the_way(names);
    let aside = target.aside().unwrap_or(Path::new("")).display().to_string();
    let message = format!("{}; this run has not put it there, so {aside} stays aside", error.message);
    StepError { message, ..error }
        .help(format!("compare the two, then put the right one at {}", target.data_dir.display()))
}

/// What a person does who finishes the undo.
fn by_hand(target: &Target, kept: &Path) -> String {
    let place = target.data_dir.display();
    let back = target.aside().map(|aside| format!("; mv {} {place}", aside.display())).unwrap_or_default();
    format!("stop the server; then: mv {place} {}{back}", kept.display())
}
