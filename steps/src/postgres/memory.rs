//! How much memory a server on this machine may take.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the bytes that are free: on the machine, and within each limit that a container or a service puts on this
/// process and its children.
pub(super) fn free() -> u64 {
    free_below(Path::new("/"))
}

fn free_below(root: &Path) -> u64 {
    let machine = field(&root.join("proc/meminfo"), "MemAvailable:").map(|kb| kb * 1024);
    limits(root).into_iter().chain(machine).min().unwrap_or(0)
}

/// Returns the room within each control group of this process, of either version.
fn limits(root: &Path) -> Vec<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let version = match controllers {
            "" => &V2,
            names if names.split(',').any(|name| name == "memory") => &V1,
            _ => continue,
        };
        // Within a container the path may be that of the host, of which only the top is there.
        let top = root.join(version.mount);
        let path = Path::new(path.trim_start_matches('/'));
        let dirs = path.ancestors().map(|dir| top.join(dir));
        found.extend(dirs.filter_map(|dir| room(&dir, version)));
    }
    found
}

/// The names of one version of control groups.
struct Version {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Of the memory in use, what is given back when it is needed: pages of files.
    reclaimable: [&'static str; 2],
}

const V2: Version = Version {
    mount: "sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    reclaimable: ["active_file", "inactive_file"],
};

const V1: Version = Version {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: ["total_active_file", "total_inactive_file"],
};

fn room(dir: &Path, version: &Version) -> Option<u64> {
    let limit = number(dir.join(version.limit))?;
    let used = number(dir.join(version.used)).unwrap_or(0);
    let stat = dir.join("memory.stat");
    let reclaimable: u64 = version.reclaimable.iter().filter_map(|name| field(&stat, name)).sum();
    Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
}

/// `max`, for no limit, is no number.
fn number(path: PathBuf) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let always = [("proc/meminfo", "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")];
        for (path, text) in always.iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("makes");
            fs::write(path, text).expect("writes");
        }
        root
    }

    fn free_on(files: &[(&str, &str)]) -> u64 {
        free_below(machine(files).path())
    }

    #[test]
    fn without_limits_the_machine_counts() {
        assert_eq!(free_on(&[]), 8 * GB);
        let unlimited =
            [("proc/self/cgroup", "0::/user.slice\n"), ("sys/fs/cgroup/user.slice/memory.max", "max\n")];
        assert_eq!(free_on(&unlimited), 8 * GB);
        assert!(free() > 0, "on this machine");
    }

    #[test]
    fn the_narrowest_group_counts() {
        let gib = |count: u64| (count * GB).to_string();
        let (two, three) = (gib(2), gib(3));
        let nested = [
            ("proc/self/cgroup", "0::/system.slice/lifeboat.service\n"),
            ("sys/fs/cgroup/system.slice/memory.max", &*two),
            ("sys/fs/cgroup/system.slice/lifeboat.service/memory.max", &*three),
        ];
        assert_eq!(free_on(&nested), 2 * GB);
    }

    #[test]
    fn pages_of_files_in_a_group_are_free() {
        let (limit, used) = ((4 * GB).to_string(), (3 * GB).to_string());
        let stat = format!("anon {GB}\nactive_file {GB}\ninactive_file {GB}\n");
        let container = [
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", &*limit),
            ("sys/fs/cgroup/memory.current", &*used),
            ("sys/fs/cgroup/memory.stat", &*stat),
        ];
        assert_eq!(free_on(&container), 3 * GB);
    }

    #[test]
    fn the_older_version_is_known_in_a_container_that_sees_the_path_of_its_host() {
        let limit = (GB / 2).to_string();
        let container = [
            (
                "proc/self/cgroup",
                "9:cpu,cpuacct:/docker/4f1c\n5:memory:/docker/4f1c\n1:name=systemd:/docker/4f1c\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", &*limit),
        ];
        assert_eq!(free_on(&container), GB / 2);
    }
}
