//! Every directory that a restore fills: the data directory, and one for each tablespace of the backup.
//!
//! A cluster finds its tablespaces by links in `pg_tblspc`. Whenever a directory is renamed, the links of the cluster that
//! it belongs to are turned with it: neither the cluster that was moved aside nor the one that is kept after an undo ever
//! names a directory of the other.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use lifeboat_engine::model::event::Done;
use lifeboat_engine::step::{StepContext, StepError};
use serde::{Deserialize, Serialize};

use super::super::backup::Tablespace;
use super::super::codes;
use super::super::restore_note::RestoreNote;
use super::delta;
use super::target::{Existing, Found, Target};
use super::undo;
use super::unpack::{make_private_dir, unwritable};
use crate::process::OsUser;
use crate::store::blocking;

/// Where in a data directory the links are.
const LINKS: &str = "pg_tblspc";
/// Under this key an undo finds which tablespaces the step has placed.
const PLACED: &str = "tablespaces";

/// What the runbook says of tablespaces.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Mapping {
    /// By OID or by the directory on the source.
    tablespaces: Option<BTreeMap<String, PathBuf>>,
    /// For all others: each in a directory of its own below it.
    tablespace_dir: Option<PathBuf>,
}

/// One tablespace of the backup.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub(super) oid: String,
    /// Where it was on the source.
    location: PathBuf,
    pub(super) target: Target,
}

/// A placed tablespace as the journal has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Placed {
    oid: String,
    dir: PathBuf,
}

/// All directories of one restored cluster.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) data: Target,
    pub(super) spaces: Vec<Space>,
}

impl Places {
    /// Decides where each tablespace goes. Looks at no directory.
    pub(super) fn plan(
        ctx: &StepContext,
        data: Target,
        (tablespaces, mapping): (&[Tablespace], &Mapping),
    ) -> Result<Self, StepError> {
        let knows = |key: &String| tablespaces.iter().any(|space| is_named(space, key));
        if let Some(unknown) = mapping.tablespaces.iter().flat_map(BTreeMap::keys).find(|key| !knows(key)) {
            return Err(unknown_tablespace(unknown, tablespaces));
        }
        let mut spaces = Vec::new();
        for space in tablespaces {
            let dir = mapping.place(space);
            check_path(&data, (&dir, &space.oid))?;
            let target = Target::tablespace(ctx, &data.resource, (&dir, &space.oid))?;
            spaces.push(Space { oid: space.oid.clone(), location: (&space.location).into(), target });
        }
        let places = Self { data, spaces };
        places.check_apart()?;
        Ok(places)
    }

    /// Names the directories that an earlier attempt of this step has placed.
    pub(super) fn placed(ctx: &StepContext, data: Target) -> Result<Self, StepError> {
        let recorded = ctx.recorded(PLACED).cloned();
        let placed: Vec<Placed> =
            recorded.and_then(|recorded| serde_json::from_value(recorded).ok()).unwrap_or_default();
        let spaces = placed.into_iter().map(|placed| {
            let target = Target::tablespace(ctx, &data.resource, (&placed.dir, &placed.oid))?;
            Ok(Space { oid: placed.oid, location: placed.dir, target })
        });
        let spaces = spaces.collect::<Result<_, StepError>>()?;
        Ok(Self { data, spaces })
    }

