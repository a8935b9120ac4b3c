//! Finds MariaDB's own programs, and begins commands that log in with them.

use std::path::{Path, PathBuf};

use lifeboat_engine::resource::Mariadb;
use lifeboat_engine::step::StepError;

use super::codes;
use super::connect::Login;
use crate::process::{Command, Output};

/// Where packages put programs besides PATH.
const USUAL: [&str; 5] =
    ["/usr/sbin", "/usr/bin", "/usr/libexec", "/usr/local/mysql/bin", "/usr/local/mariadb/bin"];

/// Returns the path of a program, under its name or the one of before MariaDB 10.5.
pub(super) fn program(mariadb: &Mariadb, name: &str) -> Result<PathBuf, StepError> {
    let names: Vec<&str> = match name {
        "mariadbd" => vec![name, "mysqld"],
        "mariadb" => vec![name, "mysql"],
        "mariadb-dump" => vec![name, "mysqldump"],
        "mariadb-binlog" => vec![name, "mysqlbinlog"],
        "mariadb-install-db" => vec![name, "mysql_install_db"],
        _ => vec![name],
    };
    let found = places(mariadb)
        .into_iter()
        .find_map(|dir| names.iter().map(|name| dir.join(name)).find(|path| path.is_file()));
    found.ok_or_else(|| {
        let place = mariadb.bin_dir.as_ref().map_or("on PATH".to_owned(), |dir| format!("in {}", dir.display()));
        StepError::permanent(codes::LB2005, format!("the program `{name}` was not found {place}"))
            .help("install mariadb-client (and mariadb-server where a server is started), or set `bin_dir` of the resource")
    })
}

fn places(mariadb: &Mariadb) -> Vec<PathBuf> {
    match &mariadb.bin_dir {
        // A server may be in `sbin` beside the `bin` of its programs.
        Some(dir) => vec![dir.clone(), dir.join("../sbin"), dir.join("../libexec"), dir.join("../scripts")],
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).chain(USUAL.iter().map(|dir| Path::new(dir).to_path_buf())).collect()
        }
    }
}

/// Begins a command of one of MariaDB's client programs that logs in. No option file of the machine is read, the
/// password is on no disk and in no argument.
pub(super) async fn client(mariadb: &Mariadb, name: &str, login: &Login) -> Result<Command, StepError> {
    let command = Command::new(program(mariadb, name)?);
    let command = command.secret_option("--defaults-file=", &login.option_file().await?)?;
    // Times that a program is given or prints are in the zone of its process.
    Ok(command.env("TZ", "UTC").env("LC_ALL", "C").dir("/"))
}

/// Begins a command of a program that logs in nowhere.
pub(super) fn bare(mariadb: &Mariadb, name: &str) -> Result<Command, StepError> {
    let command = Command::new(program(mariadb, name)?).arg("--no-defaults");
    Ok(command.env("TZ", "UTC").env("LC_ALL", "C").dir("/"))
}

/// Returns what a program said last of what is wrong, in one line.
pub(super) fn said(output: &Output) -> String {
    let lines = output.stderr.last_lines(20);
    let begin =
        lines.iter().rposition(|line| line.starts_with("ERROR")).unwrap_or(lines.len().saturating_sub(1));
    lines[begin..].iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// Says whether a client program ended because the server did, or closed its connection.
pub(super) fn lost_server(output: &Output) -> bool {
    // Cannot connect, gone away, lost, lost at the beginning, killed, shutdown.
    const LOST: [&str; 7] = ["2002", "2003", "2006", "2013", "2055", "1927", "1053"];
    let text = output.stderr.last_lines(20).join("\n").to_lowercase();
    // It hangs up on a statement that is too long, and runs.
    if text.contains("max_allowed_packet") {
        return false;
    }
    let says = |number: &str| {
        [format!("error {number}"), format!("error: {number}"), format!("({number})")]
            .iter()
            .any(|shape| text.contains(shape.as_str()))
    };
    LOST.iter().any(|number| says(number))
}

/// The failure of a step whose server went away under it; `then` is what a retry does.
pub(super) fn server_ended(message: String, then: &str) -> StepError {
    StepError::uncertain(codes::LB2055, message).help(format!(
        "start the server again (`mariadb.start`, or its service), then `lifeboat retry`: {then}"
    ))
}

/// Returns what a program showed beside that: the statement that was refused, without its frame.
pub(super) fn shown(output: &Output) -> Vec<String> {
    let lines = output.stderr.last_lines(12);
    let is_frame = |line: &str| line.trim().is_empty() || line.bytes().all(|byte| byte == b'-');
    let end = lines.iter().position(|line| line.starts_with("ERROR")).unwrap_or(lines.len());
    lines[..end].iter().filter(|line| !is_frame(line)).cloned().collect()
}
