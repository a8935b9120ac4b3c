//! `lifeboat init`: a project to begin with, which passes `check` and runs on a machine with nothing installed.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use lifeboat_engine::step::Registry;

use crate::commands::schema;
use crate::exit::{Exit, Failure, Outcome};

const IGNORED: [&str; 2] = ["/.lifeboat/state/", "/practice/"];

/// One file of a new project.
struct NewFile {
    /// Where it goes, from the project's directory.
    path: String,
    text: String,
    mode: u32,
}

/// Writes a new project into a directory. Nothing that is there already is changed: if one of the files exists,
/// nothing is written at all. Only `.gitignore` may exist, and gets the lines that it lacks.
pub(crate) fn init(registry: &Registry, dir: &Path) -> Outcome {
    let files = files(registry, dir)?;
    let taken: Vec<_> =
        files.iter().filter(|file| is_there(&dir.join(&file.path))).map(|file| file.path.as_str()).collect();
    if !taken.is_empty() {
        return Err(Failure::usage(format!(
            "`{}` has these files already: {}",
            dir.display(),
            taken.join(", ")
        ))
        .help("nothing was written; begin in another directory: lifeboat init DIR"));
    }
    for file in &files {
        write_new(&dir.join(&file.path), file).map_err(|error| unwritable(&file.path, &error))?;
        crate::say::say!("wrote {}", file.path);
    }
    if ignore(&dir.join(".gitignore")).map_err(|error| unwritable(".gitignore", &error))? {
        crate::say::say!("added to .gitignore: {}", IGNORED.join(" "));
    }
    say_what_is_next(dir);
    Ok(Exit::Success)
}

fn files(registry: &Registry, dir: &Path) -> Result<Vec<NewFile>, Failure> {
    let project = include_str!("../init/lifeboat.yaml").replace("PROJECT", &name(dir));
    let mut files = vec![
        file("lifeboat.yaml", &project),
        file("environments/laptop.yaml", include_str!("../init/laptop.yaml")),
        file("runbooks/restore.yaml", include_str!("../init/restore.yaml")),
        file(".github/workflows/lifeboat.yaml", include_str!("../init/workflow.yaml")),
        NewFile { mode: 0o755, ..file(".lifeboat/hooks/pre-commit", include_str!("../init/pre-commit")) },
    ];
    for (name, text) in schema::files(registry)?.into_iter().filter(|(name, _)| !schema::is_output(name)) {
        files.push(file(&format!(".lifeboat/schemas/{name}"), &text));
    }
    Ok(files)
}

fn file(path: &str, text: &str) -> NewFile {
    NewFile { path: path.to_owned(), text: text.to_owned(), mode: 0o644 }
}

/// The directory's name, as far as it can stand in a file without quotes.
fn name(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let plain: String = dir
        .file_name()
        .map(|name| name.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let plain = plain.trim_matches(|c: char| !c.is_ascii_lowercase());
    if plain.is_empty() { "recovery".to_owned() } else { plain.to_owned() }
}

/// Says whether something is there, a link that leads nowhere included.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn write_new(path: &Path, file: &NewFile) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // `create_new`: what appeared since it was looked for is not overwritten either.
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(file.mode).open(path)?;
    opened.write_all(file.text.as_bytes())
}

/// Adds the lines that are missing, and says whether there were any.
fn ignore(path: &Path) -> io::Result<bool> {
    let present = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let missing: Vec<_> =
        IGNORED.iter().filter(|line| !present.lines().any(|present| present == **line)).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    let mut text = String::new();
    if !present.is_empty() && !present.ends_with('\n') {
        text.push('\n');
    }
    missing.iter().for_each(|line| text.extend([**line, "\n"]));
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(true)
}

fn unwritable(path: &str, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("`{path}` cannot be written")).caused_by(error)
}

fn say_what_is_next(dir: &Path) {
    crate::say::say!("\nnext:");
    if dir.canonicalize().ok() != Path::new(".").canonicalize().ok() {
        crate::say::say!("  cd {}", dir.display());
    }
    crate::say::say!("  lifeboat check            # every mistake, with its place");
    crate::say::say!("  lifeboat plan restore     # what would happen; writes nothing");
    crate::say::say!("  lifeboat drill restore    # rehearse it");
    crate::say::say!("  lifeboat run restore      # the real thing");
}
