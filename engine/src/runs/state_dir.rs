use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::durable;
use super::error::Error;
use super::run_dir::RunDir;
use crate::model::RunId;

/// Tells what a directory lies on and who asks; injected, because tests cannot mount.
pub trait FileSystemProbe {
    /// Returns the magic number of the file system, as `statfs` gives it.
    fn file_system(&self, path: &Path) -> std::io::Result<u64>;
    /// Returns the effective user id of this process.
    fn user(&self) -> u32;
    /// Returns the type of the mount that a path lies on, as the kernel names it: `ext4`, `fuse.sshfs`.
    fn mount_type(&self, path: &Path) -> Option<String> {
        mount_type(&fs::read_to_string("/proc/self/mountinfo").ok()?, path)
    }
}

/// Finds the mount of a path in the kernel's list: the last one of those with the longest way in common.
fn mount_type(mounts: &str, path: &Path) -> Option<String> {
    let found = mounts.lines().filter_map(|line| {
        let (place, rest) = line.split_once(" - ")?;
        let point = place.split(' ').nth(4)?.replace("\\040", " ");
        let kind = rest.split(' ').next()?;
        path.starts_with(&point).then(|| (point.len(), kind.to_owned()))
    });
    found.max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

/// The group whose members share the state, as the system numbers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateGroup {
    pub name: String,
    pub gid: u32,
}

/// What FUSE file systems on a disk of this machine are called: locks and shared memory hold there.
const LOCAL_FUSE: &[&str] =
    &["fuseblk", "fuse.fuse-overlayfs", "fuse.ntfs-3g", "fuse.mergerfs", "fuse.bindfs"];
const FUSE: u64 = 0x6573_5546;

/// Asks the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemProbe;

impl FileSystemProbe for SystemProbe {
    fn file_system(&self, path: &Path) -> std::io::Result<u64> {
        let stat = rustix::fs::statfs(path)?;
        // Magic numbers have 32 bits, which some systems sign.
        Ok(u64::from(stat.f_type as u32))
    }

    fn user(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }
}

/// File systems on which locks or shared memory cannot be relied on.
const REMOTE: &[(u64, &str)] = &[
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFE53_4D42, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0x564C, "NCP"),
    (0x7375_7245, "Coda"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x0102_1997, "9p"),
    (FUSE, "FUSE"),
    (0x00C3_6400, "Ceph"),
    (0x0116_1970, "GFS2"),
    (0x7461_636F, "OCFS2"),
    (0x0BD0_0BD0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x786F_4256, "a shared folder of VirtualBox"),
];

/// The directory that holds the state of all runs of a project.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Opens the directory, made if it is missing.
    ///
    /// Refuses one that belongs to another user, that others may enter, or that lies on a network file system: locks
    /// and the journal would not hold there.
    pub fn open(root: &Path, probe: &dyn FileSystemProbe) -> Result<Self, Error> {
        Self::open_for(root, None, probe)
    }

    /// Opens the directory for its owner alone, or for all members of a group: then it has mode 2770 and belongs to that
    /// group, and whoever owns it.
    pub fn open_for(
        root: &Path,
        group: Option<&StateGroup>,
        probe: &dyn FileSystemProbe,
    ) -> Result<Self, Error> {
        if !root.exists() {
            refuse_broken_link(root)?;
            create(root, group)?;
        }
        // Commands run in other directories must find the same one.
        let root = fs::canonicalize(root).map_err(Error::io("open", root))?;
        check(&root, group, probe)?;
        for name in ["runs", "locks"] {
            refuse_link(&root, name)?;
            durable::private_dir(&root.join(name))?;
        }
        Ok(Self { root })
    }

    /// Looks at a directory without making or changing anything. `None` if there is none, or none that can be read.
    pub fn look(root: &Path) -> Option<Self> {
        let root = fs::canonicalize(root).ok()?;
        root.join("runs").is_dir().then_some(Self { root })
    }

    /// Returns its path, absolute.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Makes the directory of a new run.
    pub fn create_run(&self, run: RunId) -> Result<RunDir, Error> {
        RunDir::create(&self.runs_dir(), run)
    }

    /// Opens the directory of a run.
    pub fn run(&self, run: RunId) -> Result<RunDir, Error> {
        match self.existing(run) {
            Some(dir) => Ok(dir),
            None => Err(Error::NoSuchRun { text: run.to_string(), known: self.newest(5)? }),
        }
    }

    pub(super) fn existing(&self, run: RunId) -> Option<RunDir> {
        let dir = RunDir::at(&self.runs_dir(), run);
        dir.path().is_dir().then_some(dir)
    }

    /// Returns all runs, newest first. A name that is no run id is left out.
    pub fn runs(&self) -> Result<Vec<RunDir>, Error> {
        let dir = self.runs_dir();
        let mut runs = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("read", &dir))? {
            let name = entry.map_err(Error::io("read", &dir))?.file_name();
            runs.extend(name.to_str().and_then(|name| name.parse().ok()).map(|run| RunDir::at(&dir, run)));
        }
        runs.sort_by_key(|run| std::cmp::Reverse(run.id()));
        Ok(runs)
    }

    pub(super) fn runs_dir(&self) -> PathBuf {
        self.root.join("runs")
    }

    pub(super) fn locks_dir(&self) -> PathBuf {
        self.root.join("locks")
    }
}

