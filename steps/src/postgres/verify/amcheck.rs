//! `pg_amcheck`: reads every page of tables and B-tree indexes and finds what contradicts itself.

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};

use super::super::account;
use super::super::connect::{Endpoint, Login};
use super::super::tools::Tools;
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
    if let Endpoint::Tcp { .. } = &login.endpoint {
        command = login.passfile(command)?;
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
