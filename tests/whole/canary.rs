//! Twenty secrets in nasty shapes through every way out of the program; then a search, byte by byte, over all it left.
//!
//! The forms that are looked for are made here, by other code than the program's.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aho_corasick::AhoCorasick;
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

use crate::project::Project;
use crate::receiver::Receiver;
use crate::terminal::Terminal;

const COUNT: usize = 20;

/// Shorter parts cannot be told from ordinary text.
const SHORTEST: usize = 8;

fn secrets() -> [String; COUNT] {
    let body = |seed: &str| -> String {
        (0..4)
            .map(|n| format!("{}{n}\n", base64(format!("{seed}{n}").repeat(4).as_bytes(), STANDARD)))
            .collect()
    };
    let pem = |seed: &str| format!("-----BEGIN {seed} KEY-----\n{}-----END {seed} KEY-----", body(seed));
    let account = serde_json::json!({
        "type": "service_account", "private_key": pem("ACCOUNT"), "token": "tok-from-a-document/1",
    });
    [
        pem("EC PRIVATE"),
        pem("RSA PRIVATE").replace('\n', "\r\n"),
        account.to_string(),
        r"a.*b+(c|d)[e]\d{2}$^?".into(),
        "q7$Zk!2p".into(),
        "overlap-alpha-0001".into(),
        "alpha-0001-beta-77".into(),
        "prefix-secret".into(),
        "prefix-secret-longer-tail".into(),
        "p@ss:w/rd?x=1&y=2 #z%41".into(),
        r#"it's "quoted" \back\slash"#.into(),
        "pässwörd-ключ-鍵".into(),
        "$(touch pwned); `id` && echo '".into(),
        base64(&(0..150).map(|n| (n * 37 % 251) as u8).collect::<Vec<_>>(), STANDARD),
        Sha256::digest("hex").iter().map(|byte| format!("{byte:02x}")).collect(),
        "  spaced out value  ".into(),
        "DB_PASSWORD=\"open sesame 99\"\nexport API_TOKEN=tok_4f9a8b7c6d\n# the end".into(),
        "two\twords\nsecond-line-of-it".into(),
        "{{ inputs.x }}%s%n<b>&amp;</b>".into(),
        "490231175566".into(),
    ]
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const FOR_URLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Without padding.
fn base64(bytes: &[u8], alphabet: &[u8; 64]) -> String {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let six = |bits: &[u8]| {
        (0..6).fold(0, |number, at| number << 1 | usize::from(bits.get(at).copied().unwrap_or(0)))
    };
    bits.chunks(6).map(|bits| char::from(alphabet[six(bits)])).collect()
}

/// The characters that do not depend on what stands before and after, at one of three places.
fn base64_inside(bytes: &[u8], offset: usize, alphabet: &[u8; 64]) -> String {
    let padded = [&vec![b'~'; offset], bytes].concat();
    base64(&padded, alphabet)[(offset * 8).div_ceil(6)..padded.len() * 8 / 6].to_owned()
}

fn percent(text: &str, spare: &[u8], upper: bool) -> String {
    let escaped = |byte: u8| if upper { format!("%{byte:02X}") } else { format!("%{byte:02x}") };
    let keeps = |byte: u8| byte.is_ascii_alphanumeric() || spare.contains(&byte);
    text.bytes().map(|byte| if keeps(byte) { char::from(byte).to_string() } else { escaped(byte) }).collect()
}

fn json(text: &str) -> String {
    let quoted = serde_json::to_string(text).expect("a text");
    quoted[1..quoted.len() - 1].to_owned()
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// What a program may print instead of a secret, by the name of the form.
fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let mut forms = vec![("raw", secret.to_owned())];
    forms.extend(secret.split(['\r', '\n']).map(|line| ("line", line.trim().to_owned())));
    for alphabet in [STANDARD, FOR_URLS] {
        forms.push(("base64", base64(secret.as_bytes(), alphabet)));
        forms.extend(
            (0..3).map(|offset| ("base64 inside", base64_inside(secret.as_bytes(), offset, alphabet))),
        );
    }
    let unreserved = b"-._~";
    forms.extend([
        ("url", percent(secret, b"", true)),
        ("url", percent(secret, b"", false)),
        ("url", percent(secret, unreserved, true)),
        ("url", percent(&secret.replace(' ', "+"), b"-._~+", true)),
        ("url", percent(secret, b"-._~!$&'()*,;=:@/?", true)),
        ("json", json(secret)),
        ("json", json(&json(secret))),
        ("json in ASCII", secret.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect()),
        ("hexadecimal", hex(secret)),
        ("hexadecimal", hex(secret).to_uppercase()),
        ("html", html(secret)),
        ("shell", secret.replace('\'', r"'\''")),
        ("shell", secret.replace('\'', r#"'"'"'"#)),
        ("sql", secret.replace('\'', "''")),
    ]);
    if let Ok(document) = serde_json::from_str::<serde_json::Value>(secret)
        && let Some(key) = document["private_key"].as_str()
    {
        forms.extend(key.lines().map(|line| ("line of a field", line.to_owned())));
        forms.push(("field", "tok-from-a-document/1".to_owned()));
    }
    if secret.contains("API_TOKEN") {
        forms.extend(["open sesame 99", "tok_4f9a8b7c6d"].map(|value| ("field", value.to_owned())));
    }
    forms.retain(|(_, form)| form.len() >= SHORTEST);
    forms
}

/// Finds any form of any secret.
struct Search {
    names: Vec<String>,
    needles: AhoCorasick,
}

impl Search {
    fn new(secrets: &[String], also: &str) -> Self {
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        all.insert(also.to_owned(), "the address of the channel".to_owned());
        for (n, secret) in secrets.iter().enumerate() {
            all.extend(forms(secret).into_iter().map(|(name, form)| (form, format!("secret {n} as {name}"))));
        }
        let needles = AhoCorasick::new(all.keys()).expect("few and short");
        Self { names: all.into_values().collect(), needles }
    }

    /// Returns where secrets stand, with what stands around the first of each.
    fn find(&self, place: &str, content: &[u8]) -> Vec<String> {
        let mut seen = std::collections::BTreeSet::new();
        let hits = self.needles.find_overlapping_iter(content).filter(|hit| seen.insert(hit.pattern()));
        hits.map(|hit| {
            let around = &content[hit.start().saturating_sub(60)..content.len().min(hit.end() + 20)];
            format!(
                "{place}: {}: …{}…",
                self.names[hit.pattern()],
                String::from_utf8_lossy(around).escape_debug()
            )
        })
        .collect()
    }

    fn find_below(&self, dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("a type"));
            found.extend(self.find("name of a file", entry.file_name().as_encoded_bytes()));
            if kind.is_dir() {
                found.extend(self.find_below(&path));
            } else if kind.is_file() {
                found.extend(self.find(&path.display().to_string(), &fs::read(&path).expect("a file")));
            }
        }
        found
    }
}

/// Looks at the arguments of all processes as long as it lives.
struct Watch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<(usize, Vec<String>)>>,
}

