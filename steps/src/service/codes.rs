//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1501 "service is not known to its manager";
    LB1502 "service did not become ready";
    LB1503 "service ended while it was starting";
    LB1504 "service has no command";
    LB1505 "service has no gate";
    LB1506 "access is not as it should be, seen from outside";
    LB1507 "gate cannot be moved";
}
