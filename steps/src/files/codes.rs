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
    LB1430 "files that cannot be exchanged";
    LB1431 "files that are not where they were left";
    LB1440 "template that cannot be read";
    LB1441 "template that cannot be filled in";
    LB1442 "file that a template must not become";
    LB1443 "file that its check refuses";
    LB1444 "file that somebody else has changed since";
    LB1450 "names that a file system takes for one";
}
