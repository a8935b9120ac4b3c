//! Programs and servers as steps run them, with real processes.

pub mod support;

use std::fs::File;
use std::time::{Duration, Instant};

use lifeboat_engine::model::evidence::{CreatedKind, Stream};
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_steps::process::{Command, Identity, OsUser, Server, ServerSpec, Stopped, identity};
use support::rig::Rig;

fn bash(script: &str) -> Command {
    Command::new("bash").args(["-c", script])
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(240);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn read_pid(path: &std::path::Path) -> Option<Identity> {
    Identity::of(std::fs::read_to_string(path).ok()?.trim().parse().ok()?)
}

#[tokio::test]
async fn output_is_passed_on_line_by_line_and_kept() {
    let rig = Rig::drill();
    let command = bash("echo one; echo two >&2; printf 'a\\rb'; exit 3");
    let output = command.run(&rig.bare_context()).await.unwrap();
    assert_eq!(output.exit_code, 3);
    assert_eq!(rig.reported().text(Stream::Stdout), "one\na\nb");
    assert_eq!(rig.reported().text(Stream::Stderr), "two");
    assert_eq!(output.stderr.text(), "two");
    assert!(output.warnings.is_empty(), "{:?}", output.warnings);
}

#[tokio::test]
async fn a_checked_command_shows_its_last_lines() {
    let rig = Rig::drill();
    let error = bash("echo cause >&2; exit 7").run_checked(&rig.bare_context()).await.unwrap_err();
    assert_eq!((error.kind, error.code.id), (FailureKind::Permanent, "LB1001"));
    assert_eq!(error.message, "`bash` ended with exit code 7");
    assert_eq!(error.causes, ["cause"]);
}

#[tokio::test]
async fn only_the_declared_variables_are_there() {
    let rig = Rig::drill();
    let command = Command::new("env").env("MINE", "1").secret_env("TOKEN", "s3cret".into()).quiet_stdout();
    assert!(!format!("{command:?}").contains("s3cret"));
    let output = command.run_checked(&rig.bare_context()).await.unwrap().stdout.text();
    let mut names: Vec<_> = output.lines().filter_map(|line| line.split('=').next()).collect();
    names.retain(|name| !name.starts_with("LIFEBOAT_"));
    names.sort_unstable();
    assert_eq!(names, ["HOME", "LANG", "MINE", "PATH", "TOKEN"]);
    assert!(output.contains("LIFEBOAT_STEP=bare") && output.contains("LIFEBOAT_MODE=drill"));
    assert!(rig.reported().lines.is_empty(), "quiet output is not shown");
}

#[tokio::test]
async fn standard_input_is_closed_unless_given() {
    let rig = Rig::drill();
    let empty = Command::new("cat").run_checked(&rig.bare_context()).await.unwrap();
    assert_eq!(empty.stdout.total(), 0);
    let given = Command::new("cat").stdin("hello").run_checked(&rig.bare_context()).await.unwrap();
    assert_eq!(given.stdout.text(), "hello");
}

#[tokio::test]
async fn standard_output_can_go_to_a_file() {
    let rig = Rig::drill();
    let path = rig.dir().join("out");
    let command = bash("echo data; echo note >&2").stdout_to(File::create(&path).unwrap());
    let output = command.run_checked(&rig.bare_context()).await.unwrap();
    assert_eq!(std::fs::read_to_string(path).unwrap(), "data\n");
    assert_eq!((output.stdout.total(), output.stderr.text().as_str()), (0, "note"));
}

#[tokio::test]
async fn what_cannot_be_started_is_a_clear_error() {
    let rig = Rig::drill();
    let missing = Command::new("no-such-program").run(&rig.bare_context()).await.unwrap_err();
    assert_eq!((missing.kind, missing.code.id), (FailureKind::Permanent, "LB1002"));
    let no_dir = bash("true").dir("/no/such/dir").run(&rig.bare_context()).await.unwrap_err();
    assert!(no_dir.message.contains("/no/such/dir"), "{}", no_dir.message);
}

#[tokio::test]
async fn death_by_signal_is_uncertain() {
    let rig = Rig::drill();
    let error = bash("kill -SEGV $$").run(&rig.bare_context()).await.unwrap_err();
    assert_eq!((error.kind, error.code.id), (FailureKind::Uncertain, "LB1003"));
    assert!(error.message.contains("signal 11"), "{}", error.message);
}

#[tokio::test]
async fn a_secret_file_is_for_the_program_alone_and_on_no_disk() {
    let rig = Rig::drill();
    let look = r#"cat "$FILE"; stat -L -c ' %a %U %F' "$FILE"; readlink "$FILE"; ulimit -c"#;
    let users = [
        None,
        OsUser::lookup("nobody").ok().filter(|_| OsUser::lookup("root").is_ok_and(|root| root.is_current())),
    ];
    for user in users.iter().enumerate().filter(|(at, user)| *at == 0 || user.is_some()).map(|(_, user)| user)
    {
        let user = user.as_ref().map(|user| user.name.as_str());
        let command = bash(look).dir("/").os_user(user).secret_file("FILE", "s3cret").unwrap();
        let output = command.run_checked(&rig.bare_context()).await.unwrap().stdout.text();
        let lines: Vec<_> = output.lines().collect();
        assert!(lines[0].starts_with("s3cret 600 ") && lines[0].ends_with(" regular file"), "{output}");
        assert!(user.is_none_or(|user| lines[0].contains(user)), "{output}");
        assert!(lines[1].starts_with("/memfd:"), "{output}");
        assert_eq!(lines[2], "0", "a core dump would hold it: {output}");
    }
}

#[tokio::test]
async fn cancelling_ends_the_whole_group_even_if_it_ignores_term() {
    let rig = Rig::drill();
    let pid_file = rig.dir().join("pid");
    let script = format!("trap '' TERM; sleep 600 & echo $! > {}; wait; sleep 600", pid_file.display());
    let command = bash(&script).grace(Duration::from_millis(300));
    let ctx = rig.bare_context();
    let run = tokio::spawn(async move { command.run(&ctx).await });
    until("the grandchild runs", || read_pid(&pid_file).is_some()).await;
    let grandchild = read_pid(&pid_file).unwrap();
    rig.cancel.cancel();
    let error = run.await.unwrap().unwrap_err();
    assert_eq!((error.kind, error.code.id), (FailureKind::Uncertain, "LB1004"));
    assert!(error.message.contains("killed"), "{}", error.message);
    assert!(!grandchild.is_alive(), "the grandchild survived");
}

#[tokio::test]
async fn term_comes_first_so_that_a_program_can_clean_up() {
    let rig = Rig::drill();
    let marks = rig.dir().join("marks");
    let script = format!(
        "trap 'echo cleaned >> {0}; exit 0' TERM; echo up > {0}; while :; do sleep 0.05; done",
        marks.display()
    );
    let command = bash(&script);
    let ctx = rig.bare_context();
    let run = tokio::spawn(async move { command.run(&ctx).await });
    until("it is up", || std::fs::read_to_string(&marks).is_ok_and(|text| text.contains("up"))).await;
    rig.cancel.cancel();
    let error = run.await.unwrap().unwrap_err();
    assert!(error.message.contains("ended after TERM"), "{}", error.message);
    assert_eq!(std::fs::read_to_string(&marks).unwrap(), "up\ncleaned\n");
}

#[tokio::test]
async fn dropping_the_future_kills_the_group() {
    let rig = Rig::drill();
    let pid_file = rig.dir().join("pid");
    let command = bash(&format!("sleep 600 & echo $! > {}; wait", pid_file.display()));
    let ctx = rig.bare_context();
    let run = tokio::spawn(async move { command.run(&ctx).await });
    until("the grandchild runs", || read_pid(&pid_file).is_some()).await;
    let grandchild = read_pid(&pid_file).unwrap();
    run.abort();
    until("the grandchild is gone", || !grandchild.is_alive()).await;
}

#[tokio::test]
async fn what_a_program_leaves_behind_is_ended_with_a_warning() {
    let rig = Rig::drill();
    let pid_file = rig.dir().join("pid");
    let command = bash(&format!("sleep 600 & echo $! > {}; echo done", pid_file.display()));
    let output = command.run_checked(&rig.bare_context()).await.unwrap();
    assert_eq!(output.stdout.text(), "done");
    assert!(output.warnings[0].contains("left processes running"), "{:?}", output.warnings);
    let left: u32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    until("it is gone", || Identity::of(left).is_none_or(|identity| !identity.is_alive())).await;
}

#[tokio::test]
async fn a_process_outside_the_group_cannot_keep_a_step_open() {
    let rig = Rig::drill();
    let pid_file = rig.dir().join("pid");
    let script = format!(
        "setsid bash -c 'echo $$ > {0}; exec sleep 600' & until test -s {0}; do sleep 0.05; done; echo done",
        pid_file.display()
    );
    let output = bash(&script).run_checked(&rig.bare_context()).await.unwrap();
    let escaped = read_pid(&pid_file).unwrap();
    identity::signal(&escaped, 9).unwrap();
    assert_eq!(output.stdout.text(), "done");
    assert!(output.warnings[0].contains("outside its group"), "{:?}", output.warnings);
}

#[tokio::test]
async fn output_that_is_read_slowly_is_whole_and_nobody_is_blamed_for_it() {
    let rig = Rig::drill();
    let hook = |_: Stream, line: &str| {
        if line == "one" {
            // Longer than is waited for who holds the output open.
            std::thread::sleep(Duration::from_millis(2500));
        }
    };
    let output = bash("echo one; echo two").on_line(hook).run_checked(&rig.bare_context()).await.unwrap();
    assert_eq!(output.stdout.text(), "one\ntwo");
    assert!(output.warnings.is_empty(), "{:?}", output.warnings);
}

#[tokio::test]
async fn children_hold_the_lock_that_tells_survivors() {
    let rig = Rig::drill();
    let ctx = rig.bare_context();
    let lock_path = ctx.info.children_lock.clone();
    let up = rig.dir().join("up");
    // Not bash itself but its child must hold the lock.
    let command =
        bash(&format!("sleep 600 & touch {}; wait", up.display())).grace(Duration::from_millis(300));
    let run = tokio::spawn(async move { command.run(&ctx).await });
    until("it is up", || up.exists()).await;
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    assert!(rustix::fs::flock(File::open(&lock_path).unwrap(), exclusive).is_err());
    rig.cancel.cancel();
    run.await.unwrap().unwrap_err();
    until("the lock is free", || rustix::fs::flock(File::open(&lock_path).unwrap(), exclusive).is_ok()).await;
}

#[tokio::test]
async fn a_command_runs_as_another_user_only_if_root_runs_it() {
    let rig = Rig::drill();
    let command = bash("id -un; echo $HOME").os_user(Some("daemon")).dir("/");
    let result = command.run_checked(&rig.bare_context()).await;
    if OsUser::lookup("root").is_ok_and(|root| root.is_current()) {
        let home = OsUser::lookup("daemon").unwrap().home;
        assert_eq!(result.unwrap().stdout.text(), format!("daemon\n{}", home.display()));
    } else {
        assert_eq!(result.unwrap_err().code.id, "LB1005");
    }
}

#[tokio::test]
async fn a_server_outlives_its_step_and_is_recorded_before_it_runs() {
    let rig = Rig::drill();
    let ctx = rig.bare_context();
    let spec = server_spec(&rig);
    // The sixth field of the file is the session; a bare machine has no `ps`.
    let session = "read -r -a stat < /proc/$$/stat; echo ${stat[5]}";
    let command = bash(&format!("echo up; read -r x || echo end of input; {session}; exec sleep 600"));
    let server = Server::start(command, spec, &ctx).await.unwrap();
    let recorded = rig.reported().created.remove(0);
    assert_eq!(recorded.id, "server:test");
    let CreatedKind::Process { pid, start_ticks, boot_id, stop_signal } = recorded.kind else {
        panic!("not a process")
    };
    assert_eq!(Identity { pid, start_ticks, boot_id }, server.identity);
    assert_eq!(stop_signal, 15);
    until("its log", || server.log_tail(3).len() == 3).await;
    let log = server.log_tail(3);
    assert_eq!(log[..2], ["up", "end of input"]);
    assert_eq!(log[2].trim(), server.identity.pid.to_string(), "leads a session of its own");

    drop(ctx);
    rig.cancel.cancel();
    assert!(server.identity.is_alive());
    let free = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    let lock = File::create(rig.dir().join("children.lock")).unwrap();
    assert!(rustix::fs::flock(lock, free).is_ok(), "a server does not hold the lock of the children");

    let stopped = identity::stop(&server.identity, 15, Duration::from_secs(120)).await.unwrap();
    assert_eq!(stopped, Stopped::Ended);
    assert!(!server.identity.is_alive());
    let again = identity::stop(&server.identity, 15, Duration::from_secs(1)).await.unwrap();
    assert_eq!(again, Stopped::WasGone);
}

#[tokio::test]
async fn a_server_that_ignores_its_signal_is_killed() {
    let rig = Rig::drill();
    let command = bash("trap '' TERM; echo up; while :; do sleep 0.1; done");
    let server = Server::start(command, server_spec(&rig), &rig.bare_context()).await.unwrap();
    until("its log", || !server.log_tail(1).is_empty()).await;
    let stopped = identity::stop(&server.identity, 15, Duration::from_millis(300)).await.unwrap();
    assert_eq!(stopped, Stopped::Killed);
}

#[tokio::test]
async fn what_lifeboat_was_made_to_ignore_a_server_does_not() {
    let rig = Rig::drill();
    // As `nohup` and shells do with other signals; this one matters to no other test.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
    let command = bash("grep SigIgn /proc/self/status; exec sleep 600");
    let server = Server::start(command, server_spec(&rig), &rig.bare_context()).await.unwrap();
    until("its log", || !server.log_tail(1).is_empty()).await;
    let mask =
        server.log_tail(1)[0].split_whitespace().last().map(|mask| u64::from_str_radix(mask, 16).unwrap());
    identity::stop(&server.identity, 15, Duration::from_secs(120)).await.unwrap();
    assert_eq!(mask.unwrap() & (1 << (libc::SIGUSR2 - 1)), 0, "{mask:?}");
}

#[test]
fn who_works_in_a_directory_is_found_by_the_directory_and_not_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let (here, other, link) = (dir.path().join("here"), dir.path().join("other"), dir.path().join("link"));
    std::fs::create_dir(&here).unwrap();
    std::fs::create_dir(&other).unwrap();
    std::os::unix::fs::symlink(&here, &link).unwrap();
    let sleeps = |dir: &std::path::Path| identity::working_in(dir, |name| name == "sleep").len();
    let mut child = std::process::Command::new("sleep").arg("600").current_dir(&here).spawn().unwrap();
    // A process gets the name of its program a moment after it has begun to execute it.
    let deadline = Instant::now() + Duration::from_secs(120);
    while sleeps(&here) == 0 {
        assert!(Instant::now() < deadline, "it is not found");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut found = [&here, &link, &other].map(|dir| sleeps(dir));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(found, [1, 1, 0]);

    // As in a container, where the path leads to another directory.
    let mut contained = std::process::Command::new("unshare");
    let script = "mount --bind other here && cd here && touch in && exec sleep 600";
    let contained = contained.args(["-m", "sh", "-c", script]).current_dir(dir.path()).spawn();
    let Ok(mut child) = contained else { return eprintln!("SKIPPED: there is no `unshare`") };
    while sleeps(&other) == 0 && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it neither works nor ends");
        std::thread::sleep(Duration::from_millis(10));
    }
    found = [&here, &link, &other].map(|dir| sleeps(dir));
    let ended = child.try_wait().unwrap();
    drop(child.kill());
    child.wait().unwrap();
    if ended.is_some() {
        return eprintln!("SKIPPED: only root can give a process mounts of its own");
    }
    assert_eq!(found, [0, 0, 1]);
}

#[tokio::test]
async fn a_server_without_program_is_refused_before_anything_is_recorded() {
    let rig = Rig::drill();
    let command = Command::new("no-such-program");
    let error = Server::start(command, server_spec(&rig), &rig.bare_context()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1002");
    assert!(rig.reported().created.is_empty());
}

fn server_spec(rig: &Rig) -> ServerSpec {
    ServerSpec {
        id: "server:test".into(),
        what: "test server".into(),
        log_file: rig.dir().join("logs/server.log"),
        stop_signal: 15,
    }
}
