//! What `pg_restore` says of a dump on this machine, without restoring it.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use lifeboat_engine::step::{StepContext, StepError};

use super::super::codes;
use super::super::tools::Tools;
use crate::process::Command;

/// The table of contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) entries: u64,
    pub(super) database: String,
    /// The major versions of the server and of the program.
    pub(super) server_major: Option<u32>,
    pub(super) tool_major: Option<u32>,
    /// How many tables have rows in it.
    pub(super) tables: u64,
}

impl Contents {
    fn take(&mut self, line: &str) {
        let Some(comment) = line.strip_prefix(';') else {
            self.tables += u64::from(line.contains(" TABLE DATA "));
            return;
        };
        let Some((key, value)) = comment.trim().split_once(": ") else { return };
        let major = || value.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
        match key {
            "TOC Entries" => self.entries = value.trim().parse().unwrap_or_default(),
            "dbname" => value.trim().clone_into(&mut self.database),
            "Dumped from database version" => self.server_major = major(),
            "Dumped by pg_dump version" => self.tool_major = major(),
            _ => {}
        }
    }
}

/// A dump on this machine, and what people call it: the path may be one of our own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dump<'a> {
    pub(super) name: &'a str,
    pub(super) path: &'a Path,
}

/// Reads the table of contents, which stands at the beginning: a dump that was cut off still has one.
pub(super) async fn contents(
    ctx: &StepContext,
    tools: &Tools,
    dump: Dump<'_>,
) -> Result<Contents, StepError> {
    let found = Arc::new(Mutex::new(Contents::default()));
    let sink = Arc::clone(&found);
    let command = program(tools).arg("--list").arg(dump.path).quiet_stdout().on_line(move |_, line| {
        sink.lock().unwrap_or_else(PoisonError::into_inner).take(line);
    });
    let output = command.run(ctx).await?;
    if output.exit_code != 0 {
        return Err(not_whole(dump, &output.stderr.last_lines(5)));
    }
    let found = found.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if found.entries == 0 {
        return Err(not_whole(dump, &["its table of contents is empty".to_owned()]));
    }
    Ok(found)
}

/// Reads all of a dump as a restore would, and throws it away.
pub(super) async fn read_whole(ctx: &StepContext, tools: &Tools, dump: Dump<'_>) -> Result<(), StepError> {
    let output = program(tools).args(["-f", "/dev/null"]).arg(dump.path).run(ctx).await?;
    if output.exit_code == 0 { Ok(()) } else { Err(not_whole(dump, &output.stderr.last_lines(5))) }
}

/// The dump is ours to read, so the program runs as who we are.
fn program(tools: &Tools) -> Command {
    Command::new(tools.program("pg_restore")).env("LC_ALL", "C").env("TZ", "UTC").dir("/")
}

fn not_whole(dump: Dump<'_>, lines: &[String]) -> StepError {
    let message = format!("the dump `{}` is not whole or is damaged", dump.name);
    let mut error = StepError::permanent(codes::LB1279, message)
        .help("do not restore from it; choose another dump of the store");
    error.causes = lines.to_vec();
    error
}

/// Refuses what is no archive of `pg_dump`, plain SQL above all.
pub(super) fn refuse_plain(dump: Dump<'_>) -> Result<(), StepError> {
    const MAGIC: &[u8] = b"PGDMP";
    if dump.path.join("toc.dat").is_file() {
        return Ok(());
    }
    let mut head = [0; 512];
    let mut read = 0;
    let opened = std::fs::File::open(dump.path).and_then(|mut file| {
        while read < head.len() {
            match file.read(&mut head[read..])? {
                0 => break,
                count => read += count,
            }
        }
        Ok(())
    });
    opened.map_err(|error| not_whole(dump, &[error.to_string()]))?;
    if head[..read].starts_with(MAGIC) {
        return Ok(());
    }
    let name = dump.name;
    Err(StepError::permanent(
        codes::LB1285,
        format!(
            "`{name}` is no archive of pg_dump: it does not begin with `PGDMP` and is no directory of one"
        ),
    )
    .help(
        "plain SQL can create, drop and connect to any database, so it is not run; dump with `pg_dump -Fc`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = ";
; Archive created at 2026-11-21 18:00:00 UTC
;     dbname: members
;     TOC Entries: 23
;     Compression: -1
;     Dumped from database version: 15.18 (Debian 15.18-0+deb12u1)
;     Dumped by pg_dump version: 16.2
;
215; 1259 16390 TABLE public people postgres
3365; 0 16390 TABLE DATA public people postgres
";

    #[test]
    fn the_table_of_contents_is_understood() {
        let mut contents = Contents::default();
        LIST.lines().for_each(|line| contents.take(line));
        let expected = Contents {
            entries: 23,
            database: "members".into(),
            server_major: Some(15),
            tool_major: Some(16),
            tables: 1,
        };
        assert_eq!(contents, expected);
    }

    #[test]
    fn plain_sql_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("brought-here");
        let dump = Dump { name: "nightly/members.dump", path: &file };
        std::fs::write(&file, "-- PostgreSQL database dump\nDROP DATABASE members;\n").unwrap();
        let error = refuse_plain(dump).unwrap_err();
        assert!(error.code == codes::LB1285 && error.message.contains("nightly/members.dump"), "{error}");
        std::fs::write(&file, "PGDMP\x01").unwrap();
        assert!(refuse_plain(dump).is_ok());
    }
}
