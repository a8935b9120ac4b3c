//! Reads every row once, so that the server reads every page of every table, and with page checksums compares them.

use std::fs::File;

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};

use super::super::connect::Login;
use super::super::libpq::{Libpq, tools_for};
use super::findings::Server;

/// Dumps a database into nowhere. Works on a server that recovers. Indexes are not read.
pub(super) async fn run(
    ctx: &StepContext,
    (postgres, login, server): (&Postgres, &Login, &Server),
    database: &str,
) -> Result<Check, StepError> {
    let tools = tools_for(postgres, server.major).await?;
    let nowhere = File::options().write(true).open("/dev/null").map_err(|error| {
        StepError::permanent(super::super::codes::LB1851, "/dev/null cannot be opened").caused_by(&error)
    })?;
    let output = Libpq::new(postgres, login)
        .command(&tools, "pg_dump", database)
        .await?
        .args(["-Fc", "-Z0", "--lock-wait-timeout=60s"])
        .stdout_to(nowhere)
        .run(ctx)
        .await?;
    let with = if server.data_checksums { "with page checksums" } else { "without page checksums" };
    let actual = match output.exit_code {
        0 => format!("every row was read, {with}"),
        code => format!("pg_dump ended with exit code {code}: {}", output.stderr.last_lines(5).join("; ")),
    };
    Ok(Check {
        name: format!("{database}: every row can be read (pg_dump)"),
        expected: "all rows".into(),
        actual,
        passed: output.exit_code == 0,
    })
}
