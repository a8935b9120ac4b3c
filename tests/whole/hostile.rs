//! Files that were built to hang the program or to fill the memory: each is refused clearly, soon and within bounds.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::project::{Project, Ran};

/// Generous, for busy machines and unoptimised builds; what hangs or explodes is far beyond them.
const MAX_CPU: f64 = 60.0;
const MAX_MEMORY: u64 = 512 * 1024 * 1024;

/// Runs the program to its end and asserts that it kept within bounds, as the kernel counts.
fn bounded(what: &str, project: &Project, args: &[&str]) -> Ran {
    let out = tempfile::tempfile().expect("a file");
    let error = tempfile::tempfile().expect("a file");
    let mut command = project.command(args);
    command.stdout(Stdio::from(out.try_clone().expect("a handle")));
    command.stderr(Stdio::from(error.try_clone().expect("a handle")));
    let mut child = command.spawn().expect("the program starts");
    let (begun, pid) = (Instant::now(), child.id());
    let (mut cpu, mut memory) = (0.0_f64, 0);
    let exit = loop {
        cpu = cpu.max(cpu_seconds(pid));
        memory = memory.max(peak_memory(pid));
        if let Some(status) = child.try_wait().expect("a child") {
            break status.code().unwrap_or(-1);
        }
        if cpu > MAX_CPU || memory > MAX_MEMORY || begun.elapsed() > Duration::from_secs(400) {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what}: {cpu:.1} s of CPU, {} MiB after {:?}", memory >> 20, begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    println!("{what}: {cpu:.2} s of CPU, {} MiB", memory >> 20);
    let ran = Ran { exit, stdout: read(out), stderr: read(error) };
    assert!(ran.all().len() < 1024 * 1024, "{what}: {} bytes of output", ran.all().len());
    assert!(!ran.all().contains("panicked"), "{what}: {}", ran.all());
    ran
}

fn read(mut file: fs::File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The seconds that a process has computed so far; 0 where the kernel does not tell.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u32 =
        after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u32>().ok()).sum();
    f64::from(ticks) / 100.0
}

/// The most memory that a process has had, in bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

fn with_file(bytes: &[u8]) -> Project {
    let project = Project::new();
    project.write("runbooks/x.yaml", "");
    fs::write(project.file("runbooks/x.yaml"), bytes).expect("a file");
    project
}

const HEAD: &str = "runbook: x\nenvironments: [sandbox]\n";
const STEPS: &str = "steps:\n  - { id: a, effect: read, run: uptime }\n";

/// Checks a file and asserts that it is refused with this code.
fn refused(what: &str, bytes: &[u8], code: &str) {
    let ran = bounded(what, &with_file(bytes), &["check"]).expect(3);
    assert!(ran.stdout.contains(&format!("error[{code}]")), "{what}: {:.2000}", ran.all());
    assert!(ran.stdout.contains("help:"), "{what}: {:.2000}", ran.all());
}

fn alias_bomb() -> String {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = vec![format!("*a{}", level - 1); 9].join(", ");
        writeln!(bomb, "a{level}: &a{level} [{before}]").expect("a text");
    }
    bomb
}

#[test]
fn the_form_of_a_file_cannot_hang_or_fill() {
    refused("alias bomb", alias_bomb().as_bytes(), "LB0102");
    refused("brackets in brackets", "[".repeat(200_000).as_bytes(), "LB0102");
    let deep: String = (0..5000).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    refused("maps in maps", deep.as_bytes(), "LB0102");
    refused("17 MiB", &vec![b'a'; 17 << 20], "LB0102");
    let lists = format!("{HEAD}title: [{}]\n", "[],".repeat(5_000_000));
    refused("five million lists", lists.as_bytes(), "LB0102");
    refused("Latin-1", b"runbook: x\ntitle: \xe4\n", "LB0102");
    refused("a NUL", b"runbook: x\ntitle: a\0b\n", "LB0101");
    refused("half a character", format!("{HEAD}title: \"\\ud800\"\n{STEPS}").as_bytes(), "LB0101");
    let long = format!("{HEAD}tilte: {}\n{STEPS}", "y".repeat(10 << 20));
    refused("a line of 10 MiB", long.as_bytes(), "LB0104");
    let digits =
        format!("{HEAD}steps:\n  - {{ id: a, uses: wait, with: {{ for: {} }} }}\n", "9".repeat(1 << 20));
    refused("a number of a million digits", digits.as_bytes(), "LB0108");
}

