//! Reading secrets from where they are kept.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use secrecy::SecretString;

use super::{SecretRef, Secrets, codes};
use crate::code::Code;
use crate::process::signal_group;

/// How long a command may take, a password manager that asks a server included.
const PATIENCE: Duration = Duration::from_secs(30);

/// A larger one is no secret but a mistake.
const SIZE_LIMIT: u64 = 1 << 20;

/// How much of what a failed command says is repeated.
const COMPLAINT_LIMIT: usize = 400;

/// Why a secret could not be read. Names where it is kept, never its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret from {reference} cannot be read: {reason}")]
pub struct Unresolved {
    pub reference: SecretRef,
    pub reason: String,
}

impl Unresolved {
    /// Returns the code whose page explains the error.
    pub fn code(&self) -> Code {
        codes::LB0330
    }

    /// Says what to do next.
    pub fn help(&self) -> String {
        match &self.reference {
            SecretRef::File(path) => {
                format!("look with `ls -l {}` as the user who runs lifeboat", path.display())
            }
            SecretRef::Env(name) => format!("set it where lifeboat is started: `export {name}=…`"),
            SecretRef::Command(words) => format!("try it by hand as the same user: `{}`", words.join(" ")),
        }
    }
}

impl Secrets {
    /// Reads each secret once; relative files and commands are taken from `base`, the directory of the environment
    /// file. Reports all that cannot be read. Blocks, up to 30 s for each command.
    pub fn resolve<'a>(
        references: impl IntoIterator<Item = &'a SecretRef>,
        base: &Path,
    ) -> Result<Self, Vec<Unresolved>> {
        let (secrets, problems) = Self::resolve_readable(references, base);
        if problems.is_empty() { Ok(secrets) } else { Err(problems) }
    }

    /// Reads as [`Secrets::resolve`] does, and returns those that can be read with what is said of the others: for what must go
    /// on without them, and still be cleaned of the rest.
    pub fn resolve_readable<'a>(
        references: impl IntoIterator<Item = &'a SecretRef>,
        base: &Path,
    ) -> (Self, Vec<Unresolved>) {
        let (mut secrets, mut problems) = (Self::default(), Vec::new());
        for reference in references {
            if secrets.get(reference).is_some() {
                continue;
            }
            match read(reference, base, PATIENCE) {
                Ok(value) => secrets.insert(reference.clone(), value),
                Err(reason) => problems.push(Unresolved { reference: reference.clone(), reason }),
            }
        }
        problems.dedup();
        (secrets, problems)
    }
}

fn read(reference: &SecretRef, base: &Path, patience: Duration) -> Result<SecretString, String> {
    let bytes = match reference {
        SecretRef::File(path) => read_file(&base.join(path))?,
        SecretRef::Env(name) => {
            let value = std::env::var_os(name).ok_or("it is not set")?;
            std::os::unix::ffi::OsStringExt::into_vec(value)
        }
        SecretRef::Command(words) => run(words, base, patience)?,
    };
    // The error of the conversion would carry the value.
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text")?;
    let value = match reference {
        SecretRef::Env(_) => text.as_str(),
        SecretRef::File(_) | SecretRef::Command(_) => without_last_break(&text),
    };
    if value.is_empty() {
        return Err("it is empty".to_owned());
    }
    Ok(SecretString::from(value))
}

fn without_last_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    limited(file).map_err(|error| error.to_string())
}

fn limited(source: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(SIZE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SIZE_LIMIT {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// A command with everything it started; ended when dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        signal_group(self.0.id(), Signal::KILL);
        let _ = self.0.wait();
    }
}

fn run(words: &[String], base: &Path, patience: Duration) -> Result<Vec<u8>, String> {
    let (program, arguments) = words.split_first().ok_or("it names no program")?;
    let deadline = Instant::now() + patience;
    let child = Command::new(program)
        .args(arguments)
        .current_dir(base)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let mut group = Group(child);
    let output = collect(group.0.stdout.take());
    let complaint = collect(group.0.stderr.take());
    let late = || format!("it took longer than {} s and was ended", patience.as_secs());
    let status = wait(&mut group.0, deadline).ok_or_else(late)?;
    let left = || deadline.saturating_duration_since(Instant::now());
    let output = output.recv_timeout(left()).map_err(|_| late())?.map_err(|error| error.to_string())?;
    if !status.success() {
        // What goes wrong on stderr can wait a moment, and no longer.
        let complaint = complaint.recv_timeout(Duration::from_secs(1)).ok().and_then(Result::ok);
        return Err(failure(status, &output, &complaint.unwrap_or_default()));
    }
    Ok(output)
}

/// Reads a pipe on a thread of its own, so that a full one never stops the command.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = channel();
    if let Some(pipe) = pipe {
        std::thread::spawn(move || sender.send(limited(pipe)));
    }
    receiver
}

fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Says how a command failed. What it printed may be the secret, and is removed from what it complained.
fn failure(status: ExitStatus, output: &[u8], complaint: &[u8]) -> String {
    let mut complaint = String::from_utf8_lossy(complaint).into_owned();
    for line in String::from_utf8_lossy(output).lines().map(str::trim).filter(|line| line.len() > 2) {
        complaint = complaint.replace(line, "***");
    }
    let complaint: String = complaint.trim().chars().take(COMPLAINT_LIMIT).collect();
    if complaint.is_empty() {
        format!("it ended with {status}")
    } else {
        format!("it ended with {status}: {complaint}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn file(path: &str) -> SecretRef {
        SecretRef::File(path.into())
    }

    fn command(script: &str) -> SecretRef {
        SecretRef::Command(vec!["bash".into(), "-c".into(), script.into()])
    }

    fn value(reference: &SecretRef, base: &Path) -> String {
        let secrets = Secrets::resolve([reference], base).unwrap();
        secrets.get(reference).unwrap().expose_secret().to_owned()
    }

    fn reason(reference: &SecretRef, base: &Path) -> String {
        reason_within(Duration::from_secs(240), reference, base)
    }

    fn reason_within(patience: Duration, reference: &SecretRef, base: &Path) -> String {
        read(reference, base, patience).unwrap_err()
    }

    #[test]
    fn files_variables_and_commands_give_values() {
        let dir = tempfile::tempdir().unwrap();
        for (content, expected) in
            [("s3cret\n", "s3cret"), ("a\nb\n\n", "a\nb\n"), ("x\r\n", "x"), ("y", "y")]
        {
            std::fs::write(dir.path().join("db"), content).unwrap();
            assert_eq!(value(&file("db"), dir.path()), expected);
            assert_eq!(value(&command("cat db"), dir.path()), expected, "runs in the directory of the file");
        }
        assert_eq!(value(&SecretRef::Env("PATH".into()), dir.path()), std::env::var("PATH").unwrap());
        let noisy = "head -c 300000 /dev/zero >&2; echo done";
        assert_eq!(value(&command(noisy), dir.path()), "done", "a full stderr does not stop it");
    }

    #[test]
    fn all_problems_are_reported_at_once_and_by_reference() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("empty"), "\n").unwrap();
        let references =
            [file("missing"), file("empty"), SecretRef::Env("LIFEBOAT_NO_SUCH_THING".into()), file("empty")];
        let problems = Secrets::resolve(&references, dir.path()).unwrap_err();
        let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(texts[0].contains("the file `missing`") && texts[0].contains("No such file"), "{texts:?}");
        assert!(texts[1].ends_with("it is empty"), "{texts:?}");
        assert!(texts[2].contains("LIFEBOAT_NO_SUCH_THING") && texts[2].ends_with("not set"), "{texts:?}");
        assert!(problems[2].help().contains("export"));
        std::fs::write(dir.path().join("good"), "readable").unwrap();
        let all = references.iter().chain([&references[0]]);
        let good = file("good");
        let (secrets, problems) = Secrets::resolve_readable(all.chain([&good]), dir.path());
        assert_eq!(
            secrets.redactor().text("it is readable"),
            "it is ***",
            "those that can be read are known"
        );
        assert!(problems.len() >= 3, "{problems:?}");
    }

    #[test]
    fn errors_never_hold_the_value() {
        let dir = tempfile::tempdir().unwrap();
        let text = reason(&command("echo hunter22; echo 'bad: hunter22, no key' >&2; exit 3"), dir.path());
        assert!(text.contains("exit status: 3") && text.contains("bad: ***, no key"), "{text}");
        std::fs::write(dir.path().join("binary"), b"hunter22\xff").unwrap();
        assert_eq!(reason(&file("binary"), dir.path()), "it is not UTF-8 text");
        std::fs::write(dir.path().join("large"), vec![b'x'; 2 << 20]).unwrap();
        assert!(reason(&file("large"), dir.path()).contains("1 MiB"));
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let late = |script: &str, patience: u64| {
            let text = reason_within(Duration::from_millis(patience), &command(script), dir.path());
            assert!(text.contains("took longer"), "{text}");
        };
        late("sleep 1000", 300);
        // The shell ends at once, if the machine lets it; what it leaves behind keeps the pipe open.
        let pid = [500, 10_000, 60_000].into_iter().find_map(|patience| {
            late("sleep 1000 & echo $! > pid; exit 0", patience);
            std::fs::read_to_string(dir.path().join("pid")).ok()?.trim().parse().ok()
        });
        let pid = pid.expect("the shell says what it leaves behind");
        let deadline = Instant::now() + Duration::from_secs(240);
        while crate::process::Identity::of(pid).is_some() {
            assert!(Instant::now() < deadline, "it still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let reference = SecretRef::Command(vec!["lifeboat-no-such-program".into()]);
        let problems = Secrets::resolve([&reference], Path::new("/")).unwrap_err();
        assert!(problems[0].to_string().contains("lifeboat-no-such-program"), "{}", problems[0]);
        assert!(reason(&SecretRef::Command(vec![]), Path::new("/")).contains("no program"));
    }
}
