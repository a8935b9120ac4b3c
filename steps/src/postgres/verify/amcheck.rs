//! `pg_amcheck`: reads every page of tables and B-tree indexes and finds what contradicts itself.

use std::os::unix::fs::OpenOptionsExt;

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};
use secrecy::ExposeSecret;

use super::super::connect::{Endpoint, Login};
use super::super::tools::Tools;
use super::super::{account, codes};
use crate::process::Command;

/// Runs it over some databases. The server must take writes, for the extension that it needs.
pub(super) async fn run(
    ctx: &StepContext,
    postgres: &Postgres,
    login: &Login,
    databases: &[String],
) -> Result<Check, StepError> {
    const CLEAN: i32 = 0;
    const CORRUPT: i32 = 2;
    let tools = Tools::find(postgres)?;
    let mut command = Command::new(tools.program("pg_amcheck"))
        .args(["--heapallindexed", "--parent-check", "--install-missing", "--no-password", "-U", &login.user])
        .args(databases.iter().flat_map(|name| ["-d", name.as_str()]));
    command = match &login.endpoint {
        Endpoint::Socket { dir, port } => {
            let owner = account::owner(postgres)?;
            command
                .arg("-h")
                .arg(dir)
                .args(["-p", &port.to_string()])
                .dir("/")
                .os_user(owner.as_ref().map(|owner| owner.name.as_str()))
        }
        Endpoint::Tcp { host, port } => command.args(["-h", host, "-p", &port.to_string()]),
    };
    if let (Some(password), Endpoint::Tcp { .. }) = (&login.password, &login.endpoint) {
        command = command.env("PGPASSFILE", password_file(ctx, password.expose_secret())?);
    }
    let output = command.run(ctx).await?;
    let name = "pages of tables and indexes are sound (pg_amcheck)".to_owned();
    let expected = "no contradiction".to_owned();
    match output.exit_code {
        CLEAN => Ok(Check { name, expected, actual: "no contradiction".into(), passed: true }),
        CORRUPT => {
            let actual = output.stdout.last_lines(10).join("; ");
            Ok(Check { name, expected, actual, passed: false })
        }
        _ => Err(output.to_error("pg_amcheck")),
    }
}

/// Programs of Postgres take a password from a file that only its owner can read.
fn password_file(ctx: &StepContext, password: &str) -> Result<std::path::PathBuf, StepError> {
    use std::io::Write;
    let path = ctx.work_dir()?.join("pgpass");
    let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| writeln!(file, "*:*:*:*:{escaped}"));
    written.map(|()| path.clone()).map_err(|error| {
        StepError::permanent(codes::LB1259, format!("{} cannot be written: {error}", path.display()))
    })
}
