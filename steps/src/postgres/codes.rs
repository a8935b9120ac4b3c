//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1201 "no name of a WAL file";
    LB1202 "WAL file is damaged";
    LB1203 "WAL file cannot be archived";
    LB1204 "timeline history missing or damaged";
    LB1205 "configuration of `wal put` cannot be used";
    LB1206 "WAL helper cannot start";
    LB1207 "WAL file cannot be fetched";
}
