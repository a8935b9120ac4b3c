//! Codes of secrets.

crate::define_codes! {
    LB0330 "secret cannot be read";
    LB0331 "secret too short to be removed from output";
    LB0389 "secret that stands in the plan";
}