#[test]
fn calls_cannot_multiply_what_waits_for_each_other() {
    let wide = |name: &str, before: &str| {
        let mut text = format!(
            "runbook: {name}\nenvironments: [sandbox]\nsteps:\n{before}  - group: g\n    parallel: true\n    steps:\n"
        );
        for at in 0..4000 {
            writeln!(text, "      - {{ id: s{at}, effect: read, run: uptime }}").expect("a text");
        }
        text
    };
    let call = "  - { id: call, runbook: wide }\n";
    for (what, text) in [
        ("a wide group behind a call with a wide end", wide("x", call)),
        ("a call with a wide end, then one that begins wide", {
            format!("{HEAD}steps:\n{call}  - {{ id: again, runbook: wide }}\n")
        }),
    ] {
        let project = with_file(text.as_bytes());
        project.write("runbooks/wide.yaml", &wide("wide", ""));
        for args in [&["check"][..], &["plan", "x"], &["graph", "x"]] {
            let ran = bounded(what, &project, args).expect(3);
            assert!(ran.all().contains("error[LB0147]"), "{what}: {:.2000}", ran.all());
            assert!(
                ran.all().contains("with those of the runbooks that are called"),
                "{what}: {:.2000}",
                ran.all()
            );
        }
    }
}

#[test]
fn very_many_mistakes_are_told_in_part() {
    let mut keys = format!("{HEAD}steps:\n  - id: a\n    effect: read\n    run: uptime\n");
    let mut steps = format!("{HEAD}steps:\n");
    let mut needs = format!("{HEAD}steps:\n");
    for at in 0..100_000 {
        writeln!(keys, "    key{at}: x").expect("a text");
        writeln!(steps, "  - {{ id: s{at}, usse: note }}").expect("a text");
    }
    for at in 0..30_000 {
        writeln!(
            needs,
            "  - {{ id: s{at}, needs: [s{at}x], effect: read, run: 'echo {{{{ steps.y{at}.z }}}}' }}"
        )
        .expect("a text");
    }
    for (what, text) in [("unknown keys", keys), ("broken steps", steps), ("unknown needs", needs)] {
        let ran = bounded(what, &with_file(text.as_bytes()), &["check"]).expect(3);
        assert!(ran.stdout.contains("more problems; mend these first"), "{what}");
        let listed = bounded(what, &with_file(text.as_bytes()), &["check", "--format", "github"]);
        assert_eq!(listed.exit, 3);
    }
}

#[test]
fn expressions_cannot_hang_or_fill() {
    let parentheses = format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000));
    let filters = format!("vars.site{}", " | upper".repeat(100_000));
    for (what, expression) in [("parentheses", parentheses), ("filters", filters)] {
        let text =
            format!("{HEAD}steps:\n  - {{ id: a, if: \"{expression}\", effect: read, run: uptime }}\n");
        refused(what, text.as_bytes(), "LB0117");
    }
    let pattern =
        format!("{HEAD}inputs: {{ a: {{ pattern: '(((\\w{{100}}){{100}}){{100}}){{100}}' }} }}\n{STEPS}");
    refused("a pattern that stands for too much", pattern.as_bytes(), "LB0106");
}

#[test]
fn templates_cannot_hang_or_fill() {
    for template in [
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000000 }}",
        "{{ ('x' * 90000000) ~ ('x' * 90000000) }}",
        "{{ ('x' * 1000000) | replace('x', 'x' * 1000000) }}",
        "{{ [1] | batch(1000000000, 0) | list | length }}",
        "{{ 'x' | indent(1000000000) }}{{ 'a' | indent(1000000000, true) }}",
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('xxxxxxxx') }}",
        "{% set a %}{% for i in range(1000) %}xxxxxxxxxx{% endfor %}{% endset %}{% for i in range(10000) %}{{ a }}{% endfor %}",
        "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(200) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}",
        "{{ '%01000000000d' | format(1) }}",
    ] {
        let text = format!("{HEAD}inputs:\n  a: {{ type: string, default: \"{template}\" }}\n{STEPS}");
        let ran = bounded(template, &with_file(text.as_bytes()), &["plan", "x", "--env", "sandbox"]);
        assert!(ran.exit == 2 || ran.exit == 3, "{template}: {} {:.2000}", ran.exit, ran.all());
        assert!(ran.stderr.contains("the input `a`"), "{template}: {:.2000}", ran.all());
    }
}

#[test]
fn only_regular_files_are_read() {
    let place = |project: &Project| project.file("runbooks/y.yaml");
    type Make = fn(&std::path::Path);
    let make: [(&str, Make); 4] = [
        ("a directory", |path| fs::create_dir(path).expect("a directory")),
        ("a link to itself", |path| symlink(path, path).expect("a link")),
        ("a link to a device", |path| symlink("/dev/zero", path).expect("a link")),
        ("a pipe", |path| {
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
                .expect("a pipe");
        }),
    ];
    for (what, make) in make {
        let project = with_file(format!("{HEAD}{STEPS}").as_bytes());
        make(&place(&project));
        let ran = bounded(what, &project, &["check"]).expect(3);
        assert!(ran.stdout.contains("error[LB0202]: cannot read `runbooks/y.yaml`"), "{what}: {}", ran.all());
    }
}