    /// Tells the journal, before anything is touched, which directories an undo has to look at.
    pub(super) async fn record(&self, ctx: &StepContext) -> Result<(), StepError> {
        if self.spaces.is_empty() {
            return Ok(());
        }
        let placed = |space: &Space| Placed { oid: space.oid.clone(), dir: space.target.data_dir.clone() };
        let placed: Vec<_> = self.spaces.iter().map(placed).collect();
        ctx.record(PLACED, serde_json::to_value(&placed).expect("paths of text are JSON")).await
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = &Target> {
        std::iter::once(&self.data).chain(self.spaces.iter().map(|space| &space.target))
    }

    /// Refuses directories that lie within each other, through whatever links.
    fn check_apart(&self) -> Result<(), StepError> {
        let resolved: Vec<_> = self.targets().map(|target| (target, resolved(&target.data_dir))).collect();
        for (at, (target, path)) in resolved.iter().enumerate() {
            for (other, other_path) in &resolved[..at] {
                if path.starts_with(other_path) || other_path.starts_with(path) {
                    return Err(StepError::permanent(
                        codes::LB1257,
                        format!(
                            "{} and {} would lie within each other",
                            target.data_dir.display(),
                            other.data_dir.display()
                        ),
                    )
                    .help("give each tablespace a directory outside the data directory and apart from the others"));
                }
            }
        }
        Ok(())
    }

    /// Finds what is in the way and may not be moved.
    pub(super) fn check_free(&self, existing: Existing) -> Result<(), StepError> {
        if existing == Existing::Delta {
            delta::check(&self.data)?;
        }
        if let (Found::Foreign(names), Existing::Refuse) = (self.data.look()?, existing) {
            return Err(self.data.in_the_way(&names));
        }
        for space in &self.spaces {
            let Found::Foreign(names) = space.target.look()? else { continue };
            let may_take = match existing {
                Existing::Refuse => false,
                Existing::MoveAside => self.is_linked(space),
                Existing::Delta => delta::belongs_together(&self.data, &space.target) || self.is_noted(space),
            };
            if !may_take {
                return Err(in_use(space, &names, existing));
            }
        }
        Ok(())
    }

    /// Says whether the directory belongs to the cluster whose place is taken: nobody else's is ever moved.
    fn is_linked(&self, space: &Space) -> bool {
        let wanted = resolved(&space.target.data_dir);
        let aside = self.data.aside().map(Path::to_owned);
        let clusters = [Some(self.data.data_dir.clone()), aside];
        clusters.into_iter().flatten().any(|cluster| {
            links(&cluster).iter().any(|link| fs::read_link(link).is_ok_and(|to| resolved(&to) == wanted))
        })
    }

    /// Says whether a restore has left the directory, and its cluster links to it.
    fn is_noted(&self, space: &Space) -> bool {
        RestoreNote::read(&space.target.data_dir).is_some() && self.is_linked(space)
    }

    /// Empties every place: what this step made itself is deleted, anything else moved aside. What is restored over
    /// stays.
    pub(super) async fn make_room(&self, ctx: &StepContext, existing: Existing) -> Result<(), StepError> {
        if existing == Existing::Delta {
            return Ok(());
        }
        for target in self.targets() {
            match target.look()? {
                Found::Nothing | Found::Empty => {}
                Found::Own => {
                    let target = target.clone();
                    blocking(move || target.wipe_own()).await?;
                }
                Found::Foreign(_) => target.move_aside(ctx).await?,
            }
        }
        self.turn_links_aside()
    }

    /// The cluster that was moved aside goes on to name its own directories.
    fn turn_links_aside(&self) -> Result<(), StepError> {
        let Some(cluster) = self.data.aside() else { return Ok(()) };
        for target in self.spaces.iter().map(|space| &space.target) {
            if let Some(aside) = target.aside() {
                turn(cluster, (&target.data_dir, aside))?;
            }
        }
        Ok(())
    }

    /// Makes every directory and notes whose it is.
    pub(super) async fn take(&self, ctx: &StepContext, backup: &str) -> Result<(), StepError> {
        for target in self.targets() {
            target.take(ctx, backup).await?;
        }
        Ok(())
    }

    /// Notes in every place that it is complete; the data directory last.
    pub(super) fn note_finished(&self, backup: &str) -> Result<(), StepError> {
        let spaces = self.spaces.iter().map(|space| &space.target);
        spaces.chain([&self.data]).try_for_each(|target| target.note(backup, true))
    }

    /// Makes the links, before anything is unpacked.
    pub(super) fn link(&self, owner: Option<&OsUser>) -> Result<(), StepError> {
        if self.spaces.is_empty() {
            return Ok(());
        }
        let dir = self.data.data_dir.join(LINKS);
        let failed = |error: io::Error| unwritable(&dir, &error);
        match make_private_dir(&dir, owner) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed)?,
        }
        for space in &self.spaces {
            point(&dir.join(&space.oid), &space.target.data_dir).map_err(failed)?;
        }
        Ok(())
    }

    /// Turns the server's own list of links, from which it makes them anew when it starts, to where they lead here.
    pub(super) fn write_map(&self) -> Result<(), StepError> {
        let moved = |space: &&Space| space.location != space.target.data_dir;
        let to = |space: &Space| (space.oid.clone(), space.target.data_dir.clone());
        rewrite_map(&self.data.data_dir, &self.spaces.iter().filter(moved).map(to).collect::<Vec<_>>())
    }

    /// After a failure: removes what this step has made and puts back what stood there.
    pub(super) async fn give_up(&self, ctx: &StepContext) -> Result<(), StepError> {
        for target in self.targets() {
            target.give_up(ctx).await?;
        }
        self.turn_links_back(&self.data.data_dir)
    }

    fn turn_links_back(&self, cluster: &Path) -> Result<(), StepError> {
        for target in self.spaces.iter().map(|space| &space.target) {
            if target.aside().is_none() {
                turn(cluster, (&target.aside_path(), &target.data_dir))?;
            }
        }
        Ok(())
    }

    /// Brings back what stood in every place.
    pub(super) async fn undo(&self, ctx: &StepContext, inode: Option<u64>) -> Result<Done, StepError> {
        let mut done = Done::default();
        for target in self.targets() {
            let inode = inode.filter(|_| std::ptr::eq(target, &raw const self.data));
            let one = undo::undo(ctx, target, inode).await?;
            done.facts.extend(one.facts);
            done.warnings.extend(one.warnings);
        }
        self.turn_links_back(&self.data.data_dir)?;
        let kept = undo::kept(ctx, &self.data);
        let mut moved = Vec::new();
        for space in &self.spaces {
            let to = undo::kept(ctx, &space.target);
            if kept.exists() && to.exists() {
                turn(&kept, (&space.target.data_dir, &to))?;
                moved.push((space.oid.clone(), to));
            }
        }
        rewrite_map(&kept, &moved)?;
        Ok(done)
    }
}

