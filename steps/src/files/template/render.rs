//! Makes the text of a file from its template, once with its secrets and once to be shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lifeboat_engine::expr;
use lifeboat_engine::plan::hex;
use lifeboat_engine::resource::EnvValue;
use lifeboat_engine::step::{StepContext, StepError};
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::super::codes;
use crate::process::secret_value;

/// The longest template, in bytes.
const LIMIT: u64 = 1024 * 1024;

/// What a template becomes.
pub(super) struct Rendered {
    pub(super) text: Zeroizing<String>,
    /// The same with `<NAME>` in the place of each secret.
    pub(super) shown: String,
}

/// The values that a template may read.
pub(super) struct Values<'a> {
    pub(super) plain: &'a Map<String, Value>,
    pub(super) secrets: &'a BTreeMap<String, EnvValue>,
}

/// Reads the template: a path from the directory of `lifeboat.yaml`.
pub(super) fn read(ctx: &StepContext, path: &Path) -> Result<String, StepError> {
    let path = whole(ctx, path);
    let failed = |error: &std::io::Error| {
        StepError::permanent(codes::LB1440, format!("the template {} cannot be read", path.display()))
            .help("paths begin at the directory of `lifeboat.yaml`; correct `template`, or the permissions of the file")
            .caused_by(error)
    };
    let size = std::fs::metadata(&path).map_err(|error| failed(&error))?.len();
    if size > LIMIT {
        let message =
            format!("the template {} has {size} bytes, and at most 1 MiB are taken", path.display());
        return Err(
            StepError::permanent(codes::LB1440, message).help("is it a template of a configuration file?")
        );
    }
    std::fs::read_to_string(&path).map_err(|error| failed(&error))
}

pub(super) fn whole(ctx: &StepContext, path: &Path) -> PathBuf {
    ctx.info.project_dir.join(path)
}

impl Values<'_> {
    /// Renders with the values of the secrets.
    pub(super) fn render(
        &self,
        ctx: &StepContext,
        template: &str,
        path: &Path,
    ) -> Result<Rendered, StepError> {
        let mut names = self.plain.clone();
        for (name, value) in self.secrets {
            let secret: SecretString = secret_value(ctx, name, value)?;
            names.insert(name.clone(), secret.expose_secret().into());
        }
        let text = Zeroizing::new(self.text(template, &names, path)?);
        // The names are not needed any more, and neither is what they hold.
        drop(names);
        // A filter that only the real value passes through: the lines are then not shown at all.
        Ok(Rendered { shown: self.show(template, path).unwrap_or_default(), text })
    }

    /// Renders with the names of the secrets in place of their values.
    pub(super) fn show(&self, template: &str, path: &Path) -> Result<String, StepError> {
        let mut names = self.plain.clone();
        names.extend(self.secrets.keys().map(|name| (name.clone(), format!("<{name}>").into())));
        self.text(template, &names, path)
    }

    fn text(&self, template: &str, names: &Map<String, Value>, path: &Path) -> Result<String, StepError> {
        expr::render_text(template, names).map_err(|error| {
            let line = error.range.as_ref().and_then(|range| template.get(..range.start));
            let at =
                line.map_or(String::new(), |before| format!(", line {}", before.matches('\n').count() + 1));
            let message =
                format!("the template {}{at} cannot be filled in: {}", path.display(), error.message);
            let help = error.help.unwrap_or_else(|| {
                let known: Vec<_> =
                    self.plain.keys().chain(self.secrets.keys()).map(String::as_str).collect();
                format!("it may read {}; nothing was written", known.join(", "))
            });
            StepError::permanent(codes::LB1441, message).help(help)
        })
    }

    /// Refuses a name that is both.
    pub(super) fn check(&self) -> Result<(), StepError> {
        match self.secrets.keys().find(|name| self.plain.contains_key(*name)) {
            None => Ok(()),
            Some(name) => {
                let message = format!("`{name}` stands under `values` and under `secrets`");
                Err(StepError::permanent(codes::LB1441, message).help("give one of them another name"))
            }
        }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
