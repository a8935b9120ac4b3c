//! Logs that a program prints: the journal of systemd, and docker.

use std::io::{self, BufReader};
use std::os::fd::OwnedFd;

use jiff::Timestamp;
use lifeboat_engine::step::{StepContext, StepError};
use serde::Deserialize;

use super::codes;
use super::lines::Lines;
use super::source::Source;
use super::watch::Scan;
use crate::process::Command;
use crate::store::blocking;

/// How far such a log was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Reached {
    /// The place of the last entry of the journal.
    cursor: Option<String>,
    /// The time of the last line of docker, and how many lines had it.
    last: Option<(Timestamp, u64)>,
}

/// An entry of the journal, as far as it is asked for.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "__CURSOR")]
    cursor: Option<String>,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    at: Option<String>,
    #[serde(rename = "MESSAGE")]
    message: Option<Message>,
}

/// Text, or bytes where it is none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Text(String),
    Bytes(Vec<u8>),
    Other(serde_json::Value),
}

/// Reads what is there from a moment on, or behind what was read already.
pub(super) async fn read(
    ctx: &StepContext,
    source: &Source,
    (scan, reached): (Scan, Reached),
    since: Option<Timestamp>,
) -> Result<(Scan, Reached), StepError> {
    if let Source::Journal { unit } = source {
        known_unit(ctx, unit).await?;
    }
    let line = line(source, &reached, since);
    let no_pipe = |error: io::Error| {
        StepError::transient(codes::LB1351, format!("{source} cannot be read")).caused_by(&error)
    };
    let (reading, writing) = os_pipe::pipe().map_err(no_pipe)?;
    let is_journal = matches!(source, Source::Journal { .. });
    let mut command = program(source, &line);
    if !is_journal {
        // What a container writes to its standard error comes out there.
        command = command.stderr_to(OwnedFd::from(writing.try_clone().map_err(no_pipe)?).into());
    }
    let command = command.stdout_to(OwnedFd::from(writing).into());
    let named = source.to_string();
    let consumed = blocking(move || {
        consume(reading, scan, reached, is_journal).map_err(|error| match error {
            Broken::Io(error) => {
                StepError::transient(codes::LB1351, format!("{named} cannot be read to its end"))
                    .caused_by(&error)
            }
            Broken::Ended(error) => error,
        })
    });
    let (output, consumed) = tokio::join!(command.run(ctx), consumed);
    let (scan, reached, said) = consumed?;
    let output = output?;
    let hidden = output.stderr.text().contains("not seeing messages from other users");
    if output.exit_code != 0 || hidden {
        let message = match hidden {
            true => format!("{source} is not shown to this user"),
            false => format!(
                "{source} cannot be read: `{}` ended with exit code {}",
                line.join(" "),
                output.exit_code
            ),
        };
        let mut error = StepError::permanent(codes::LB1351, message)
            .help("correct its name, or let the user of Lifeboat read it (groups `systemd-journal`, `adm`, `docker`)");
        error.causes = if is_journal { output.stderr.last_lines(5) } else { said };
        return Err(error);
    }
    Ok((scan, reached))
}

/// The journal has nothing to say of a unit that does not exist, which would pass for a quiet one.
async fn known_unit(ctx: &StepContext, unit: &str) -> Result<(), StepError> {
    let line = ["systemctl", "show", "--property=LoadState", "--", unit];
    let output = Command::new(line[0]).args(&line[1..]).name(line.join(" ")).quiet_stdout().run(ctx).await?;
    if output.exit_code == 0 && output.stdout.text() != "LoadState=not-found" {
        return Ok(());
    }
    let mut error = StepError::permanent(codes::LB1351, format!("systemd has no unit `{unit}`"))
        .help("correct its name; `systemctl list-units --all` shows them");
    error.causes = output.stderr.last_lines(3);
    Err(error)
}

fn line(source: &Source, reached: &Reached, since: Option<Timestamp>) -> Vec<String> {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    // The last moment that was read is read again: what came in the same moment is told apart by its number.
    let from = reached.last.map(|(last, _)| last).or(since);
    let since_docker = from.map(|at| format!("--since={at}"));
    match source {
        Source::Journal { unit } => {
            let mut line =
                words(&["journalctl", "--no-pager", "--all", "--output=json", "--output-fields=MESSAGE"]);
            line.push(format!("--unit={unit}"));
            line.extend(match &reached.cursor {
                Some(cursor) => Some(format!("--after-cursor={cursor}")),
                None => since.map(|at| format!("--since=@{}", at.as_second())),
            });
            line
        }
        Source::Container { container } => {
            let mut line = words(&["docker", "logs", "--timestamps"]);
            line.extend(since_docker);
            line.push(container.clone());
            line
        }
        Source::Compose { service, .. } => {
            let mut line =
                words(&["docker", "compose", "logs", "--no-color", "--no-log-prefix", "--timestamps"]);
            line.extend(since_docker);
            line.push(service.clone());
            line
        }
        Source::File(_) => Vec::new(),
    }
}