impl Mapping {
    fn place(&self, space: &Tablespace) -> PathBuf {
        let named = self.tablespaces.iter().flatten().find(|(key, _)| is_named(space, key));
        match (named, &self.tablespace_dir) {
            (Some((_, dir)), _) => dir.clone(),
            (None, Some(dir)) => dir.join(&space.oid),
            (None, None) => PathBuf::from(&space.location),
        }
    }
}

fn is_named(space: &Tablespace, key: &str) -> bool {
    key == space.oid || key.trim_end_matches('/') == space.location
}

/// A directory that the server's list of links can name.
fn check_path(data: &Target, (dir, oid): (&Path, &str)) -> Result<(), StepError> {
    let plain = dir.components().all(|part| matches!(part, Component::Normal(_) | Component::RootDir));
    let text = dir.to_str().is_some_and(|text| !text.contains(['\n', '\r', '\\']));
    if dir.is_absolute() && plain && text {
        return Ok(());
    }
    Err(StepError::permanent(
        codes::LB1257,
        format!("`{}` cannot be the directory of tablespace {oid} of {}", dir.display(), data.resource),
    )
    .help("write an absolute path without `..`, backslashes and line ends"))
}

fn unknown_tablespace(key: &str, tablespaces: &[Tablespace]) -> StepError {
    let known: Vec<_> =
        tablespaces.iter().map(|space| format!("{} (`{}`)", space.oid, space.location)).collect();
    let known =
        if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
    StepError::permanent(codes::LB1257, format!("the backup has no tablespace `{key}`: {known}"))
        .help("name tablespaces by their OID or by their directory on the source, as listed")
}

fn in_use(space: &Space, names: &[String], existing: Existing) -> StepError {
    const SHOWN: usize = 6;
    let dir = space.target.data_dir.display();
    let oid = &space.oid;
    let whose = match existing {
        Existing::Refuse => "",
        _ => ", and the cluster that is replaced does not use it, so it is not moved aside",
    };
    StepError::permanent(
        codes::LB1257,
        format!(
            "{dir}, the directory of tablespace {oid}, is not empty ({}){whose}",
            names[..names.len().min(SHOWN)].join(", ")
        ),
    )
    .help(format!(
        "write on this step `tablespaces: {{ \"{oid}\": /another/directory }}` or `tablespace_dir: /a/directory`; \
         nothing was touched"
    ))
}

