//! `mariadb.query`: a reading statement and what must hold of its rows.

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::codes;
use super::connect::Login;
use super::rows::{self, Read};
use crate::sql;

/// Runs a reading statement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query;

#[derive(Deserialize)]
struct Params {
    server: String,
    database: Option<String>,
    sql: String,
    params: Vec<Value>,
    expect: Vec<String>,
    statement_timeout: Span,
}

#[async_trait]
impl StepKind for Query {
    fn spec(&self) -> KindSpec {
        KindSpec::new("mariadb.query", "Runs a reading SQL statement and checks its rows.", Effect::Read)
            .doc(
                "Runs as a prepared statement in a read-only transaction with a time limit. Each row is a map from \
                 column to value: integers and floating point numbers keep their type, `timestamp` is RFC 3339 in UTC, \
                 bytes that are no text are `0x…`, `decimal` and all else is text. At most 1000 rows and 1 MiB. The step fails if \
                 a condition of `expect` does not hold.",
            )
            .param(Field::required("server", Type::reads(ResourceKind::Mariadb), "The server to ask."))
            .param(Field::optional("database", Type::String, "The database; that of the resource if not given."))
            .param(Field::required("sql", Type::Sql, "One statement; values stand in it as `?`."))
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

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let why = with.get("sql").and_then(Value::as_str).and_then(rows::refusal);
        let problem = |why| ParamProblem {
            param: "sql".into(),
            message: format!("this is no statement that reads: {why}"),
            help: Some("use `mariadb.change` to change rows".into()),
        };
        why.map(problem).into_iter().collect()
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let mut login = Login::of(ctx, &params.server)?;
        if params.database.is_some() {
            login = login.database(params.database.as_deref());
        }
        let mut client = login.connect().await?;
        let limit = params.statement_timeout.0;
        let rows = rows::read(&mut client, &Read { sql: &params.sql, params: &params.params, limit }).await?;
        sql::judged(ctx, rows, &params.expect, codes::LB2010)
    }
}