impl Watch {
    fn start(search: Arc<Search>) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new((0, Vec::new()))));
        let (stopped, sink) = (Arc::clone(&stop), Arc::clone(&seen));
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for entry in fs::read_dir("/proc").expect("processes").flatten() {
                    let Ok(arguments) = fs::read(entry.path().join("cmdline")) else { continue };
                    // What a person types is in the arguments of what the person has started.
                    let typed = [b"\0note\0".as_slice(), b"\0skip\0"];
                    if typed.iter().any(|word| arguments.windows(word.len()).any(|part| part == *word)) {
                        continue;
                    }
                    let found = search.find("arguments", &arguments);
                    let mut sink = sink.lock().expect("nobody panicked");
                    sink.0 += usize::from(arguments.windows(8).any(|part| part == b"pipefail"));
                    sink.1.extend(found);
                }
            }
        });
        Self { stop, seen }
    }

    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.seen.lock().expect("nobody panicked").clone()
    }
}

/// A web service that answers every request with an error which repeats all of it.
fn echoing() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = vec![0; 64 << 10];
            let mut length = 0;
            // Head and body may come apart; the body ends with a word of the test's own.
            while let Ok(count @ 1..) = stream.read(&mut request[length..]) {
                length += count;
                if request[..length].windows(9).any(|part| part == b"last-word") {
                    break;
                }
            }
            let head = format!(
                "HTTP/1.1 500 Broken\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n"
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&request[..length]));
        }
    });
    port
}

