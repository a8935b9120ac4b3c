//! Where a log is: a file, the journal of systemd, or what docker keeps of a container.

use std::path::PathBuf;

use lifeboat_engine::resource::{ResourceKind, System};
use lifeboat_engine::step::{ParamProblem, StepContext, StepError};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::codes;
use crate::service;

/// A log as a runbook names it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Named {
    file: Option<PathBuf>,
    service: Option<String>,
    unit: Option<String>,
    container: Option<String>,
}

/// A log by its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    File(PathBuf),
    Journal { unit: String },
    Container { container: String },
    Compose { service: String, dir: Option<PathBuf> },
}

const KEYS: [&str; 4] = ["file", "service", "unit", "container"];

/// Describes how a log is named.
pub(super) fn fields() -> Vec<Field> {
    vec![
        Field::optional("file", Type::Path, "A file, with those that it was rotated to."),
        Field::optional(
            "service",
            Type::reads(ResourceKind::Service),
            "A service: its unit's journal, its container's log, or its `log_file`.",
        ),
        Field::optional("unit", Type::String, "A unit of systemd, whose journal is read."),
        Field::optional("container", Type::String, "A container of docker, whose log is read."),
    ]
}

/// Says what is wrong with how a log is named, regardless of any value.
pub(super) fn problem(with: &Map<String, Value>, complete: bool) -> Option<ParamProblem> {
    let given: Vec<&str> = KEYS.into_iter().filter(|key| with.contains_key(*key)).collect();
    let message = match given.as_slice() {
        [_] => return None,
        [] if !complete => return None,
        [] => "it needs one of `file`, `service`, `unit` and `container`".to_owned(),
        many => format!("only one of {} can be given", many.join(", ")),
    };
    let param = given.last().copied().unwrap_or("file").to_owned();
    Some(ParamProblem { param, message, help: None })
}

impl Named {
    /// Finds the place of the log.
    pub(super) fn source(&self, ctx: &StepContext) -> Result<Source, StepError> {
        let no_option = |name: &str| match name.starts_with('-') || name.is_empty() {
            true => Err(unusable(format!("`{name}` cannot be the name of a unit or a container"))),
            false => Ok(name.to_owned()),
        };
        match (&self.file, &self.service, &self.unit, &self.container) {
            (Some(file), None, None, None) => Ok(Source::File(ctx.info.project_dir.join(file))),
            (None, Some(service), None, None) => of_service(ctx, service),
            (None, None, Some(unit), None) => Ok(Source::Journal { unit: no_option(unit)? }),
            (None, None, None, Some(name)) => Ok(Source::Container { container: no_option(name)? }),
            _ => Err(unusable(
                "a log is named by exactly one of `file`, `service`, `unit` and `container`".into(),
            )),
        }
    }
}

fn of_service(ctx: &StepContext, name: &str) -> Result<Source, StepError> {
    let found = ctx.system(name, |system| match system {
        System::Service(service) => Some(service),
        _ => None,
    })?;
    Ok(match service::log_of(ctx, (name, &found.manager)) {
        service::Log::File(path) => Source::File(path),
        service::Log::Journal(unit) => Source::Journal { unit },
        service::Log::Container(container) => Source::Container { container },
        service::Log::Compose { service, dir } => Source::Compose { service, dir },
    })
}

fn unusable(message: String) -> StepError {
    StepError::permanent(codes::LB1354, message).help("compare it with `lifeboat steps logs.check`")
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Journal { unit } => write!(f, "the journal of {unit}"),
            Self::Container { container } => write!(f, "the log of the container {container}"),
            Self::Compose { service, .. } => write!(f, "the log of the service {service}"),
        }
    }
}
