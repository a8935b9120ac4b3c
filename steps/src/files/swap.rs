//! `files.swap`: exchanges what is in place with what was kept beside it.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::Mode;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::backup::files_of;
use super::codes;
use crate::probe::measure;
use crate::sql::done;
use crate::store::blocking;

/// Exchanges a directory or file with another one beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Swap;

#[derive(Deserialize)]
struct Params {
    files: String,
    previous: PathBuf,
}

const DOC: &str = "\
Exchanges the directory or file of the resource with `previous`, which stands beside it: the `previous` of an earlier \
`files.restore`, or any other in the same parent directory. Both keep all that is in them; they trade names in one step \
(`renameat2` with `RENAME_EXCHANGE`), so that at no moment either name leads nowhere. On a file system that cannot exchange there are \
three renames, and the name is absent between two of them.

Refused before anything is touched: something absent, a symbolic link, a directory against a file, another parent directory, \
a mount point (it cannot be renamed: unmount it and mount the other, or exchange a directory inside of it), and, in a drill, what the same run has moved aside, which \
the end of the drill puts back by itself.

Which is which is known by their numbers in the file system, recorded before the exchange: an attempt that follows a lost \
one finishes it and never turns it back. Undo exchanges them again.";

#[async_trait]
impl StepKind for Swap {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "files.swap",
            "Exchanges a directory or file with one that is kept beside it.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("files", Type::writes(ResourceKind::Files), "The directory or file in use."))
        .param(Field::required("previous", Type::Path, "What is to take its place, beside it."))
        .output("path", Type::Path, "The place.")
        .output("kept", Type::Path, "Where that which was in use is now.")
        .destroys("nothing: what is in use trades places with what was kept beside it")
        .undoes("the two are exchanged again")
        .writes_path("previous")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let path = files_of(ctx, &params.files)?.path.clone();
        let (at, other) = (path.clone(), ctx.info.project_dir.join(&params.previous));
        let (now, then) = blocking(move || Ok((measure(&at), measure(&other)))).await?;
        let words =
            |found: Option<crate::probe::Measured>| found.map_or("absent".to_owned(), |it| it.to_string());
        let previous = params.previous.display();
        Ok(Preview {
            actions: vec![format!("exchange {} with {previous} in one rename", path.display())],
            destroys: vec![format!(
                "`{}`: {} ({}) trades places with {previous} ({})",
                params.files,
                path.display(),
                words(now),
                words(then)
            )],
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let path = files_of(ctx, &params.files)?.path.clone();
        let pair = match recorded(ctx) {
            Some(pair) => pair,
            None => {
                refuse_own(ctx, &params.previous)?;
                let previous = ctx.info.project_dir.join(&params.previous);
                let run = ctx.info.run.short();
                let pair = blocking(move || Pair::find(&path, &previous, &run)).await?;
                ctx.record(PAIR, json!(pair)).await?;
                pair
            }
        };
        let swapped = pair.clone();
        blocking(move || swapped.settle(&swapped.previous)).await?;
        Ok(done(json!({ "path": pair.path, "kept": pair.other })))
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let Some(pair) = recorded(ctx) else { return Ok(Done::default()) };
        let back = pair.clone();
        blocking(move || back.settle(&back.current)).await?;
        let facts = [("back in its place".to_owned(), pair.path.display().to_string())];
        Ok(Done { facts: facts.into(), ..Done::default() })
    }
}

/// The two, recorded before they are touched.
const PAIR: &str = "pair";

/// One file or directory, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Node {
    device: u64,
    inode: u64,
}

impl Node {
    fn of(found: &Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino() }
    }

    fn at(path: &Path) -> Option<Self> {
        path.symlink_metadata().ok().as_ref().map(Self::of)
    }
}

/// Two names, and what stood at each of them at first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pair {
    path: PathBuf,
    other: PathBuf,
    /// A free name, for a file system that cannot exchange.
    third: PathBuf,
    current: Node,
    previous: Node,
}