const PRINT: &str = r#"
mkdir -p seen
for n in $(seq -w 0 19); do
  name=S$n
  printf '%s' "${!name}" | sha256sum | cut -d' ' -f1 > seen/$n
  echo "raw $n: ${!name}"
  printf 'quoted %s: %q\n' $n "${!name}" >&2
  printf '%s' "${!name}" | base64
  echo "somebody:${!name}" | base64
  printf '%s' "${!name}" | od -An -v -tx1 | tr -d ' \n'; echo
  echo "forms $n:"; cat forms/$n; cat forms/$n >&2
done
echo "url: $DATABASE_URL"
printf 'broken \xe2\x82%s\xff\n' "$S11"
for ((i = 0; i < ${#S04}; i++)); do printf '%s' "${S04:i:1}"; done; echo
for ((i = 0; i < 3000; i++)); do printf '%s#%s' "$S13" "$S08"; done; echo
for ((i = 0; i < 4000; i++)); do printf '%s: %s\n' "$S05" "$S03"; done
touch seen/all
"#;

const STEPS: &str = r##"
- { id: bare, effect: read, run: 'env | cut -d= -f1 > names' }
- { id: print, effect: read, env: *all, run: *print }
- { id: tell, effect: read, env: *all, run: 'printf "%s and %s" "$S07" "$S00"' }
- { id: told, uses: note, with: { text: "it was {{ steps.tell.stdout }}" } }
- { id: used, effect: read, run: "printf '%s' {{ steps.tell.stdout }}" }
- { id: fail, effect: read, on_error: continue, env: *all, run: 'echo "no login with $S10" >&2; echo "$S01" >&2; exit 7' }
- id: web
  uses: http.request
  effect: read
  on_error: continue
  with:
    target: api
    post: /login
    headers: { authorization: { secret: s13 } }
    json: { password: { secret: s12 }, user: { secret: s09 }, key: { secret: s02 }, end: last-word }
- { id: query, uses: postgres.query, on_error: continue, with: { cluster: db, sql: select 1 } }
- { id: gate, uses: approval, with: { role: lead, message: 'Promote {{ steps.tell.stdout }}?' } }
- { id: word, uses: ask, with: { message: Which word?, type: string } }
- { id: hold, effect: once, on_error: hold, env: *all, run: 'echo "held by $S16"; exit 3' }
"##;

fn runbook() -> String {
    let all: String = (0..COUNT).map(|n| format!("S{n:02}: {{ secret: s{n:02} }}, ")).collect();
    let print: String = PRINT.lines().map(|line| format!("    {line}\n")).collect();
    let steps: String = STEPS.lines().map(|line| format!("  {line}\n")).collect();
    // A file without anchors: the texts are put in their places.
    let steps = steps
        .replace("*all", &format!("{{ {all}DATABASE_URL: {{ connection: db }} }}"))
        .replace("- { id: print, effect: read, env: ", "- id: print\n    effect: read\n    env: ")
        .replace(
            ", run: *print }",
            &format!("\n    run: |\n{}", print.replace("\n    ", "\n      ").replacen("    ", "      ", 1)),
        );
    format!(
        "runbook: canary\ntitle: A test\nenvironments: [sandbox]\nroles: {{ lead: Decides }}\nsteps:\n{steps}\n\
         always:\n  - {{ id: announce, uses: notify, with: {{ channel: ops, message: \"end: {{{{ steps.tell.stdout | default('') }}}} {{{{ run.summary }}}}\" }} }}\n"
    )
}

fn project(secrets: &[String; COUNT], ops: &Receiver) -> Project {
    let project = Project::empty();
    project.write(
        "lifeboat.yaml",
        "project: test\nnotices: { held: ops, waiting: ops, interrupted: ops, failed: ops, succeeded: ops, aborted: ops }\n",
    );
    project.write("ops", &ops.url());
    let mut environment = format!(
        "environment: sandbox\nresources:\n  ops: {{ kind: webhook, webhook: {{ file: ../ops }} }}\n  \
         api: {{ kind: http, url: \"http://127.0.0.1:{}\" }}\n  \
         db: {{ kind: postgres, host: 127.0.0.1, port: 1, user: app, database: members, password: {{ env: S09 }} }}\n\
         secrets:\n",
        echoing()
    );
    for (n, secret) in secrets.iter().enumerate() {
        let place = match n {
            5..=8 => format!("{{ file: ../secrets/{n:02} }}"),
            10 | 17 => format!("{{ command: [cat, ../secrets/{n:02}] }}"),
            _ => format!("{{ env: S{n:02} }}"),
        };
        environment.push_str(&format!("  s{n:02}: {place}\n"));
        project.write(&format!("secrets/{n:02}"), &format!("{secret}\n"));
        let printed: String =
            forms(secret).into_iter().map(|(name, form)| format!("{name}: {form}\n")).collect();
        project.write(&format!("forms/{n:02}"), &printed);
    }
    project.write("environments/sandbox.yaml", &environment);
    project.write("runbooks/canary.yaml", &runbook());
    project.write("tmp/keep", "");
    project
}

fn with_secrets(project: &Project, secrets: &[String; COUNT], args: &[&str]) -> Command {
    let mut command = project.command(args);
    command.env("TMPDIR", project.file("tmp")).env("LIFEBOAT_LOG", "debug");
    for (n, secret) in secrets.iter().enumerate() {
        command.env(format!("S{n:02}"), secret);
    }
    command
}

/// Drives the run to its end: people paste secrets wherever they can say something.
fn drive(project: &Project, secrets: &[String; COUNT]) -> Vec<(String, Vec<u8>)> {
    let mut terminal = Terminal::start(&mut with_secrets(project, secrets, &["run", "canary"]));
    terminal.hush();
    terminal.until_shows("Promote ***");
    terminal.type_line(&format!("note pasted {}", secrets[8]));
    terminal.type_line(&format!("approve fine with {}", secrets[8]));
    terminal.until_shows("answer VALUE");
    terminal.type_line(&format!("answer {}", secrets[4]));
    terminal.until_shows("skip");
    let note = project.run(&["note", "latest", &format!("left {}", secrets[6])]).expect(0);
    let reason = format!("by hand with {}", secrets[13]);
    let skip = project.run(&["skip", "latest", "hold", "--reason", &reason]).expect(0);
    terminal.end();
    let said = [("note", note.all()), ("skip", skip.all()), ("terminal", terminal.shown())];
    said.map(|(name, text)| (name.to_owned(), text.into_bytes())).into()
}

/// Everything that can be asked of the run afterwards.
fn asked(project: &Project, secrets: &[String; COUNT]) -> Vec<(String, Vec<u8>)> {
    let questions: [&[&str]; 9] = [
        &["report"],
        &["report", "--format", "markdown"],
        &["report", "--format", "html"],
        &["report", "--format", "json"],
        &["status", "--format", "json"],
        &["watch"],
        &["logs"],
        &["runs", "--format", "json"],
        &["evidence", "-o", "evidence.tar.gz"],
    ];
    let mut said: Vec<_> = questions
        .iter()
        .map(|words| (words.join(" "), project.run(words).expect(0).all().into_bytes()))
        .collect();
    let probed = crate::project::Ran::of(&mut with_secrets(project, secrets, &["plan", "canary", "--probe"]));
    assert!(probed.all().contains("db"), "{}", probed.all());
    said.push(("plan --probe".to_owned(), probed.all().into_bytes()));
    let mut unpacked = Vec::new();
    let archive = fs::File::open(project.file("evidence.tar.gz")).expect("an archive");
    GzDecoder::new(archive).read_to_end(&mut unpacked).expect("a compressed file");
    said.push(("the archive, unpacked".to_owned(), unpacked));
    said
}

#[test]
fn none_of_twenty_secrets_is_found_in_anything_that_a_run_leaves_or_shows() {
    let secrets = secrets();
    let ops = Receiver::answering("200 OK");
    let project = project(&secrets, &ops);
    project.run(&["check", "--deny-warnings"]).expect(0);
    let search = Arc::new(Search::new(&secrets, "hook-of-this-test"));
    // The search finds each form of each secret, wherever it stands.
    for (n, form) in secrets
        .iter()
        .enumerate()
        .flat_map(|(n, secret)| forms(secret).into_iter().map(move |form| (n, form)))
    {
        let planted = [b"\0\xff<", form.1.as_bytes(), b">\n"].concat();
        assert!(!search.find("", &planted).is_empty(), "secret {n} as {}: {}", form.0, form.1);
    }

    let watch = Watch::start(Arc::clone(&search));
    let mut said = drive(&project, &secrets);
    let (processes, arguments) = watch.end();
    let told = serde_json::to_vec(&ops.posts()).expect("posts");
    said.push(("posts".to_owned(), told));
    said.extend(asked(&project, &secrets));

    let state = project.file(".lifeboat/state");
    let mut found: Vec<String> =
        said.iter().flat_map(|(place, content)| search.find(place, content)).collect();
    found.extend(search.find_below(&state));
    found.extend(search.find_below(&project.file("tmp")));
    found.extend(arguments);
    assert!(found.is_empty(), "{} places:\n{}", found.len(), found.join("\n"));

    // The secrets were there, and what was removed stands where it was.
    assert!(project.file("seen/all").exists());
    for (n, secret) in secrets.iter().enumerate() {
        let hash =
            fs::read_to_string(project.file(&format!("seen/{n:02}"))).expect("what the script has seen");
        let given: String = Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash.trim(), given, "secret {n} did not reach the script");
    }
    assert!(processes > 0, "no script was seen while it ran");
    let names = fs::read_to_string(project.file("names")).expect("names of variables");
    assert!(!names.lines().any(|name| name.starts_with('S') && name != "SHLVL"), "inherited: {names}");
    let all: BTreeMap<_, _> =
        said.into_iter().map(|(name, text)| (name, String::from_utf8_lossy(&text).into_owned())).collect();
    for (place, text) in [
        ("logs", "raw 04: ***"),
        ("logs", "no login with ***"),
        ("logs", "held by ***"),
        ("report --format json", "it was *** and"),
        ("report --format json", "pasted ***"),
        ("report --format json", "fine with ***"),
        ("report --format json", "left ***"),
        ("report --format json", "by hand with ***"),
        ("report", "LB"),
        ("posts", "Promote ***"),
        ("posts", "end: ***"),
        ("terminal", "left ***"),
        ("the archive, unpacked", "held by ***"),
    ] {
        assert!(all[place].contains(text), "no `{text}` in {place}:\n{}", all[place]);
    }
    assert!(!project.file("pwned").exists());
}

#[test]
fn a_password_that_is_a_word_of_the_plan_spoils_no_path_and_is_warned_of() {
    let project = Project::with_steps(
        "- { id: make, effect: idempotent, env: { P: { secret: p }, Q: { secret: q } }, run: 'mkdir -p postgres/data; echo postgres/data; echo \"$P $Q\" >&2' }\n\
         - { id: use, effect: read, run: 'cd {{ steps.make.stdout }}' }",
    );
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\nsecrets: { p: { env: P }, q: { env: Q } }\n",
    );
    let ran = crate::project::Ran::of(
        project.command(&["run", "job"]).env("P", "postgres").env("Q", "hunter22-33"),
    );
    let ran = ran.expect(0);
    assert!(ran.stderr.contains("warning[LB0389]") && ran.stderr.contains("variable `P`"), "{}", ran.stderr);
    assert!(project.run(&["logs"]).stdout.contains("postgres ***"));
}

/// One secret that cannot be read where a person decides must not let the others through.
#[test]
fn what_people_write_is_cleaned_of_the_secrets_that_can_be_read_there() {
    let project = Project::with_steps("- { id: ask, uses: approval, with: { message: 'Go?' } }");
    let environment =
        "environment: sandbox\nsecrets: { kept: { file: kept }, elsewhere: { env: ELSEWHERE } }\n";
    project.write("environments/sandbox.yaml", environment);
    project.write("environments/kept", "hunter22_33\n");
    let begin = &mut project.command(&["run", "job", "--no-wait"]);
    crate::project::Ran::of(begin.env("ELSEWHERE", "correct horse")).expect(6);
    let noted = project.run(&["note", "latest", "it is hunter22_33"]).expect(0);
    assert!(
        noted.stderr.contains("warning[LB0330]") && noted.stderr.contains("ELSEWHERE"),
        "{}",
        noted.stderr
    );
    let refused = project.run(&["retry", "latest", "hunter22_33"]);
    assert_eq!(refused.exit, 7, "{}", refused.all());
    let journal = fs::read(project.run_dir().join("journal.db")).expect("a journal");
    let holds = |text: &str| journal.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("it is ***") && !holds("hunter22_33"));
}
