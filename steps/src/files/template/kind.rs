use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Created, CreatedKind, Stream};
use lifeboat_engine::resource::EnvValue;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::codes;
use super::lines::changes;
use super::place::{self, Place, There};
use super::render::{self, Rendered, Values, sha256};
use crate::process::{Command, OsUser};
use crate::sql::done;
use crate::store::blocking;

/// Writes a file from a template.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Template;

#[derive(Deserialize)]
struct Params {
    template: PathBuf,
    to: PathBuf,
    #[serde(default)]
    values: Map<String, Value>,
    #[serde(default)]
    secrets: BTreeMap<String, EnvValue>,
    mode: String,
    owner: Option<String>,
    #[serde(default)]
    check: Vec<String>,
    dry_run: bool,
}

impl Params {
    fn values(&self) -> Values<'_> {
        Values { plain: &self.values, secrets: &self.secrets }
    }

    fn place(&self, ctx: &StepContext) -> Result<Place, StepError> {
        let mode = place::mode(&self.mode).map_err(|why| {
            StepError::permanent(codes::LB1442, why)
                .help("secrets are best readable by their owner alone: '0600'")
        })?;
        let owner = self.owner.as_deref().map(OsUser::lookup).transpose()?;
        Place::of(&render::whole(ctx, &self.to), &ctx.info.run.short(), (mode, owner))
    }
}

/// What an attempt records before it publishes: the checksum of the file, and whether one was there.
const WRITTEN: &str = "written";
/// Stands in `check` for the file that is looked at.
const FILE: &str = "%s";

const DOC: &str = "\
Fills a template in and writes the result in one rename: the file is the old one or the new one, never half of either, and it \
can be read by nobody but its owner from its first byte on. What was there is kept as `.pre-RUN`; a file that is right already, mode and \
owner included, stays as it is.

The template is a file of the project (`{{ name }}`, `{% if %}`, `{% for %}`, filters as everywhere); it reads what stands under \
`values` and `secrets`, and nothing else. A name that is not there is an error, and so is a value without one obvious text. \
`secrets` take `{ secret: NAME }` and `{ connection: RESOURCE, database: NAME }`, as `env` does. Their values are in the file and \
nowhere else: the journal has the SHA-256 of the file, and `changes` shows new lines with `<NAME>` in the place of each secret, and \
lines of the file that is there by their numbers only.

`check` is a command that must exit with 0 before the file gets its name; `%s` stands for it: `[nginx, -t, -c, '%s']`. `dry_run` does all \
of this but the rename. A symbolic link is never followed and never replaced.

Undo puts the earlier file back, unless somebody else has changed it since.";

#[async_trait]
impl StepKind for Template {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "files.template",
            "Writes a configuration file from a template.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required(
            "template",
            Type::Path,
            "The template, from the directory of `lifeboat.yaml`.",
        ))
        .param(Field::required("to", Type::Path, "The file."))
        .param(Field::optional("values", Type::map(Type::Any), "What the template reads."))
        .param(Field::optional("secrets", Type::EnvMap, "Secrets and connections that the template reads."))
        .param(Field::defaulted("mode", Type::String, "0600", "Its permissions, in quotes."))
        .param(Field::optional(
            "owner",
            Type::String,
            "The system user that owns it; who runs Lifeboat if absent.",
        ))
        .param(Field::optional(
            "check",
            Type::list(Type::String),
            "A command that finds mistakes in it: `%s` is the file.",
        ))
        .param(Field::defaulted("dry_run", Type::Boolean, false, "Whether nothing is put in place."))
        .output("path", Type::Path, "The file.")
        .output("sha256", Type::String, "Its checksum, of all that is in it.")
        .output("bytes", Type::Integer, "Its size.")
        .output("changed", Type::Boolean, "Whether it is, or would be, another one than before.")
        .output("changes", Type::list(Type::String), "The lines that are, without secrets.")
        .writes_path("to")
        .destroys("the file that is there; it is kept beside it as `.pre-RUN`")
        .undoes("the earlier file is put back, or the new one removed where none was");
        spec.outputs.push(Field::optional("previous", Type::Path, "Where the earlier file is kept."));
        spec
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let mut problems = Vec::new();
        let mut problem = |param: &str, message: String, help: &str| {
            problems.push(ParamProblem { param: param.into(), message, help: Some(help.into()) });
        };
        if let Some(Err(why)) = with.get("mode").and_then(Value::as_str).map(place::mode) {
            problem("mode", why, "secrets are best readable by their owner alone: '0600'");
        }
        if let Some(words) = with.get("check").and_then(Value::as_array)
            && !words.iter().any(|word| word.as_str().is_none_or(|word| word.contains(FILE)))
        {
            let message = "the command does not say where the file stands".to_owned();
            problem("check", message, "write `%s` where its path belongs: `[nginx, -t, -c, '%s']`");
        }
        let names = |param: &str| with.get(param).and_then(Value::as_object).into_iter().flat_map(Map::keys);
        if let Some(both) = names("values").find(|name| names("secrets").any(|other| other == *name)) {
            problem(
                "secrets",
                format!("`{both}` stands under `values` too"),
                "give one of them another name",
            );
        }
        problems
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let place = params.place(ctx)?;
        let shown = params.values().show(&render::read(ctx, &params.template)?, &params.template)?;
        let there = place.there()?;
        let target = place.target.display();
        let old = there.as_ref().map(text_of).unwrap_or_default();
        let mut actions = vec![format!("write {target} ({})", params.mode)];
        actions.extend(changes(&old, &shown, &shown).into_iter().map(|line| format!("  {line}")));
        if !params.secrets.is_empty() {
            actions.push("  a plan reads no secrets: lines with one count as changed".to_owned());
        }
        actions.extend((!params.check.is_empty()).then(|| format!("before: {}", params.check.join(" "))));
        let destroys = match there {
            _ if params.dry_run => format!("nothing: a dry run of {target}"),
            Some(there) => format!("{target} ({} bytes) becomes {target}.pre-<run>", there.content.len()),
            None => format!("nothing: {target} is absent now"),
        };
        Ok(Preview { actions, destroys: vec![destroys] })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        params.values().check()?;
        let place = params.place(ctx)?;
        let template = render::read(ctx, &params.template)?;
        let rendered = params.values().render(ctx, &template, &params.template)?;
        let there = place.there()?;
        let lines =
            changes(&there.as_ref().map(text_of).unwrap_or_default(), &rendered.text, &rendered.shown);
        lines.iter().for_each(|line| ctx.line(Stream::Stdout, line));
        let changed = there.as_ref().is_none_or(|there| !place.is_done(there, &rendered.text));
        let mut all = done(json!({
            "path": place.target, "sha256": sha256(rendered.text.as_bytes()), "bytes": rendered.text.len(),
            "changed": changed, "changes": lines,
        }));
        if changed {
            let previous = write(ctx, &params, (&place, there), &rendered).await?;
            all.outputs.extend(previous.map(|path| ("previous".to_owned(), json!(path))));
        } else if let Some(earlier) = recorded(ctx) {
            // Put in place by an attempt whose end was lost.
            all.outputs.insert("changed".into(), true.into());
            let kept = earlier.had_file.then(|| ("previous".to_owned(), json!(place.aside)));
            all.outputs.extend(kept);
        }
        all.facts.insert("SHA-256 of the template".into(), sha256(template.as_bytes()));
        Ok(all)
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let place = params.place(ctx)?;
        let Some(written) = recorded(ctx) else {
            place.remove_staging()?;
            return Ok(Done::default());
        };
        let mut all = Done::default();
        if let Some(how) = place.take_back(&written.sha256, written.had_file)? {
            all.facts.insert(place.target.display().to_string(), how);
        }
        for part in ["staging", "aside", "file"] {
            ctx.removed(&id(ctx, part), "the file is as it was").await?;
        }
        Ok(all)
    }
}