fn program(source: &Source, line: &[String]) -> Command {
    let (program, args) = line.split_first().map_or(("", line), |(first, rest)| (first.as_str(), rest));
    let command = Command::new(program).args(args).name(line.join(" "));
    match source {
        Source::Compose { dir: Some(dir), .. } => command.dir(dir),
        _ => command,
    }
}

enum Broken {
    Io(io::Error),
    Ended(StepError),
}

/// Reads to the end of the stream. Returns the last lines without a time as well: an error of the program itself.
fn consume(
    from: os_pipe::PipeReader,
    mut scan: Scan,
    mut reached: Reached,
    is_journal: bool,
) -> Result<(Scan, Reached, Vec<String>), Broken> {
    const SAID: usize = 5;
    let mut lines = Lines::new(BufReader::new(from), scan.redactor().clone());
    let mut said = std::collections::VecDeque::new();
    // How many lines of the last moment were read before, and are read again.
    let again = reached.last;
    let mut seen = 0;
    while let Some(line) = lines.next().map_err(Broken::Io)? {
        scan.advance(line.bytes).map_err(Broken::Ended)?;
        if is_journal {
            entry(line.text, &mut scan, &mut reached);
            continue;
        }
        let (at, text) = dated(line.text);
        let Some(at) = at else {
            said.push_back(String::from_utf8_lossy(text).into_owned());
            if said.len() > SAID {
                said.pop_front();
            }
            scan.take(text, None, || "a line without a time".to_owned());
            continue;
        };
        if let Some((last, count)) = again
            && (at < last || at == last && seen < count)
        {
            seen += u64::from(at == last);
            continue;
        }
        reached.last = match reached.last {
            Some((last, count)) if last == at => Some((at, count + 1)),
            Some((last, count)) if last > at => Some((last, count)),
            _ => Some((at, 1)),
        };
        scan.take(text, Some(at), || at.to_string());
    }
    scan.cut += lines.cut;
    Ok((scan, reached, said.into()))
}

/// Takes one entry of the journal; one that is none of it is looked at as it is.
fn entry(line: &[u8], scan: &mut Scan, reached: &mut Reached) {
    let Ok(entry) = serde_json::from_slice::<Entry>(line) else {
        return scan.take(line, None, || "a line that is no entry".to_owned());
    };
    let micros = entry.at.and_then(|at| at.parse().ok());
    let at = micros.and_then(|micros| Timestamp::from_microsecond(micros).ok());
    reached.cursor = entry.cursor.or(reached.cursor.take());
    let text = match entry.message {
        Some(Message::Text(text)) => text.into_bytes(),
        Some(Message::Bytes(bytes)) => bytes,
        // One message with several texts.
        Some(Message::Other(other)) => other.to_string().into_bytes(),
        None => Vec::new(),
    };
    scan.take(&text, at, || at.map_or_else(|| "an entry".to_owned(), |at| at.to_string()));
}

/// Splits a line of docker into its time and what the program wrote.
fn dated(line: &[u8]) -> (Option<Timestamp>, &[u8]) {
    let space = memchr::memchr(b' ', line).unwrap_or(line.len());
    let at = std::str::from_utf8(&line[..space]).ok().and_then(|text| text.parse().ok());
    match at {
        Some(at) => (Some(at), line.get(space + 1..).unwrap_or_default()),
        None => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_asked_with_exactly_these_commands() {
        let at: Timestamp = "2026-11-22T00:22:41.5Z".parse().unwrap();
        let of = |source: &Source, reached: &Reached| line(source, reached, Some(at)).join(" ");
        let (none, unit) = (Reached::default(), Source::Journal { unit: "shop".into() });
        assert_eq!(
            of(&unit, &none),
            "journalctl --no-pager --all --output=json --output-fields=MESSAGE --unit=shop --since=@1795306961"
        );
        let later = Reached { cursor: Some("s=1;i=2".into()), ..Reached::default() };
        assert!(of(&unit, &later).ends_with("--unit=shop --after-cursor=s=1;i=2"), "{}", of(&unit, &later));
        let container = Source::Container { container: "web".into() };
        assert_eq!(of(&container, &none), "docker logs --timestamps --since=2026-11-22T00:22:41.5Z web");
        let compose = Source::Compose { service: "web".into(), dir: None };
        assert_eq!(
            of(&compose, &none),
            "docker compose logs --no-color --no-log-prefix --timestamps --since=2026-11-22T00:22:41.5Z web"
        );
    }
}
