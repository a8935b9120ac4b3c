//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1701 "approval refused";
    LB1702 "manual work not done";
    LB1703 "no answer from a person";
    LB1704 "message not delivered";
    LB1705 "answer that does not fit";
}
