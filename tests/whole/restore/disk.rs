//! Disks and rights that change under a restore, as far as an ordinary user can do that to himself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::machine::command;
use super::remote::{POSTGRES, Remote};
use super::world::World;
use crate::project::Ran;
use crate::proxy::eventually;

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

/// A world that restores the database from a directory.
fn world() -> World {
    let world = World::new();
    world.write("project/runbooks/restore.yaml", &POSTGRES.replace("DIR", &world.dir.display().to_string()));
    world.write("go", "");
    world
}

/// The only file below a directory of the store whose name begins like this.
fn stored(world: &World, dir: &str, name: &str) -> PathBuf {
    let (mut found, mut open) = (Vec::new(), vec![world.file("store").join(dir)]);
    while let Some(dir) = open.pop() {
        for path in fs::read_dir(dir).expect("a directory").flatten().map(|entry| entry.path()) {
            match path.is_dir() {
                true => open.push(path),
                false if path.file_name().is_some_and(|it| it.to_string_lossy().starts_with(name)) => {
                    found.push(path)
                }
                false => {}
            }
        }
    }
    assert_eq!(found.len(), 1, "{name}: {found:?}");
    found.remove(0)
}

/// Asserts that the run is held at a step, with this code and these words, and goes on when that is mended.
fn is_held_and_goes_on(
    world: &World,
    held: &Ran,
    (step, code, words): (&str, &str, &[&str]),
    mend: impl FnOnce(),
) {
    assert_eq!(held.exit, 6, "{}", held.all());
    let said = held.all().split_whitespace().collect::<Vec<_>>().join(" ");
    for word in [&[code, step], words].concat() {
        assert!(said.contains(word), "no {word:?} in {}", held.all());
    }
    mend();
    world.run(&["retry", "latest", step]).expect(0);
    world.run(&["resume"]).expect(0);
    world.assert_payments();
    world.assert_nothing_runs();
    assert_eq!(fs::read_dir(world.file("sandbox")).expect("a directory").count(), 0, "nothing is left");
}

#[test]
fn a_directory_that_may_not_be_written_is_named() {
    let world = world();
    let sandbox = world.file("sandbox");
    allow(&sandbox, 0o555);
    let held = world.drill(&[]);
    let words: &[&str] = &[&sandbox.display().to_string(), "Permission denied"];
    is_held_and_goes_on(&world, &held, ("base", "LB1259", words), || allow(&sandbox, 0o755));
}

#[test]
fn an_archive_that_may_not_be_read_is_named() {
    let world = world();
    let base = stored(&world, "base", "base.tar");
    allow(&base, 0);
    let held = world.drill(&[]);
    let words: &[&str] = &["base.tar", "Permission denied"];
    is_held_and_goes_on(&world, &held, ("choose", "LB1103", words), || allow(&base, 0o644));
}

/// It is there, so its absence is not the end of the log.
#[test]
fn a_segment_that_may_not_be_read_is_named() {
    let world = world();
    let segment = stored(&world, "wal", &world.source.middle_segment);
    allow(&segment, 0);
    let held = world.drill(&[]);
    let words: &[&str] = &[&world.source.middle_segment, "Permission denied"];
    is_held_and_goes_on(&world, &held, ("recover", "LB1266", words), || allow(&segment, 0o644));
}

#[test]
fn rights_that_change_while_a_backup_is_unpacked_are_named() {
    let remote = Remote::postgres();
    remote.hold("GET *base.tar");
    let mut running = remote.world.start_drill(&[]);
    remote.until_held(&mut running);
    let data_dir = remote.world.file("sandbox/postgres");
    eventually("the directory is taken", || data_dir.exists());
    allow(&data_dir, 0o500);
    remote.proxy.heal();
    let held = running.end();
    let words: &[&str] = &[&data_dir.display().to_string(), "Permission denied"];
    is_held_and_goes_on(&remote.world, &held, ("base", "LB1259", words), || {
        if data_dir.exists() {
            allow(&data_dir, 0o700);
        }
    });
    remote.assert_as_before();
}

/// What an ordinary user has in place of a full disk. Files of more than so many bytes cannot be written: the kernel ends who
/// tries, which is a crash like any other.
#[test]
fn a_limit_on_the_size_of_files_leaves_a_run_that_is_resumed_without_it() {
    let world = world();
    let incident = world.source.target.to_string();
    let mut limited = command("sh", &world.file("project"));
    let script = "ulimit -c 0; ulimit -f 4096; exec \"$@\"";
    limited.args(["-c", script, "sh"]).arg(&world.source.lifeboat);
    limited.args(["drill", "restore", "--env", "sandbox", "--incident-at", &incident]);
    let ran = Ran::of(&mut limited);
    assert_ne!(
        ran.exit,
        0,
        "two megabytes are not enough for the program that the server runs: {}",
        ran.all()
    );
    assert!(!world.file("project/found").exists());
    if ran.exit == 6 {
        world.run(&["retry", "latest", "recover"]).expect(0);
    }
    world.run(&["resume"]).expect(0);
    world.assert_payments();
    world.assert_nothing_runs();
    assert_eq!(fs::read_dir(world.file("sandbox")).expect("a directory").count(), 0, "nothing is left");
}

/// Nobody can be told anything, and the restore goes on all the same.
#[test]
fn a_restore_ends_although_nothing_can_be_printed() {
    let world = world();
    let incident = world.source.target.to_string();
    let full = || Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").expect("opens"));
    let mut drill = world.command(&["drill", "restore", "--env", "sandbox", "--incident-at", &incident]);
    let status = drill.stdout(full()).stderr(full()).status().expect("runs");
    assert_eq!(status.code(), Some(0));
    world.assert_payments();
    assert_eq!(world.report()["outcome"]["state"], "succeeded");
}
