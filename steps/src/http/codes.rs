//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1601 "web service answers wrongly";
    LB1602 "web service does not answer";
    LB1603 "request cannot be formed";
    LB1604 "another instance answers";
}
