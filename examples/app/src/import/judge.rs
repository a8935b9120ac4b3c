//! What becomes of a row: pure, so that the job and the look before it cannot differ.

use std::collections::HashMap;

use super::rows::Row;

/// What is known of a payment that is there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    pub(super) email: String,
    pub(super) amount_cents: i64,
    pub(super) method: String,
}

/// What becomes of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate<'a> {
    Enter(&'a Row),
    /// The same payment is there.
    There,
    Reject(String),
}

impl Known {
    pub(super) fn of(row: &Row) -> Self {
        Self { email: row.email.clone(), amount_cents: row.amount_cents, method: row.method.clone() }
    }
}

/// Judges a row by the payments that are there, by reference.
pub(super) fn judge<'a>(row: &'a Result<Row, String>, known: &HashMap<String, Known>) -> Fate<'a> {
    let row = match row {
        Ok(row) => row,
        Err(problem) => return Fate::Reject(problem.clone()),
    };
    match known.get(&row.reference) {
        None => Fate::Enter(row),
        Some(there) if *there == Known::of(row) => Fate::There,
        Some(there) => Fate::Reject(format!(
            "the reference {} belongs to another payment: {} cents by {} of {}",
            row.reference, there.amount_cents, there.method, there.email
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_one_payment() {
        let payment = Row {
            reference: "a1".into(),
            name: "Ada".into(),
            email: "ada@example.org".into(),
            amount_cents: 5,
            method: "card".into(),
        };
        let mut known = HashMap::new();
        let row = Ok(payment.clone());
        assert_eq!(judge(&row, &known), Fate::Enter(&payment));
        known.insert("a1".to_owned(), Known::of(&payment));
        assert_eq!(judge(&row, &known), Fate::There);
        let other = Ok(Row { amount_cents: 6, ..payment });
        assert!(matches!(judge(&other, &known), Fate::Reject(why) if why.contains("5 cents by card")));
        assert_eq!(judge(&Err("bad".into()), &known), Fate::Reject("bad".into()));
    }
}