fn recorded(ctx: &StepContext) -> Option<Pair> {
    serde_json::from_value(ctx.recorded(PAIR)?.clone()).ok()
}

/// The end of a drill deletes what this run has restored and renames back what it has moved aside: by their names.
fn refuse_own(ctx: &StepContext, previous: &Path) -> Result<(), StepError> {
    let name = previous.file_name().unwrap_or_default().to_string_lossy();
    if ctx.info.mode != Mode::Drill || !name.contains(&format!(".pre-{}", ctx.info.run.short())) {
        return Ok(());
    }
    let message = format!("{} was moved aside by this drill, which puts it back itself", previous.display());
    Err(StepError::permanent(codes::LB1430, message)
        .help("leave the step out of drills: `if: run.mode != 'drill'`"))
}

impl Pair {
    fn find(path: &Path, previous: &Path, run: &str) -> Result<Self, StepError> {
        let (path, other) = (beside(path)?, beside(previous)?);
        let refuse = |problem: String| {
            let message =
                format!("{} and {} cannot be exchanged: {problem}", path.display(), other.display());
            Err(StepError::permanent(codes::LB1430, message).help("nothing was touched; correct `previous`"))
        };
        if path == other {
            return refuse("they are the same".to_owned());
        }
        if path.parent() != other.parent() {
            return refuse("they are not in the same directory".to_owned());
        }
        let (Ok(at), Ok(beside)) = (path.symlink_metadata(), other.symlink_metadata()) else {
            let absent = if path.symlink_metadata().is_err() { &path } else { &other };
            return refuse(format!("{} is absent", absent.display()));
        };
        for (path, found) in [(&path, &at), (&other, &beside)] {
            if !found.is_dir() && !found.is_file() {
                return refuse(format!("{} is neither a directory nor a file", path.display()));
            }
        }
        if at.is_dir() != beside.is_dir() {
            return refuse("one is a directory and the other is a file".to_owned());
        }
        let of_parent = path.parent().and_then(|parent| fs::metadata(parent).ok());
        let device = of_parent.map_or(at.dev(), |found| found.dev());
        if let Some((mount, _)) =
            [(&path, &at), (&other, &beside)].into_iter().find(|(_, it)| it.dev() != device)
        {
            let error = refuse(format!("{} is a mount point, which cannot be renamed", mount.display()));
            return error.map_err(|error| error.help(format!(
                "nothing was touched; unmount it (`umount {mount}`) and mount the other file system there, or keep the files in a \
                 directory inside of it and name that one: `path: {mount}/current`",
                mount = mount.display()
            )));
        }
        let third = path.with_file_name(format!(
            ".{}.swap-{run}",
            path.file_name().unwrap_or_default().to_string_lossy()
        ));
        Ok(Self { current: Node::of(&at), previous: Node::of(&beside), path, other, third })
    }

    /// Makes the wanted one of the two stand at the place, from wherever an attempt has left them.
    fn settle(&self, wanted: &Node) -> Result<(), StepError> {
        let is_ours =
            |path: &Path| Node::at(path).filter(|node| [self.current, self.previous].contains(node));
        let places = (is_ours(&self.path), is_ours(&self.other), is_ours(&self.third));
        match places {
            (Some(at), Some(beside), _) if at != beside => {
                if at != *wanted {
                    self.exchange()?;
                }
            }
            // Between two of the three renames.
            (Some(_), None, Some(_)) => self.rename(&self.third, &self.other)?,
            (None, Some(_), Some(_)) => {
                let (first, second) = if Node::at(&self.third) == Some(*wanted) {
                    (&self.third, None)
                } else {
                    (&self.other, Some(&self.third))
                };
                self.rename(first, &self.path)?;
                if let Some(rest) = second {
                    self.rename(rest, &self.other)?;
                }
            }
            _ => {
                let message = format!(
                    "{} and {} are not the two that this step has found there",
                    self.path.display(),
                    self.other.display()
                );
                return Err(StepError::permanent(codes::LB1431, message)
                    .help("somebody has moved one of them since: compare them, and put the right one in place by hand"));
            }
        }
        if Node::at(&self.path) == Some(*wanted) { self.sync() } else { self.settle_again(wanted) }
    }

