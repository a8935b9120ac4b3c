//! A project on disk: `lifeboat.yaml`, its environments and its runbooks, read once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::compile::{self, CompileRequest, Compiled};
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes, nearest_help};
use crate::model::outcome::Mode;
use crate::plan::Plan;
use crate::spec::{EnvironmentSpec, ProjectSpec, RunbookSpec, Spanned, find_project};
use crate::step::Registry;

/// Everything that the files of a project say.
#[derive(Debug)]
pub struct Project {
    pub spec: ProjectSpec,
    /// `lifeboat.yaml` itself.
    pub source: Arc<Source>,
    pub environments: BTreeMap<String, EnvironmentSpec>,
    pub runbooks: BTreeMap<String, RunbookSpec>,
    /// Those that come with the program, as `builtin/NAME`.
    pub shipped: BTreeMap<String, RunbookSpec>,
    /// What was wrong with the files themselves. A broken file does not keep the others from being used.
    pub problems: Diagnostics,
    /// Names that a broken environment file probably has: its file name.
    pub(crate) broken: BTreeSet<String>,
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct RunRequest<'a> {
    pub runbook: &'a str,
    pub environment: &'a str,
    pub mode: Mode,
    pub inputs: &'a Map<String, Value>,
    /// `--incident-at`, if it was given.
    pub incident_at: Option<Timestamp>,
}

impl Project {
    /// Finds the project of a directory, upwards, and reads all its files. Fails only if `lifeboat.yaml` itself
    /// cannot be used; problems of other files are in [`Project::problems`].
    pub fn load(from: &Path) -> Result<Self, Diagnostics> {
        let mut problems = Diagnostics::new();
        let Some(dir) = find_project(from) else {
            let message = format!("there is no `lifeboat.yaml` in `{}` or above it", from.display());
            problems.push(
                Diagnostic::error(codes::LB0201, message)
                    .help("change into your project, or begin one with `lifeboat init`"),
            );
            return Err(problems);
        };
        let Some((spec, source)) = ProjectSpec::read(&dir, &mut problems) else { return Err(problems) };
        let mut project = Self {
            spec,
            source,
            environments: BTreeMap::new(),
            runbooks: BTreeMap::new(),
            shipped: BTreeMap::new(),
            problems,
            broken: BTreeSet::new(),
        };
        project.read_environments();
        project.read_runbooks();
        project.problems.sort();
        Ok(project)
    }

    fn read_environments(&mut self) {
        for (path, name) in yaml_files(&self.spec.dir, "environments", &mut self.problems) {
            let Some(source) = Source::read(&path, &name, &mut self.problems) else { continue };
            let dir = path.parent().unwrap_or(&self.spec.dir);
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            match EnvironmentSpec::read(&source, dir, &mut self.problems) {
                None => {
                    self.broken.insert(stem);
                }
                Some(found) => match self.environments.get(&found.name.value) {
                    Some(first) => {
                        let diagnostic = twice("environment", &found.name.value, &first.source.name);
                        self.problems.push(diagnostic.at(&source, found.name.span.clone()));
                    }
                    None => {
                        self.environments.insert(found.name.value.clone(), found);
                    }
                },
            }
        }
    }

    fn read_runbooks(&mut self) {
        for (path, name) in yaml_files(&self.spec.dir, "runbooks", &mut self.problems) {
            let Some(source) = Source::read(&path, &name, &mut self.problems) else { continue };
            let Some(found) = RunbookSpec::read(&source, &self.spec.dir, &mut self.problems) else {
                continue;
            };
            match self.runbooks.get(&found.name.value) {
                Some(first) => {
                    let diagnostic = twice("runbook", &found.name.value, &first.source.name);
                    self.problems.push(diagnostic.at(&source, found.name.span.clone()));
                }
                None => {
                    self.runbooks.insert(found.name.value.clone(), found);
                }
            }
        }
    }

    /// Returns the files that a plan was made from, by name, with what they say.
    pub fn sources_of<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = (&'a str, &'a str)> {
        let environments = self.environments.values().map(|environment| &environment.source);
        let runbooks = self.runbooks.values().chain(self.shipped.values()).map(|runbook| &runbook.source);
        std::iter::once(&self.source)
            .chain(environments)
            .chain(runbooks)
            .filter(|source| plan.sources.contains_key(&source.name))
            .map(|source| (source.name.as_str(), source.text.as_str()))
    }

    /// Adds the runbooks that come with the program, each with its name and text. They are called `builtin/NAME`, which no
    /// runbook of a project can be, and run in every environment.
    ///
    /// # Panics
    /// If a text is no runbook: that is a mistake in the program, not in its input.
    #[must_use]
    pub fn with_shipped(mut self, files: &[(&str, &str)]) -> Self {
        for (name, text) in files {
            let name = format!("builtin/{name}");
            let source = Source::new(format!("{name}.yaml"), *text);
            let mut problems = Diagnostics::new();
            let read = RunbookSpec::read(&source, &self.spec.dir, &mut problems);
            let mut spec = read.unwrap_or_else(|| panic!("the shipped runbook `{name}` cannot be read"));
            assert!(problems.is_empty(), "the shipped runbook `{name}` is wrong");
            spec.name.value.clone_from(&name);
            let span = spec.name.span.clone();
            spec.environments = self
                .environments
                .keys()
                .map(|name| Spanned { value: name.clone(), span: span.clone() })
                .collect();
            self.shipped.insert(name, spec);
        }
        self
    }

