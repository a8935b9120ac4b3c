//! `schedule`: what timers of the system start, for people, for cron and for systemd. Lifeboat has no daemon.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use lifeboat_engine::diagnostic::is_secret_key;
use lifeboat_engine::project::Project;
use lifeboat_engine::spec::{ScheduleSpec, When};
use lifeboat_engine::yaml::Node;

use crate::args::{ScheduleArgs, Timer};
use crate::exit::{Exit, Failure, Outcome};
use crate::{person, render};

/// Prints or writes what timers start.
pub(crate) fn schedule(project: &Project, args: &ScheduleArgs) -> Outcome {
    let entries = &project.spec.schedules;
    if entries.is_empty() {
        crate::say::say!("lifeboat.yaml has no `schedules`");
    }
    let commands = entries.iter().map(|entry| Entry::of(project, entry)).collect::<Result<Vec<_>, _>>()?;
    match (args.timer, &args.write) {
        (None, _) => commands.iter().for_each(|entry| crate::say::putln!("{}", entry.line())),
        (Some(Timer::Cron), Some(_)) => {
            return Err(Failure::usage("a crontab has one place: print it, and add it with `crontab -e`"));
        }
        (Some(Timer::Cron), None) => {
            for entry in &commands {
                crate::say::putln!("{}", entry.cron()?);
            }
        }
        (Some(Timer::Systemd), dir) => {
            for entry in &commands {
                entry.systemd(dir.as_deref())?;
            }
        }
    }
    Ok(Exit::Success)
}

/// One thing that a timer starts.
struct Entry<'a> {
    schedule: &'a ScheduleSpec,
    project_dir: &'a Path,
    /// The program and its arguments.
    words: Vec<String>,
}

impl<'a> Entry<'a> {
    fn of(project: &'a Project, schedule: &'a ScheduleSpec) -> Result<Self, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::internal("this program does not know where it is").caused_by(&error))?;
        let verb = if schedule.drill { "drill" } else { "run" };
        let mut words = vec![program.display().to_string(), verb.to_owned()];
        words.push(schedule.runbook.value.clone());
        // What a timer starts takes that moment for the incident, and nobody is there to be waited for.
        for word in ["--env", &schedule.environment.value, "--incident-at", "now", "--no-wait"] {
            words.push(word.to_owned());
        }
        for entry in schedule.inputs.iter().filter_map(|entry| entry.value.mapping()).flatten() {
            if is_secret_key(&entry.key.text) {
                return Err(Failure::new(
                    Exit::Invalid,
                    format!("the input `{}` looks like a secret", entry.key.text),
                )
                .help("secrets belong into `secrets:` of an environment, never into a crontab"));
            }
            words.push("-i".to_owned());
            words.push(format!("{}={}", entry.key.text, argument(&entry.value)));
        }
        Ok(Self { schedule, project_dir: &project.spec.dir, words })
    }

    /// `lifeboat-drill-restore-staging`.
    fn name(&self) -> String {
        let verb = if self.schedule.drill { "drill-" } else { "" };
        let runbook = self.schedule.runbook.value.replace('/', "-");
        format!("lifeboat-{verb}{runbook}-{}", self.schedule.environment.value)
    }

    fn line(&self) -> String {
        let when = match self.schedule.when {
            When::At { hour, minute } => format!("every day at {hour:02}:{minute:02}"),
            When::Every(span) => format!("every {span}"),
        };
        let verb = if self.schedule.drill { "drill" } else { "run" };
        format!("{when}: {verb} {} in {}", self.schedule.runbook.value, self.schedule.environment.value)
    }

    fn cron(&self) -> Result<String, Failure> {
        let when = cron_time(self.schedule.when).ok_or_else(|| {
            Failure::usage(format!("cron cannot do this: {}", self.line()))
                .help("use an interval that divides an hour or a day, or `lifeboat schedule systemd`")
        })?;
        let words: Vec<_> = self.words.iter().map(|word| shell_word(word)).collect();
        let command =
            format!("cd {} && {}", shell_word(&self.project_dir.display().to_string()), words.join(" "));
        // cron takes a percent sign for a line break.
        Ok(format!("{when} {}", command.replace('%', "\\%")))
    }

    fn systemd(&self, dir: Option<&Path>) -> Result<(), Failure> {
        for (suffix, text) in [("service", self.service()), ("timer", self.timer())] {
            let file = format!("{}.{suffix}", self.name());
            match dir {
                None => crate::say::put!("# {file}\n{text}\n"),
                Some(dir) => {
                    std::fs::create_dir_all(dir).map_err(|error| {
                        Failure::new(Exit::Failed, format!("`{}` cannot be made", dir.display()))
                            .caused_by(&error)
                    })?;
                    let path: PathBuf = dir.join(&file);
                    render::write(&path, &text)?;
                    crate::say::putln!("{}", path.display());
                }
            }
        }
        Ok(())
    }

    fn service(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|word| unit_word(word)).collect();
        let uid = rustix::process::getuid().as_raw();
        let user = person::name_of(uid).unwrap_or_else(|| uid.to_string());
        let mut text = format!("[Unit]\nDescription=Lifeboat: {}\n\n[Service]\nType=oneshot\n", self.line());
        let _ = writeln!(text, "User={user}");
        let _ =
            writeln!(text, "WorkingDirectory={}", self.project_dir.display().to_string().replace('%', "%%"));
        let _ = writeln!(text, "ExecStart={}", words.join(" "));
        text
    }

    fn timer(&self) -> String {
        let when = match self.schedule.when {
            When::At { hour, minute } => {
                format!("OnCalendar=*-*-* {hour:02}:{minute:02}:00\nPersistent=true\n")
            }
            When::Every(span) => {
                let seconds = span.0.as_secs();
                format!("OnActiveSec={seconds}s\nOnUnitActiveSec={seconds}s\n")
            }
        };
        format!(
            "[Unit]\nDescription=Lifeboat: {}\n\n[Timer]\n{when}\n[Install]\nWantedBy=timers.target\n",
            self.line()
        )
    }
}