    /// After a rename that an earlier attempt had left to do, the two may still stand the wrong way round.
    fn settle_again(&self, wanted: &Node) -> Result<(), StepError> {
        self.exchange()?;
        if Node::at(&self.path) == Some(*wanted) {
            return self.sync();
        }
        let message = format!("{} is not what was to take its place", self.path.display());
        Err(StepError::permanent(codes::LB1431, message)
            .help("somebody moves them at the same time: stop that first"))
    }

    fn exchange(&self) -> Result<(), StepError> {
        let exchanged = rustix::fs::renameat_with(CWD, &self.path, CWD, &self.other, RenameFlags::EXCHANGE);
        match exchanged {
            Err(Errno::INVAL | Errno::NOSYS) => {
                self.rename(&self.path, &self.third)?;
                self.rename(&self.other, &self.path)?;
                self.rename(&self.third, &self.other)
            }
            other => other.map_err(|error| failed("exchanged", &self.path, &error.into())),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StepError> {
        fs::rename(from, to).map_err(|error| failed("renamed", from, &error))
    }

    fn sync(&self) -> Result<(), StepError> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let synced = File::open(parent).and_then(|dir| dir.sync_all());
        synced.map_err(|error| failed("synced", parent, &error))
    }
}

/// Returns a path whose parent is real; the last name is not followed.
fn beside(path: &Path) -> Result<PathBuf, StepError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        let message = format!("{} has no name that could be exchanged", path.display());
        return Err(
            StepError::permanent(codes::LB1430, message).help("name a directory or file with its whole path")
        );
    };
    let parent = parent.canonicalize().map_err(|error| failed("found", parent, &error))?;
    Ok(parent.join(name))
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> StepError {
    StepError::transient(codes::LB1406, format!("{} cannot be {what}", path.display()))
        .help("check that it is there, and that the user of Lifeboat may write in its parent directory")
        .caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(dir: &Path) -> Pair {
        fs::write(dir.join("a"), "current").unwrap();
        fs::write(dir.join("b"), "previous").unwrap();
        Pair::find(&dir.join("a"), &dir.join("b"), "run").unwrap()
    }

    fn at(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap_or_default()
    }

    #[test]
    fn every_place_that_three_renames_can_be_left_in_is_settled_both_ways() {
        let renames = [("a", ".a.swap-run"), ("b", "a"), (".a.swap-run", "b")];
        for done in 0..=renames.len() {
            for wanted in ["previous", "current"] {
                let dir = tempfile::tempdir().unwrap();
                let dir = dir.path();
                let pair = pair(dir);
                for (from, to) in &renames[..done] {
                    fs::rename(dir.join(from), dir.join(to)).unwrap();
                }
                let node = if wanted == "previous" { pair.previous } else { pair.current };
                pair.settle(&node).unwrap();
                let other = if wanted == "previous" { "current" } else { "previous" };
                assert_eq!((at(dir, "a").as_str(), at(dir, "b").as_str()), (wanted, other), "after {done}");
                assert_eq!(fs::read_dir(dir).unwrap().count(), 2, "after {done}");
                pair.settle(&node).unwrap();
                assert_eq!(at(dir, "a"), wanted, "again is no harm");
            }
        }
    }

    #[test]
    fn what_somebody_else_has_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let pair = pair(dir.path());
        fs::rename(dir.path().join("a"), dir.path().join("elsewhere")).unwrap();
        fs::write(dir.path().join("a"), "theirs").unwrap();
        assert_eq!(pair.settle(&pair.previous).unwrap_err().code, codes::LB1431);
        assert_eq!((at(dir.path(), "a"), at(dir.path(), "b")), ("theirs".into(), "previous".into()));
    }
}
