//! Codes of evidence.

crate::define_codes! {
    LB0385 "evidence cannot be written";
    LB0386 "no archive of evidence";
    LB0387 "evidence was changed";
    LB0388 "evidence of another run, or without its end";
}
