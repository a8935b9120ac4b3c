//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1201 "no name of a WAL file";
    LB1202 "WAL file is damaged";
    LB1203 "WAL file cannot be archived";
    LB1204 "timeline history missing or damaged";
    LB1205 "configuration of `wal put` cannot be used";
    LB1206 "WAL helper cannot start";
    LB1207 "WAL file cannot be fetched";
    LB1240 "cannot connect to Postgres";
    LB1241 "Postgres refused the login";
    LB1242 "remote Postgres without TLS";
    LB1243 "Postgres took too long";
    LB1244 "Postgres reported an error";
    LB1245 "Postgres programs not found";
    LB1246 "Postgres programs of another version";
    LB1247 "control file cannot be read";
    LB1248 "system user of the server not known";
    LB1249 "Postgres resource without a data directory";
    LB1250 "server runs on the data directory";
    LB1251 "port or socket already in use";
    LB1252 "data directory not empty";
    LB1253 "data directory cannot be used";
    LB1254 "not enough space";
    LB1255 "base backup damaged";
    LB1256 "base backup with an entry that is refused";
    LB1257 "base backup with tablespaces";
    LB1258 "restored files differ from the manifest";
    LB1259 "restored files cannot be written";
    LB1260 "Postgres server does not start";
    LB1261 "another Postgres server answers";
    LB1262 "Postgres server does not stop";
    LB1263 "data directory was not restored by Lifeboat";
    LB1264 "server run by a service manager";
    LB1266 "WAL missing or not delivered";
    LB1267 "recovery failed";
    LB1268 "recovery makes no progress";
    LB1269 "target cannot be reached from this backup";
    LB1270 "recovery not proven";
    LB1271 "promotion failed";
    LB1272 "no recovered server to promote";
    LB1273 "statement cannot be used";
    LB1274 "query result not as expected";
    LB1275 "verification failed";
}