/// What an attempt was about to put in place.
#[derive(serde::Serialize, Deserialize)]
struct Written {
    sha256: String,
    had_file: bool,
}

fn recorded(ctx: &StepContext) -> Option<Written> {
    serde_json::from_value(ctx.recorded(WRITTEN)?.clone()).ok()
}

fn text_of(there: &There) -> String {
    String::from_utf8_lossy(&there.content).into_owned()
}

fn id(ctx: &StepContext, part: &str) -> String {
    format!("template:{}:{part}", ctx.info.step)
}

/// Writes the file beside its place, has it looked at, and publishes it. Returns where the earlier one is kept.
async fn write(
    ctx: &StepContext,
    params: &Params,
    (place, there): (&Place, Option<There>),
    rendered: &Rendered,
) -> Result<Option<PathBuf>, StepError> {
    let shown = place.target.display();
    let file = |path: &Path| CreatedKind::File { path: path.to_owned() };
    let thing = |part: &str, what: String, kind| Created { id: id(ctx, part), what, kind };
    ctx.created(thing("staging", format!("unfinished file for {shown}"), file(&place.staging))).await?;
    place.write(&rendered.text)?;
    let looked_at = look_at(ctx, params, place).await;
    if params.dry_run || looked_at.is_err() {
        place.remove_staging()?;
        ctx.removed(&id(ctx, "staging"), "it was only looked at").await?;
        return looked_at.map(|()| None);
    }
    // An attempt that was lost may have put its file in place: what is kept is from before the first one.
    let had_file = recorded(ctx).map_or(there.is_some(), |earlier| earlier.had_file);
    let written = Written { sha256: sha256(rendered.text.as_bytes()), had_file };
    if had_file {
        let kind = CreatedKind::MovedAside { from: place.target.clone(), to: place.aside.clone() };
        ctx.created(thing("aside", format!("earlier {shown}"), kind)).await?;
        place.keep()?;
    }
    ctx.record(WRITTEN, serde_json::to_value(&written).expect("plain data")).await?;
    // From here on its name is ours to remove; what stood there has a second one.
    ctx.created(thing("file", format!("file {shown}"), file(&place.target))).await?;
    let publishing = place.clone();
    blocking(move || publishing.publish()).await?;
    ctx.removed(&id(ctx, "staging"), "it has its own name now").await?;
    Ok(had_file.then(|| place.aside.clone()))
}

async fn look_at(ctx: &StepContext, params: &Params, place: &Place) -> Result<(), StepError> {
    let Some((program, words)) = params.check.split_first() else { return Ok(()) };
    let path = place.staging.display().to_string();
    let words = words.iter().map(|word| word.replace(FILE, &path));
    let name = format!("{program} (check)");
    let output = Command::new(program).args(words).name(&name).run(ctx).await?;
    if output.exit_code == 0 {
        return Ok(());
    }
    let mut error = output.to_error(&name);
    error.code = codes::LB1443;
    error.message = format!("`{program}` finds mistakes in what {} would become", place.target.display());
    Err(error.help("correct the template or its values; the file that is there was not touched"))
}
