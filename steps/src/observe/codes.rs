//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB0390 "what was watched failed too often";
    LB0391 "watching ended early";
    LB0392 "what is to be watched cannot be";
}