/// Writes an input as `-i` takes it: text as it is, lists and maps as JSON.
fn argument(node: &Node) -> String {
    match node.text() {
        Some(text) => text.to_owned(),
        None => json_of(node).to_string(),
    }
}

fn json_of(node: &Node) -> serde_json::Value {
    if let Some(items) = node.sequence() {
        return items.iter().map(json_of).collect();
    }
    if let Some(entries) = node.mapping() {
        let entries = entries.iter().map(|entry| (entry.key.text.clone(), json_of(&entry.value)));
        return serde_json::Value::Object(entries.collect());
    }
    let text = node.text().unwrap_or_default();
    let plain = node.scalar().is_some_and(|scalar| scalar.plain);
    let read = if plain { serde_json::from_str(text).ok() } else { None };
    read.unwrap_or_else(|| text.into())
}

/// Returns the five fields of a crontab, if they can say it.
fn cron_time(when: When) -> Option<String> {
    let span = match when {
        When::At { hour, minute } => return Some(format!("{minute} {hour} * * *")),
        When::Every(span) => span,
    };
    let minutes = span.0.as_secs() / 60;
    match minutes {
        1 => Some("* * * * *".to_owned()),
        2..60 if 60 % minutes == 0 => Some(format!("*/{minutes} * * * *")),
        60 => Some("0 * * * *".to_owned()),
        1440 => Some("0 0 * * *".to_owned()),
        10080 => Some("0 0 * * 0".to_owned()),
        61..1440 if minutes % 60 == 0 && 24 % (minutes / 60) == 0 => {
            Some(format!("0 */{} * * *", minutes / 60))
        }
        _ => None,
    }
}

fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Quotes a word for `ExecStart`, where `%` and `$` mean something.
fn unit_word(word: &str) -> String {
    let text = word.replace('%', "%%").replace('$', "$$");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n"))
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_engine::value::Span;

    use super::*;

    #[test]
    fn cron_says_what_divides_an_hour_or_a_day() {
        let every = |text| cron_time(When::Every(Span::parse(text).unwrap()));
        assert_eq!(every("15m").as_deref(), Some("*/15 * * * *"));
        assert_eq!(every("6h").as_deref(), Some("0 */6 * * *"));
        assert_eq!(every("1d").as_deref(), Some("0 0 * * *"));
        assert_eq!(every("45m"), None);
        assert_eq!(every("90d"), None);
        assert_eq!(cron_time(When::At { hour: 2, minute: 30 }).as_deref(), Some("30 2 * * *"));
    }

    #[test]
    fn words_keep_their_meaning() {
        assert_eq!(shell_word("it's 100%"), r"'it'\''s 100%'");
        assert_eq!(unit_word("a $b 100%"), "\"a $$b 100%%\"");
        assert_eq!(unit_word("plain=1"), "plain=1");
    }
}
