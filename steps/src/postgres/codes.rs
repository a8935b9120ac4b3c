//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1201 "no name of a WAL file";
    LB1202 "WAL file is damaged";
    LB1203 "WAL file cannot be archived";
    LB1204 "timeline history missing or damaged";
    LB1205 "configuration of `wal put` cannot be used";
    LB1206 "WAL helper cannot start";
    LB1207 "WAL file cannot be fetched";
    LB1210 "role may not take base backups";
    LB1211 "server not set up for base backups";
    LB1212 "archiving is failing";
    LB1213 "no room for a base backup";
    LB1214 "pg_basebackup failed";
    LB1215 "base backup is not whole";
    LB1216 "WAL of a base backup not archived";
    LB1220 "no base backup in the store";
    LB1221 "no base backup before the target";
    LB1222 "WAL is missing from the archive";
    LB1223 "several clusters in one store";
    LB1224 "no base backup on that timeline";
    LB1225 "no usable base backup";
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
}
