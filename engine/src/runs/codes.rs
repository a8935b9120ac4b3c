//! Codes of the state directory.

crate::define_codes! {
    LB0320 "state directory refused";
    LB0321 "state directory cannot be used";
    LB0322 "no such run";
    LB0323 "more than one run fits";
    LB0324 "another process owns the run";
    LB0325 "another run writes to the same system";
    LB0326 "a survivor of an earlier process cannot be ended";
    LB0327 "request cannot be read";
    LB0354 "process that drives a run cannot be ended";
    LB0328 "index of runs cannot be used";
    LB1720 "file that cannot be kept as evidence";
}
