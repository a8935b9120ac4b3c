//! The inputs of a run: from the command line, from a file, and asked for where a person can answer.

use std::fmt::Write;
use std::path::Path;

use lifeboat_engine::diagnostic::{Diagnostics, Source};
use lifeboat_engine::expr::{InputDecl, bind_input, has_template};
use lifeboat_engine::model::Mode;
use lifeboat_engine::project::Project;
use lifeboat_engine::spec::{EnvironmentSpec, RunbookSpec, read_inputs};
use lifeboat_engine::value::Type;
use serde_json::{Map, Value, json};

use crate::args::Target;
use crate::commands::execute::{Line, ask_line};
use crate::commands::files::refuse;
use crate::exit::{Exit, Failure};

/// Where inputs come from, and for what.
pub(crate) struct Wanted<'a> {
    pub(crate) project: &'a Project,
    pub(crate) target: &'a Target,
    pub(crate) environment: &'a str,
    pub(crate) mode: Mode,
}

/// Inputs as given, and, where some are missing and nobody can be asked, the command that would give them all.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) values: Map<String, Value>,
    pub(crate) command: Option<String>,
}

impl Wanted<'_> {
    /// Takes inputs from file and command line, the latter first, and asks in a terminal for those that are missing.
    pub(crate) fn gather(&self) -> Result<Given, Failure> {
        let runbook = self.project.runbook(&self.target.runbook).map_err(|problems| refuse(&problems))?;
        let mut values = match &self.target.input_file {
            Some(path) => from_file(path, runbook)?,
            None => Map::new(),
        };
        for given in &self.target.inputs {
            let Some((key, value)) = given.split_once('=') else {
                return Err(Failure::usage(format!("`{given}` is no input")).help("write -i key=value"));
            };
            values.insert(key.trim().to_owned(), Value::String(value.to_owned()));
        }
        let missing: Vec<_> = runbook
            .inputs
            .iter()
            .map(|input| &input.decl)
            .filter(|decl| !values.contains_key(&decl.name) && self.has_no_default(decl))
            .collect();
        // A mistake in a name would be told only after all questions.
        let unknown = |name: &String| runbook.inputs.iter().all(|input| &input.decl.name != name);
        if missing.is_empty() || values.keys().any(unknown) {
            return Ok(Given { values, command: None });
        }
        self.ask_for(&missing, values)
    }

    /// A default that reads the incident is none as long as nobody has said when that was.
    fn has_no_default(&self, decl: &InputDecl) -> bool {
        match &decl.default {
            None => true,
            Some(Value::String(text)) => self.target.incident_at.is_none() && reads_incident(text),
            Some(_) => false,
        }
    }

    fn ask_for(&self, missing: &[&InputDecl], mut values: Map<String, Value>) -> Result<Given, Failure> {
        let environment = self.project.environment(self.environment).map_err(|problems| refuse(&problems))?;
        for (at, decl) in missing.iter().enumerate() {
            match question(decl, environment, (at + 1, missing.len()))? {
                Some(value) => {
                    values.insert(decl.name.clone(), value);
                }
                None => return Ok(Given { values, command: Some(self.command(&missing[at..])) }),
            }
        }
        Ok(Given { values, command: None })
    }

    /// Returns the whole command with everything that was given and a place for what is missing.
    fn command(&self, missing: &[&InputDecl]) -> String {
        let verb = if self.mode == Mode::Drill { "drill" } else { "run" };
        let mut command = format!("lifeboat {verb} {}", self.target.runbook);
        if let Some(environment) = &self.target.env {
            let _ = write!(command, " --env {environment}");
        }
        for given in &self.target.inputs {
            let _ = write!(command, " -i {}", quoted(given));
        }
        if let Some(path) = &self.target.input_file {
            let _ = write!(command, " --input-file {}", quoted(&path.display().to_string()));
        }
        for decl in missing {
            let _ = write!(command, " -i {}=…", decl.name);
        }
        command
    }
}

fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn reads_incident(text: &str) -> bool {
    has_template(text) && text.contains("incident")
}

fn from_file(path: &Path, runbook: &RunbookSpec) -> Result<Map<String, Value>, Failure> {
    let mut problems = Diagnostics::new();
    let declared: Vec<_> = runbook.inputs.iter().map(|input| input.decl.clone()).collect();
    // Like a path on the command line, one in the file starts where the person stands.
    let dir = std::env::current_dir().unwrap_or_default();
    let read = Source::read(path, &path.display().to_string(), &mut problems)
        .and_then(|source| read_inputs(&source, &dir, &declared, &mut problems));
    match read {
        Some(values) if !problems.has_errors() => Ok(values),
        _ => {
            problems.sort();
            refuse(&problems);
            Err(Failure::said(Exit::Usage))
        }
    }
}