fn create(root: &Path, group: Option<&StateGroup>) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(Error::io("create", root))?;
    if let Some(group) = group {
        chown(root, None, Some(group.gid)).map_err(Error::io("give to the group", root))?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o2770)).map_err(Error::io("share", root))?;
    }
    durable::sync_dir(root.parent().filter(|parent| parent.is_dir()).unwrap_or(Path::new(".")))
}

fn check(root: &Path, group: Option<&StateGroup>, probe: &dyn FileSystemProbe) -> Result<(), Error> {
    let metadata = fs::metadata(root).map_err(Error::io("read", root))?;
    if !metadata.is_dir() {
        let help = "name another place with `state:` in lifeboat.yaml".to_owned();
        return refuse(root, "it is not a directory".to_owned(), help);
    }
    match group {
        Some(group) => check_shared(root, &metadata, group)?,
        None => check_private(root, &metadata, probe)?,
    }
    check_disk(root, probe)
}

fn refuse_broken_link(root: &Path) -> Result<(), Error> {
    let Ok(target) = fs::read_link(root) else { return Ok(()) };
    let reason = format!("it is a link that leads nowhere, to `{}`", target.display());
    let help =
        "mount the disk that it leads to, or mend the link; nothing is made behind a broken one".to_owned();
    refuse(root, reason, help)
}

/// What was found out of the directory does not hold for a part of it that lies elsewhere.
fn refuse_link(root: &Path, name: &str) -> Result<(), Error> {
    if !fs::symlink_metadata(root.join(name)).is_ok_and(|metadata| metadata.is_symlink()) {
        return Ok(());
    }
    let help =
        "move the whole state directory, and name its new place with `state:` in lifeboat.yaml".to_owned();
    refuse(root, format!("`{name}` in it is a link to another place"), help)
}

fn refuse(root: &Path, reason: String, help: String) -> Result<(), Error> {
    Err(Error::Refused { path: root.to_owned(), reason, help })
}

/// Whoever is in the group may be the owner; nobody else may look.
fn check_shared(root: &Path, metadata: &fs::Metadata, group: &StateGroup) -> Result<(), Error> {
    let (mode, name, path) = (metadata.mode() & 0o7777, &group.name, root.display());
    let share = format!(
        "share it, as its owner, while no run is open: `chgrp -R {name} {path}`, `chmod -R u=rwX,g=rwX,o= {path}`, `find {path} \
         -type d -exec chmod g+s {{}} +`"
    );
    if metadata.gid() != group.gid {
        return refuse(root, format!("it does not belong to the group `{name}`"), share);
    }
    if mode != 0o2770 {
        return refuse(root, format!("its mode is {mode:04o}, and a shared one has 2770"), share);
    }
    Ok(())
}

fn check_private(root: &Path, metadata: &fs::Metadata, probe: &dyn FileSystemProbe) -> Result<(), Error> {
    if metadata.uid() != probe.user() {
        let reason = format!("it belongs to user {}, and this is user {}", metadata.uid(), probe.user());
        let help = "run lifeboat as the user that owns it, or share it with `state: { dir: …, group: … }`"
            .to_owned();
        return refuse(root, reason, help);
    }
    if metadata.mode() & 0o077 != 0 {
        let reason = format!("others may enter it (mode {:04o})", metadata.mode() & 0o7777);
        return refuse(root, reason, format!("`chmod 700 {}`", root.display()));
    }
    Ok(())
}

