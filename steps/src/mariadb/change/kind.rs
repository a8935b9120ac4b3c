//! `mariadb.change`

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{KindSpec, ParamProblem, Preview, Probe, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde_json::{Map, Value};

use super::super::connect::DbError;
use super::super::{codes, rows};
use super::work::Work;
use crate::change::{Codes, Family, Params};

/// Changes data.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Change;

pub(super) static FAMILY: Family = Family {
    kind: "mariadb.change",
    summary: "Changes rows in one transaction, compared row by row, with a way back.",
    doc: DOC,
    server: ("server", ResourceKind::Mariadb),
    values: "Values for `?`, in order.",
    tables: "The tables that may be changed, as `table` or `database.table`; each of InnoDB with a primary key.",
    more,
    allowed: ["insert", "update", "delete", "replace", "with", "select"],
    lasting: |sql| rows::writes_file(sql).then_some("write a file"),
    codes: Codes {
        statement: codes::LB2068,
        too_many: codes::LB2060,
        invariant: codes::LB2062,
        not_approved: codes::LB2063,
        no_way_back: codes::LB2064,
        taken_back: codes::LB2066,
        unwritten: codes::LB2067,
    },
};

fn more() -> Vec<Field> {
    vec![Field::defaulted(
        "max_table_rows",
        Type::Integer,
        2_000_000,
        "A table with more rows than this is refused: it is locked and read as a whole.",
    )]
}

const DOC: &str = "\
Runs statements that change rows, all in one transaction, and compares `tables` row by row with a snapshot from before. The \
step fails, and nothing is changed, if a table that is not named is changed, also by a trigger, a function or a cascade; if \
more than `max_rows` rows change; or if one of `invariants` does not hold afterwards. A condition of an invariant knows `rows`, \
`row_count`, and `before`, the rows of the same query before the change.

That nothing else is changed is known from InnoDB's own count of what the transaction has changed, which must be the number of \
rows that differ. To see that count the account needs the right `PROCESS`, which is one on the whole server: \
`grant process on *.* to app@localhost`. Without it the step fails, says so, and changes nothing.

The count is of changes, not of rows: a row that two statements change, or one and its trigger, counts twice and differs once, and \
the step fails, because a change of something else would look the same. Change each row by one statement: `set a = 1, b = 2` \
instead of two updates; insert a row as it is meant to be. A row that is changed and changed back differs nowhere, and fails \
as well; an update that writes what is there counts nothing. Tables of other engines take nothing back and are refused, also where \
a trigger, a function or a view leads to them.

`dry_run: true` takes all of it back and returns the difference and its `digest`. Given as `approved` to a second step with \
the same statements, that one changes exactly this or fails:

```yaml
- id: look
  uses: mariadb.change
  with: &correction
    server: db
    tables: [payments, audit_log]
    max_rows: 4
    statements:
      - { sql: \"update payments set state = 'void' where id = ?\", params: [\"{{ inputs.payment }}\"] }
    dry_run: true
```

Values of `auto_increment` differ between two attempts and are left out of the digest, and so are the columns named in \
`ignore`, such as times.

What was changed is kept on the server, in the database `lifeboat`, in the same transaction (texts and bytes in hexadecimal): \
a change is made once for its `idempotency_key` (run and step if absent), whatever crashes in between and whoever runs it \
again. The output `reverse` is a script that takes it back, row by row, and stops if somebody has changed one of the rows \
since; undo does the same. The way back is tried within the transaction, before the commit; a warning says if it does not \
bring back every byte, which a trigger can be the reason of. Then `reverse` is empty.

All rows of `tables` are locked against writes of others meanwhile, and read twice: `max_table_rows` limits that.";

#[async_trait]
impl StepKind for Change {
    fn spec(&self) -> KindSpec {
        FAMILY.spec()
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        FAMILY.check(with)
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        Ok(FAMILY.preview(&params))
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let mut work = Work::new(ctx).await?;
        FAMILY.refuse(&work.params.statements)?;
        if !work.params.dry_run
            && let Some(done) = work.made_before().await?
        {
            return Ok(done);
        }
        let result = work.in_transaction().await;
        work.taken_back(result).await
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let mut work = Work::new(ctx).await?;
        if work.params.dry_run {
            return Ok(Probe::NotDone);
        }
        Ok(work.made_before().await?.map_or(Probe::NotDone, Probe::Done))
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let mut work = Work::new(ctx).await?;
        // What another run has made under the same key is not ours to take back.
        if !work.is_ours().await? {
            return Ok(Done::default());
        }
        let result = work.undo().await;
        work.taken_back(result).await
    }
}

/// What the server refuses within the transaction changes nothing.
pub(super) fn refused(error: DbError) -> StepError {
    if error.number() == Some(1205) {
        return StepError::transient(codes::LB2069, format!("rows could not be locked in time: {error}")).help(
            "nothing was changed; see who holds them: select * from information_schema.innodb_trx order by trx_started",
        );
    }
    let error = StepError::from(error);
    let help = error.help.clone().unwrap_or_else(|| "nothing was changed".into());
    error.help(help)
}

/// An end of the transaction that may or may not have come to be.
pub(super) fn uncertain(error: DbError) -> StepError {
    StepError { kind: FailureKind::Uncertain, ..StepError::from(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_statements_that_stay_within_the_transaction_are_allowed() {
        for sql in [
            "UPDATE x set y = 1",
            "-- why\n/* and */ with a as (select 1) select 1",
            "replace into x values (1)",
        ] {
            assert_eq!(FAMILY.problem(sql), None, "{sql}");
        }
        for sql in [
            "commit",
            "/* */ rollback",
            "drop table x",
            "truncate x",
            "",
            "call x()",
            "set autocommit = 1",
            "-- update",
            "select SetVal(s, 1)",
            "select 1 INTO OUTFILE '/tmp/x'",
        ] {
            assert!(FAMILY.problem(sql).is_some(), "{sql}");
        }
    }
}
