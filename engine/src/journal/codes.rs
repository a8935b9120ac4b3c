//! Codes of the journal.

crate::define_codes! {
    LB0310 "journal cannot be used";
    LB0311 "journal is damaged";
    LB0312 "journal of a newer version";
    LB0313 "journal closed after a failed write";
    LB0314 "event cannot be stored";
}
