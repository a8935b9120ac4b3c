//! Verified segments as files that only have to be renamed to be delivered.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags};

/// A directory of one helper, emptied when it begins and removed when it ends: nothing of another system, timeline or
/// run is ever in it.
///
/// The server's user owns it, because its client renames the files. So everything in it is reached through the open
/// directory and no link is followed.
#[derive(Debug)]
pub(super) struct Queue {
    path: PathBuf,
    dir: OwnedFd,
    owner: Option<(u32, u32)>,
    count: AtomicU64,
}

/// A file in the queue. Removed with the value, unless its receiver has taken it away by then.
#[derive(Debug)]
pub(super) struct Kept {
    queue: Arc<Queue>,
    name: String,
    stamp: Stamp,
}

/// What changes when anybody writes to a file or puts another one in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Queue {
    /// Makes the directory anew.
    pub(super) fn make(path: &Path, owner: Option<(u32, u32)>) -> io::Result<Self> {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::DirBuilder::new().mode(0o700).create(path)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        if let Some((user, group)) = owner {
            fchown(&dir, Some(user), Some(group))?;
        }
        Ok(Self { path: path.to_path_buf(), dir, owner, count: AtomicU64::new(0) })
    }

    /// Adds a file that `fill` writes and verifies; if it fails, nothing is left.
    pub(super) fn add<E: From<io::Error>>(
        self: &Arc<Self>,
        name: &str,
        fill: impl FnOnce(&mut File) -> Result<(), E>,
    ) -> Result<Kept, E> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}.{number}");
        let mut file = self.create(&name)?;
        let filled = fill(&mut file).and_then(|()| Ok(Stamp::of(&file)?));
        match filled {
            Ok(stamp) => Ok(Kept { queue: Arc::clone(self), name, stamp }),
            Err(error) => {
                self.remove(&name);
                Err(error)
            }
        }
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?);
        file.set_permissions(Permissions::from_mode(0o600))?;
        if let Some((user, group)) = self.owner {
            fchown(&file, Some(user), Some(group))?;
        }
        Ok(file)
    }

    fn remove(&self, name: &str) {
        // It fails if the receiver has it.
        rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()).ok();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // A thread that waited for a silent store may be the last to know this queue, when the next one has its place.
        let same = |ours: rustix::fs::Stat, there: rustix::fs::Stat| {
            (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
        };
        let there = rustix::fs::lstat(&self.path);
        if rustix::fs::fstat(&self.dir).ok().zip(there.ok()).is_some_and(|(ours, there)| same(ours, there)) {
            // Whatever stays is removed with the directory of the server, or by the next helper.
            std::fs::remove_dir_all(&self.path).ok();
        }
    }
}

impl Kept {
    /// Returns where the file is, for its receiver.
    pub(super) fn path(&self) -> PathBuf {
        self.queue.path.join(&self.name)
    }

    /// Returns its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.stamp.size
    }

    /// Says whether it is still as it was verified.
    pub(super) fn is_intact(&self) -> bool {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.queue.dir, &self.name, flags, Mode::empty());
        file.is_ok_and(|file| Stamp::of(&file.into()).is_ok_and(|stamp| stamp == self.stamp))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.queue.remove(&self.name);
    }
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn queue() -> (tempfile::TempDir, Arc<Queue>) {
        let dir = tempfile::tempdir().expect("a directory");
        let queue = Queue::make(&dir.path().join("wal"), None).expect("makes");
        (dir, Arc::new(queue))
    }

    fn add(queue: &Arc<Queue>, content: &[u8]) -> Kept {
        queue.add::<io::Error>("segment", |file| file.write_all(content)).expect("adds")
    }

    #[test]
    fn a_file_goes_away_with_its_value_and_with_the_queue() {
        let (dir, queue) = queue();
        let (one, two) = (add(&queue, b"one"), add(&queue, b"two"));
        assert_eq!((one.size(), std::fs::read(two.path()).expect("reads")), (3, b"two".to_vec()));
        let gone = one.path();
        drop(one);
        assert!(!gone.exists() && two.path().exists());
        queue.add::<io::Error>("bad", |_| Err(io::Error::other("no"))).expect_err("fails");
        assert_eq!(std::fs::read_dir(dir.path().join("wal")).expect("lists").count(), 1);
        let taken = dir.path().join("taken");
        std::fs::rename(two.path(), &taken).expect("renames");
        drop((two, queue));
        assert!(taken.exists() && !dir.path().join("wal").exists());
    }

    #[test]
    fn whoever_touches_a_file_is_noticed() {
        let (_dir, queue) = queue();
        let kept = add(&queue, b"content");
        assert!(kept.is_intact());
        std::fs::write(kept.path(), b"CONTENT").expect("writes");
        assert!(!kept.is_intact(), "same size, other content");
        let kept = add(&queue, b"content");
        std::fs::remove_file(kept.path()).expect("removes");
        assert!(!kept.is_intact());
        std::fs::write(kept.path(), b"content").expect("writes");
        assert!(!kept.is_intact(), "another file of that name");
        std::fs::remove_file(kept.path()).expect("removes");
        std::os::unix::fs::symlink("/etc/passwd", kept.path()).expect("links");
        assert!(!kept.is_intact(), "a link");
    }

    #[test]
    fn what_another_helper_left_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("wal");
        std::fs::create_dir_all(path.join("deeper")).expect("makes");
        std::fs::write(path.join("000000010000000000000003.0"), b"of another run").expect("writes");
        let queue = Queue::make(&path, None).expect("makes");
        assert_eq!(std::fs::read_dir(&path).expect("lists").count(), 0);
        // One that ends late leaves the place to the one that has it now.
        let next = Queue::make(&path, None).expect("makes");
        drop(queue);
        assert!(path.exists());
        drop(next);
        assert!(!path.exists());
    }
}
