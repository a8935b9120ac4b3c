//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1301 "Redis cannot be reached";
    LB1302 "Redis refused a command";
    LB1303 "Redis snapshot failed";
    LB1304 "no Redis snapshot fits";
    LB1305 "Redis snapshot is damaged or cannot be loaded";
    LB1306 "append-only file would win over the snapshot";
    LB1307 "Redis cannot be restored as it is described";
    LB1308 "another Redis server answers";
    LB1309 "Redis did not come up with the snapshot";
    LB1310 "Redis does not hold what was expected";
    LB1311 "Redis files cannot be placed";
    LB1312 "no place for a Redis clone";
    LB1313 "no room for a Redis clone";
    LB1330 "Redis command that is not known to read only";
    LB1331 "answer of Redis that is too long";
    LB1332 "Redis database that must not be emptied like this";
    LB1333 "Redis database that is not empty after it was emptied";
    LB1334 "Redis snapshot that a newer version has written";
    LB1335 "Redis replicas that would take part in a restore";
    LB1336 "no room for a Redis snapshot";
}
