//! Pages, reports and errors on their way to a terminal or a file.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anstyle::{AnsiColor, Style};
use lifeboat_engine::crash::{self, Point};
use lifeboat_engine::drawing::Glyphs;
use lifeboat_engine::journal;
use lifeboat_engine::report::page::{Page, Piece, Tone};
use lifeboat_engine::report::{self, RunReport};
use lifeboat_engine::runs;
use rustix::termios::tcgetwinsize;

use crate::exit::{Exit, Failure};

/// The width of lines where there is no terminal.
const PIPE_WIDTH: usize = 100;

/// Prints a page on standard output.
pub(crate) fn print_page(page: &Page) {
    let text = page.render(width(), &paint);
    crate::say::put!("{text}");
}

/// The width of lines on standard output.
pub(crate) fn width() -> usize {
    tcgetwinsize(std::io::stdout())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|w| *w > 0)
        .unwrap_or(PIPE_WIDTH)
}

/// Prints lines on standard output, with colours where it is a terminal.
pub(crate) fn print_lines(lines: &[Vec<Piece>]) {
    let mut text = String::new();
    for line in lines {
        line.iter().for_each(|piece| text.push_str(&paint(piece.tone, &piece.text)));
        text.push('\n');
    }
    crate::say::put!("{text}");
}

/// The signs that the reader of standard output can see: those of the locale.
pub(crate) fn glyphs() -> Glyphs {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    if locale.contains("utf-8") || locale.contains("utf8") { Glyphs::Unicode } else { Glyphs::Ascii }
}

fn paint(tone: Tone, text: &str) -> String {
    let style = style(tone);
    format!("{style}{text}{style:#}")
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Dim => Style::new().dimmed(),
        Tone::Strong => Style::new().bold(),
        Tone::Good => AnsiColor::Green.on_default(),
        Tone::Caution => AnsiColor::Yellow.on_default(),
        Tone::Bad => AnsiColor::Red.on_default().bold(),
        Tone::Code => Style::new().bold(),
    }
}

/// Writes `report.html`, `report.md` and `report.json` into a directory and returns the page's path.
pub(crate) fn save(report: &RunReport, dir: &Path) -> Result<PathBuf, Failure> {
    fs::create_dir_all(dir).map_err(|error| unwritable(dir, &error))?;
    let html = dir.join("report.html");
    write(&html, &report::html(report))?;
    write(&dir.join("report.md"), &report::markdown(report))?;
    write(&dir.join("report.json"), &json(report)?)?;
    Ok(html)
}

/// The report as JSON.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::internal("JSON cannot be written").caused_by(&error))
}

/// Writes a file whole or not at all.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let attempt = || -> std::io::Result<()> {
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    attempt().map_err(|error| {
        // What is left of it would only take room, which may be what is missing.
        drop(fs::remove_file(&new));
        unwritable(path, &error)
    })?;
    crash::point(Point::ReportWritten);
    Ok(())
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("`{}` cannot be written", path.display())).caused_by(error)
}

/// A journal that cannot be read or written.
pub(crate) fn journal(error: &journal::Error) -> Failure {
    because(Failure::new(Exit::Refused, error.to_string()).code(error.code()).help(error.help()), error)
}

/// Adds the causes of an error, without the error itself.
fn because(failure: Failure, error: &dyn std::error::Error) -> Failure {
    match error.source() {
        Some(source) => failure.caused_by(source),
        None => failure,
    }
}

/// A state directory, lock or run that cannot be used.
pub(crate) fn runs(error: &runs::Error) -> Failure {
    because(Failure::new(Exit::Refused, error.to_string()).code(error.code()).help(error.help()), error)
}