    /// Returns a runbook of the project, or one that comes with the program.
    pub fn find_runbook(&self, name: &str) -> Option<&RunbookSpec> {
        self.runbooks.get(name).or_else(|| self.shipped.get(name))
    }

    /// Iterates over the names of all runbooks that can be run or called.
    pub fn runbook_names(&self) -> impl Iterator<Item = &String> {
        self.runbooks.keys().chain(self.shipped.keys())
    }

    /// Says whether a file that may hold this name has errors.
    pub(crate) fn is_broken(&self, name: &str) -> bool {
        self.problems_of(|file| file.contains(name)).has_errors()
    }

    /// Returns a runbook by its name.
    pub fn runbook(&self, name: &str) -> Result<&RunbookSpec, Diagnostics> {
        self.find_runbook(name).ok_or_else(|| self.none("runbook", name, self.runbook_names()))
    }

    /// Returns an environment by its name.
    pub fn environment(&self, name: &str) -> Result<&EnvironmentSpec, Diagnostics> {
        self.environments.get(name).ok_or_else(|| self.none("environment", name, self.environments.keys()))
    }

    fn none<'n>(&self, what: &str, name: &str, known: impl Iterator<Item = &'n String>) -> Diagnostics {
        // The file may be there and be broken: its problems say more than that it is missing.
        let mut out = self.problems_of(|file| file.contains(name));
        let help = nearest_help(name, &format!("{what}s"), known.map(String::as_str));
        out.push(
            Diagnostic::error(codes::LB0207, format!("the project has no {what} `{name}`")).maybe_help(help),
        );
        out
    }

    fn problems_of(&self, wanted: impl Fn(&str) -> bool) -> Diagnostics {
        let mut out = Diagnostics::new();
        for diagnostic in self.problems.iter() {
            if diagnostic.place.as_ref().is_some_and(|place| wanted(&place.source.name)) {
                out.push(diagnostic.clone());
            }
        }
        out
    }

    /// Returns what is wrong with the files that a run uses: those of the runbooks that it calls too, and those that may
    /// hold a runbook which is called and not found.
    fn problems_of_run(&self, runbook: &RunbookSpec, environment: &EnvironmentSpec) -> Diagnostics {
        let (mut found, mut missing) = (vec![runbook], Vec::new());
        let mut at = 0;
        while let Some(next) = found.get(at).copied() {
            for name in next.calls() {
                match self.find_runbook(name) {
                    None => missing.push(name),
                    Some(it) if found.iter().any(|known| known.name.value == it.name.value) => {}
                    Some(it) => found.push(it),
                }
            }
            at += 1;
        }
        let mut used = vec![&self.source.name, &environment.source.name];
        used.extend(found.iter().map(|runbook| &runbook.source.name));
        self.problems_of(|file| {
            used.iter().any(|used| *used == file) || missing.iter().any(|name| file.contains(name))
        })
    }

    /// Makes the plan of a run. Problems in files that the run does not use do not stand in its way.
    pub fn compile(&self, request: &RunRequest<'_>, registry: &Registry) -> Result<Compiled, Diagnostics> {
        let runbook = self.runbook(request.runbook)?;
        let environment = self.environment(request.environment)?;
        let mut problems = self.problems_of_run(runbook, environment);
        let compiled = compile::compile(&CompileRequest {
            project: self,
            runbook,
            environment,
            registry,
            mode: request.mode,
            inputs: request.inputs,
            incident_at: request.incident_at,
        });
        match compiled {
            Ok(Compiled { plan, warnings }) if !problems.has_errors() => {
                problems.append(warnings);
                for diagnostic in compile::fence(&plan, registry, self.environments.values()) {
                    problems.push(diagnostic);
                }
                problems.sort();
                if problems.has_errors() { Err(problems) } else { Ok(Compiled { plan, warnings: problems }) }
            }
            Ok(_) => Err(problems),
            Err(found) => {
                problems.append(found);
                problems.sort();
                Err(problems)
            }
        }
    }
}

/// Finds every problem of a project in one pass, sorted by file and position.
pub fn check_all(project: &Project, registry: &Registry) -> Diagnostics {
    let mut out = project.problems.clone();
    compile::check_all(project, registry, &mut out);
    compile::check_promises(project, registry, &mut out);
    out.sort();
    out
}

fn twice(what: &str, name: &str, first: &str) -> Diagnostic {
    Diagnostic::error(codes::LB0206, format!("there are two {what}s `{name}`"))
        .help(format!("the other one is {first}; rename one of them"))
}

/// Lists the YAML files of a folder, by name. A folder that is not there is empty.
fn yaml_files(dir: &Path, folder: &str, out: &mut Diagnostics) -> Vec<(PathBuf, String)> {
    let entries = match std::fs::read_dir(dir.join(folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            out.push(Diagnostic::error(codes::LB0202, format!("cannot read the folder `{folder}`: {error}")));
            return Vec::new();
        }
    };
    let mut files: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"))
        .map(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            (path, format!("{folder}/{name}"))
        })
        .collect();
    files.sort();
    files
}
