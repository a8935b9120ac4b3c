//! Error codes of TLS to databases.

lifeboat_engine::define_codes! {
    LB1900 "server certificate has expired";
    LB1901 "server certificate is for another host";
    LB1902 "server certificate of an unknown authority";
    LB1903 "server without TLS";
    LB1904 "server demands TLS";
    LB1905 "server demands a client certificate";
    LB1906 "TLS files cannot be used";
    LB1907 "TLS handshake failed";
    LB1908 "server certificate cannot be used";
    LB1909 "connection to another machine in the clear";
}
