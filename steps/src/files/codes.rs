//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1401 "files cannot be read";
    LB1402 "file changed while it was read";
    LB1403 "nothing to back up";
    LB1404 "no backup of files fits";
    LB1405 "manifest of a backup of files is not safe";
    LB1406 "files cannot be put in place";
    LB1407 "not enough space for restored files";
    LB1408 "restored files differ from their manifest";
    LB1409 "files differ from their backup";
}