/// Asks for one input until what is answered can be used. `None` if nobody can be asked.
fn question(
    decl: &InputDecl,
    environment: &EnvironmentSpec,
    count: (usize, usize),
) -> Result<Option<Value>, Failure> {
    let choices = choices(decl, environment);
    let mut prompt = introduction(decl, &choices, count);
    loop {
        let line = match ask_line(&prompt) {
            Line::Nobody => return Ok(None),
            Line::Closed => {
                return Err(Failure::new(Exit::Interrupted, "no answer; nothing has happened"));
            }
            Line::Text(line) => line,
        };
        match read_answer(decl, &choices, &line) {
            Ok(value) => return Ok(Some(value)),
            Err(problem) => prompt = format!("{problem}\n{}: ", decl.name),
        }
    }
}

/// Returns the words that can be chosen, if there is a list of them.
fn choices(decl: &InputDecl, environment: &EnvironmentSpec) -> Vec<String> {
    match &decl.ty {
        Type::Choice(words) => words.clone(),
        Type::Boolean => vec!["true".to_owned(), "false".to_owned()],
        Type::Resource { kinds, .. } => environment
            .resources
            .iter()
            .filter(|(_, spec)| kinds.contains(&spec.resource.kind()))
            .map(|(name, _)| name.clone())
            .collect(),
        _ => Vec::new(),
    }
}

fn introduction(decl: &InputDecl, choices: &[String], (at, of): (usize, usize)) -> String {
    let mut text = format!("\ninput {at} of {of}: {}", decl.name);
    if !decl.description.is_empty() {
        let _ = write!(text, ": {}", decl.description);
    }
    text.push('\n');
    if choices.is_empty() {
        let _ = writeln!(text, "  {}", hint(decl));
    }
    for (at, choice) in choices.iter().enumerate() {
        let _ = writeln!(text, "  {}) {choice}", at + 1);
    }
    let how = if choices.is_empty() { "" } else { " (number or word)" };
    let _ = write!(text, "{}{how}: ", decl.name);
    text
}

fn hint(decl: &InputDecl) -> String {
    let mut hint = match &decl.ty {
        Type::Timestamp => "a moment with its zone, such as 2026-11-21T03:12:00Z".to_owned(),
        Type::Duration => "a duration with its unit, such as 90s or 1h 30m".to_owned(),
        Type::List(_) => format!("a {}, as JSON: [\"a\", \"b\"]", decl.ty),
        Type::Map(_) => format!("a {}, as JSON: {{\"a\": 1}}", decl.ty),
        ty => ty.in_words(),
    };
    if let Some(pattern) = &decl.pattern {
        let _ = write!(hint, " that matches {pattern}");
    }
    if decl.default.as_ref().and_then(Value::as_str).is_some_and(reads_incident) {
        hint.push_str("; or start again with --incident-at TIME, from which it follows");
    }
    hint
}

/// Brings an answer to its type, or says why it cannot be used.
fn read_answer(decl: &InputDecl, choices: &[String], line: &str) -> Result<Value, String> {
    let line = line.trim();
    let numbered = line.parse::<usize>().ok().and_then(|number| choices.get(number.checked_sub(1)?));
    let text = numbered.map_or(line, String::as_str);
    if text.is_empty() {
        return Err(format!("`{}` has no default: it needs a value", decl.name));
    }
    if !choices.is_empty() && !choices.iter().any(|choice| choice == text) {
        return Err(format!("`{text}` is not one of {}", choices.join(", ")));
    }
    // The text stays as it was typed, so that a run records what a command line would have given.
    bind_input(decl, Some(&json!(text)), &Map::new()).map(|_| json!(text)).map_err(|problem| problem.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decl(ty: Type) -> InputDecl {
        InputDecl { name: "x".into(), ty, pattern: None, default: None, description: "What it is".into() }
    }

    #[test]
    fn a_choice_is_taken_by_number_or_word() {
        let choices = ["full".to_owned(), "quick".to_owned()];
        let decl = decl(Type::choice(&["full", "quick"]));
        assert_eq!(read_answer(&decl, &choices, " 2 "), Ok(json!("quick")));
        assert_eq!(read_answer(&decl, &choices, "full"), Ok(json!("full")));
        assert!(read_answer(&decl, &choices, "3").unwrap_err().contains("full, quick"));
        assert!(read_answer(&decl, &choices, "0").is_err());
    }

    #[test]
    fn an_answer_is_checked_at_once() {
        assert!(read_answer(&decl(Type::Duration), &[], "90").unwrap_err().contains("no unit"));
        assert_eq!(read_answer(&decl(Type::Duration), &[], "90s"), Ok(json!("90s")));
        let tag = InputDecl { pattern: Some(r"v\d+".into()), ..decl(Type::String) };
        assert!(read_answer(&tag, &[], "main").unwrap_err().contains("does not match"));
        assert!(read_answer(&tag, &[], "").unwrap_err().contains("needs a value"));
    }

    #[test]
    fn what_a_shell_would_change_is_quoted() {
        assert_eq!(quoted("a=b c"), "'a=b c'");
        assert_eq!(quoted("tag=v1.2"), "tag=v1.2");
        assert_eq!(quoted("a='x'"), r"'a='\''x'\'''");
    }
}