/// Returns the path without links as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let existing = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match existing {
        Some((above, real)) => match path.strip_prefix(above) {
            Ok(rest) if rest.as_os_str().is_empty() => real,
            Ok(rest) => real.join(rest),
            Err(_) => path.to_owned(),
        },
        None => path.to_owned(),
    }
}

fn links(cluster: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cluster.join(LINKS)).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_symlink()).collect()
}

/// Turns the links of a cluster that lead to one directory to another one.
fn turn(cluster: &Path, (from, to): (&Path, &Path)) -> Result<(), StepError> {
    for link in links(cluster) {
        if fs::read_link(&link).is_ok_and(|leads| leads == from) {
            point(&link, to).map_err(|error| unwritable(&link, &error))?;
        }
    }
    Ok(())
}

/// Makes a link, or turns one that is there, in one step.
fn point(link: &Path, to: &Path) -> io::Result<()> {
    let temporary = link.with_extension("lifeboat");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(to, &temporary)?;
    fs::rename(&temporary, link)?;
    fs::File::open(link.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Turns lines `16385 /srv/fast` of the list that a backup brings along. Other lines stay.
fn rewrite_map(cluster: &Path, moved: &[(String, PathBuf)]) -> Result<(), StepError> {
    let path = cluster.join("tablespace_map");
    if moved.is_empty() || !path.exists() {
        return Ok(());
    }
    let failed = |error: io::Error| unwritable(&path, &error);
    let text = fs::read_to_string(&path).map_err(failed)?;
    let turned: String = text
        .split_inclusive('\n')
        .map(|line| {
            let oid = line.split_once(' ').map(|(oid, _)| oid);
            let to = moved.iter().find(|(space, _)| Some(space.as_str()) == oid);
            to.map_or_else(|| line.to_owned(), |(oid, to)| format!("{oid} {}\n", to.display()))
        })
        .collect();
    replace(&path, turned.as_bytes()).map_err(failed)
}

/// Puts another text into a file, whole or not at all; it stays its owner's.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let owner = fs::metadata(path)?;
    let temporary = path.with_extension("lifeboat");
    fs::write(&temporary, text)?;
    std::os::unix::fs::chown(&temporary, Some(owner.uid()), Some(owner.gid()))?;
    fs::set_permissions(&temporary, owner.permissions())?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_turned_and_others_left() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(LINKS)).expect("makes");
        for (oid, to) in [("1", "/srv/a"), ("2", "/srv/b")] {
            point(&dir.path().join(LINKS).join(oid), Path::new(to)).expect("links");
        }
        turn(dir.path(), (Path::new("/srv/a"), Path::new("/srv/a.pre-x"))).expect("turns");
        let leads = |oid: &str| fs::read_link(dir.path().join(LINKS).join(oid)).expect("a link");
        assert_eq!((leads("1"), leads("2")), ("/srv/a.pre-x".into(), "/srv/b".into()));
    }

    #[test]
    fn only_moved_lines_of_the_map_change() {
        let dir = tempfile::tempdir().expect("a directory");
        let map = dir.path().join("tablespace_map");
        fs::write(&map, "16385 /srv/a b\n16386 pg_tblspc/16386\n").expect("writes");
        rewrite_map(dir.path(), &[("16385".into(), "/new/place".into())]).expect("turns");
        assert_eq!(fs::read_to_string(&map).expect("reads"), "16385 /new/place\n16386 pg_tblspc/16386\n");
    }

    #[test]
    fn a_path_is_resolved_as_far_as_it_exists() {
        let dir = tempfile::tempdir().expect("a directory");
        let real = dir.path().canonicalize().expect("exists");
        std::os::unix::fs::symlink(&real, real.join("link")).expect("links");
        assert_eq!(resolved(&real.join("link/x/y")), real.join("x/y"));
        assert_eq!(resolved(&real.join("link")), real);
    }
}
