//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1001 "command failed";
    LB1002 "program cannot be started";
    LB1003 "program ended by a signal";
    LB1004 "program ended because its step had to end";
    LB1005 "program cannot run as another user";
    LB1006 "no such system user";
    LB1007 "server cannot be started";
    LB1008 "process cannot be ended";
    LB1009 "variable of a program has no value";
}
