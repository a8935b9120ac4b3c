//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1350 "log is not as it should be";
    LB1351 "log cannot be read";
    LB1352 "lines of a log have no time that can be read";
    LB1353 "log was rotated away, or emptied";
    LB1354 "log source or pattern cannot be used";
}
