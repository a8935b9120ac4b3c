//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1020 "assertion does not hold";
    LB1021 "probe gave no answer";
    LB1022 "waiting ended early";
}
