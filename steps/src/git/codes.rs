//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1530 "git failed";
    LB1531 "not the top of a work tree of git";
    LB1532 "git refuses a repository of another owner";
    LB1533 "no such tag or commit";
    LB1534 "a tag stands for another commit than expected";
    LB1535 "work tree has local changes";
    LB1536 "untracked files are in the way";
    LB1537 "work tree is in the middle of something";
    LB1538 "nothing could be fetched";
    LB1539 "checkout did not lead to the commit";
    LB1540 "work tree is elsewhere by now";
    LB1541 "no tag fits";
}
