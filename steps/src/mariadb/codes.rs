//! Error codes of this family.

lifeboat_engine::define_codes! {
    LB2000 "cannot connect to MariaDB";
    LB2001 "MariaDB refused the login";
    LB2003 "MariaDB took too long";
    LB2004 "MariaDB reported an error";
    LB2005 "MariaDB programs not found";
    LB2006 "the server is no MariaDB";
    LB2007 "another MariaDB server, or one that cannot be managed here";
    LB2008 "MariaDB did not start or stop";
    LB2009 "no place for a MariaDB clone";
    LB2010 "query result not as expected";
    LB2011 "query cannot be run";
    LB2012 "MariaDB data failed a check";
    LB2020 "MariaDB dump failed";
    LB2021 "MariaDB dump is not whole";
    LB2022 "databases changed during the dump";
    LB2030 "no MariaDB dump fits";
    LB2031 "the MariaDB server is not empty";
    LB2032 "restore of a MariaDB dump stopped";
    LB2033 "restored databases are not those of the dump";
    LB2034 "MariaDB server does not fit the dump";
    LB2040 "binary log cannot be shipped";
    LB2041 "binary log file is not whole";
    LB2042 "binary log files are missing";
    LB2043 "another binary log file of the same name";
    LB2050 "nothing to replay after";
    LB2051 "server has transactions of its own";
    LB2052 "target outside of the binary log";
    LB2053 "replay of the binary log stopped";
    LB2054 "replay did not apply what was planned";
    LB2055 "the MariaDB server went away";
    LB2056 "server may have lost what was replayed";
    LB2057 "session of an earlier attempt still runs";
    LB2058 "binary log is encrypted";
    LB2060 "change of more rows than allowed";
    LB2061 "change reaches what it does not name";
    LB2062 "invariant would not hold";
    LB2063 "change is not the one that was approved";
    LB2064 "change cannot be taken back";
    LB2065 "table cannot be watched";
    LB2066 "change was made and taken back";
    LB2067 "reverse script cannot be written";
    LB2068 "statement that belongs into no change";
    LB2069 "rows could not be locked in time";
}
