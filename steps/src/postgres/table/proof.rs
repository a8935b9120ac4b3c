//! Digests of rows, by which two tables on two servers are compared.

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::StepError;

use super::super::connect::Client;
use super::super::database::PATIENT;

/// Number of rows, and a digest that does not depend on their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) rows: i64,
    sum: String,
}

/// Rows become the same text on every server under these settings, and names in statements have schemas.
pub(super) const SETTINGS: &str = "\
set search_path = ''; set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; \
set extra_float_digits = 1; set bytea_output = 'hex'; set client_encoding = 'UTF8'; set row_security = off; \
set statement_timeout = 0; set idle_in_transaction_session_timeout = 0";

/// Digests the rows of a query with one column of text, `r`.
pub(super) async fn digest(client: &Client, rows: &str) -> Result<Digest, StepError> {
    let sql = format!(
        "select count(*), coalesce(sum(('x' || encode(substr(sha256(convert_to(q.r, 'UTF8')), 1, 7), 'hex'))::bit(56)\
         ::bigint::numeric), 0)::text from ({rows}) q(r)"
    );
    let row = client.query_one(&sql, &[], PATIENT).await?;
    Ok(Digest { rows: row.get(0), sum: row.get(1) })
}

/// Compares two digests.
pub(super) fn check(name: &str, expected: &Digest, actual: &Digest) -> Check {
    let show = |digest: &Digest| format!("{} rows, digest {}", digest.rows, digest.sum);
    Check {
        name: name.to_owned(),
        expected: show(expected),
        actual: show(actual),
        passed: expected == actual,
    }
}
