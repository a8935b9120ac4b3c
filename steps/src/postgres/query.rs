//! `postgres.query`: a reading statement and what must hold of its rows.

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::connect::Login;
use super::rows::{self, Read};
use super::{codes, lifecycle, local};
use crate::sql;

/// Runs a reading statement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query;

#[derive(Deserialize)]
struct Params {
    cluster: String,
    database: Option<String>,
    sql: String,
    params: Vec<Value>,
    expect: Vec<String>,
    statement_timeout: Span,
}

#[async_trait]
impl StepKind for Query {
    fn spec(&self) -> KindSpec {
        KindSpec::new("postgres.query", "Runs a reading SQL statement and checks its rows.", Effect::Read)
            .doc(
                "Runs in a read-only transaction with a time limit, on a server that takes writes as well as on one \
                 that recovers. Each row is a map from column to value: booleans, integers, floating point numbers, \
                 text, JSON and arrays keep their type, times are RFC 3339 in UTC, `numeric` and all else is text. \
                 At most 1000 rows and 1 MiB. The step fails if a condition of `expect` does not hold.",
            )
            .param(Field::required("cluster", Type::reads(ResourceKind::Postgres), "The server to ask."))
            .param(Field::optional("database", Type::String, "The database; that of the resource if not given."))
            .param(Field::required("sql", Type::Sql, "One statement; values stand in it as `$1`, `$2`, …"))
            .param(Field::defaulted("params", Type::list(Type::Any), json!([]), "The values, in order."))
            .param(Field::defaulted(
                "expect",
                Type::conditions(&["rows", "row_count"]),
                json!([]),
                "What must hold of `rows` and `row_count`.",
            ))
            .param(Field::defaulted("statement_timeout", Type::Duration, "30s", "How long the statement may take."))
            .output("rows", Type::list(Type::Any), "The rows, as maps from column to value.")
            .output("row_count", Type::Integer, "How many rows there are.")
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let postgres = local::cluster(ctx, &params.cluster)?;
        lifecycle::bring_back(ctx, &params.cluster).await?;
        let login = Login::of(ctx, postgres)?;
        let login = match &params.database {
            Some(database) => login.database(database),
            None => login,
        };
        let client = login.connect().await?;
        let limit = params.statement_timeout.0;
        let rows = rows::read(&client, &Read { sql: &params.sql, params: &params.params, limit }).await?;
        sql::judged(ctx, rows, &params.expect, codes::LB1274)
    }
}
