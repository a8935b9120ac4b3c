//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB1101 "address of a store not understood";
    LB1102 "no S3 support in this build";
    LB1103 "store cannot be read";
    LB1104 "object missing from the store";
    LB1105 "a different object of that name exists";
    LB1106 "name not allowed in a store";
    LB1107 "unfinished backup belongs to somebody else";
    LB1108 "object does not match its checksum";
    LB1109 "transfer interrupted";
    LB1110 "marker of a backup is invalid";
    LB1111 "store cannot be written";
    LB1112 "label already taken";
    LB1113 "access to a bucket refused";
    LB1114 "no such bucket there";
    LB1115 "no credentials for a bucket";
    LB1116 "object is in an archive";
    LB1117 "store keeps no versions";
    LB1118 "moment beyond the versions that are kept";
    LB1119 "object's name cannot be that of a file";
    LB1120 "target of a restore is not free";
    LB1121 "nothing was there at that moment";
    LB1122 "result differs from what was to be restored";
    LB1150 "transfer without a source or a target";
    LB1151 "file changed while it was read";
    LB1152 "nothing there to copy";
    LB1153 "more would be removed than expected";
    LB1154 "too little space for a transfer";
    LB1155 "no object fits";
    LB1156 "newest object too old or too small";
    LB1157 "no such version of an object";
    LB1158 "store does not promise what is required";
    LB1160 "too few would be kept";
}