fn check_disk(root: &Path, probe: &dyn FileSystemProbe) -> Result<(), Error> {
    let magic = probe.file_system(root).map_err(Error::io("look at the file system of", root))?;
    let mount = if magic == FUSE { probe.mount_type(root) } else { None };
    if mount.as_deref().is_some_and(|mount| LOCAL_FUSE.contains(&mount)) {
        return Ok(());
    }
    if let Some((_, name)) = REMOTE.iter().find(|(known, _)| *known == magic) {
        let name = mount.as_deref().unwrap_or(name);
        let reason = format!("it lies on {name}, where locks and the journal cannot be relied on");
        let help = "name a directory on a local disk with `state:` in lifeboat.yaml".to_owned();
        return refuse(root, reason, help);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        magic: u64,
        user: u32,
    }

    impl FileSystemProbe for Fake {
        fn file_system(&self, _: &Path) -> std::io::Result<u64> {
            Ok(self.magic)
        }
        fn user(&self) -> u32 {
            self.user
        }
        fn mount_type(&self, _: &Path) -> Option<String> {
            Some("fuse.sshfs".to_owned())
        }
    }

    fn me() -> u32 {
        SystemProbe.user()
    }

    #[test]
    fn a_missing_directory_is_made_for_its_owner_alone() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("var/lifeboat");
        let state = StateDir::open(&root, &SystemProbe).unwrap();
        assert_eq!(fs::metadata(state.path()).unwrap().mode() & 0o7777, 0o700);
        StateDir::open(&root, &SystemProbe).unwrap();
    }

    #[test]
    fn foreign_open_and_remote_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let refusal = |magic, user| match StateDir::open(dir.path(), &Fake { magic, user }) {
            Err(error @ Error::Refused { .. }) => error.to_string(),
            other => panic!("not refused: {other:?}"),
        };
        for (magic, _) in REMOTE {
            assert!(
                refusal(*magic, me()).contains("where locks and the journal cannot be relied on"),
                "{magic:x}"
            );
        }
        assert!(refusal(0x6969, me()).contains("NFS"));
        assert!(refusal(0x6573_5546, me()).contains("fuse.sshfs"));
        assert!(refusal(0xEF53, me() + 1).contains("belongs to user"));
        StateDir::open(dir.path(), &Fake { magic: 0xEF53, user: me() }).unwrap();

        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
        assert!(refusal(0xEF53, me()).contains("mode 0750"));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = StateDir::open(&file, &SystemProbe).unwrap_err();
        assert!(error.to_string().contains("not a directory"), "{error}");
    }

    #[test]
    fn a_shared_directory_and_all_in_it_is_for_the_group() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("state");
        // Root and ordinary users alike may share with the group they are in.
        let gid = rustix::process::getegid().as_raw();
        let group = StateGroup { name: "sre".to_owned(), gid };
        let state = StateDir::open_for(&root, Some(&group), &SystemProbe).unwrap();
        let run = state.create_run(RunId::generate()).unwrap();
        run.inbox()
            .send(&crate::model::Request::Decide {
                by: crate::model::event::Person { name: "sam".into(), uid: 1 },
                decision: crate::model::event::Decision::Pause,
            })
            .unwrap();
        let step = crate::model::StepId::new("caller/base").unwrap();
        run.output().line(&step, 1, crate::model::Stream::Stdout, "printed").unwrap();
        let work = run.path().join("work");
        durable::dirs_within(&work, &work.join("caller/base")).unwrap();
        let mut seen = 0;
        let mut open = vec![root.clone()];
        while let Some(path) = open.pop() {
            let metadata = fs::metadata(&path).unwrap();
            let wanted = if metadata.is_dir() { 0o2770 } else { 0o660 };
            assert_eq!(metadata.mode() & 0o7777, wanted, "{}", path.display());
            assert_eq!(metadata.gid(), gid);
            seen += 1;
            if metadata.is_dir() {
                open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        assert!(seen >= 15, "{seen}");
        // Another member is let in, a member of none is not, and without the group it is a foreign one.
        StateDir::open_for(&root, Some(&group), &Fake { magic: 0xEF53, user: me() + 1 }).unwrap();
        let other = StateGroup { name: "dba".to_owned(), gid: gid + 1 };
        let error = StateDir::open_for(&root, Some(&other), &SystemProbe).unwrap_err();
        assert!(error.to_string().contains("the group `dba`"), "{error}");
        assert!(StateDir::open(&root, &SystemProbe).unwrap_err().to_string().contains("others may enter"));
        fs::set_permissions(&root, fs::Permissions::from_mode(0o770)).unwrap();
        let error = StateDir::open_for(&root, Some(&group), &SystemProbe).unwrap_err();
        assert!(error.to_string().contains("0770") && error.help().contains("chgrp -R sre"), "{error}");
    }

    #[test]
    fn a_disk_behind_fuse_is_told_from_a_network() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:40 / /mnt/my\\040disk rw - fuseblk /dev/sdb1 rw\n\
                      31 22 0:41 / /mnt/far rw - fuse.sshfs host:/ rw\n";
        assert_eq!(mount_type(mounts, Path::new("/mnt/my disk/state")).as_deref(), Some("fuseblk"));
        assert_eq!(mount_type(mounts, Path::new("/mnt/far/state")).as_deref(), Some("fuse.sshfs"));
        assert_eq!(mount_type(mounts, Path::new("/mnt/farther")).as_deref(), Some("ext4"));
    }

    #[test]
    fn runs_are_listed_newest_first() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state"), &SystemProbe).unwrap();
        let mut ids: Vec<_> = (0..3).map(|_| RunId::generate()).collect();
        for id in &ids {
            state.create_run(*id).unwrap();
        }
        fs::create_dir(state.runs_dir().join("lost+found")).unwrap();
        ids.sort();
        ids.reverse();
        let found: Vec<_> = state.runs().unwrap().iter().map(RunDir::id).collect();
        assert_eq!(found, ids);
    }
}
