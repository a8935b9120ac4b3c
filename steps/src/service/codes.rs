//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1501 "service is not known to its manager";
    LB1502 "service did not become ready";
    LB1503 "service ended while it was starting";
    LB1504 "service has no command";
    LB1505 "service has no gate";
    LB1506 "access is not as it should be, seen from outside";
    LB1507 "gate cannot be moved";
    LB1520 "service does not run, so it cannot reload";
    LB1521 "service has no test of its configuration";
    LB1522 "configuration of a service is wrong";
    LB1523 "main process of a service is not the expected one";
    LB1524 "service was not stopped";
}
