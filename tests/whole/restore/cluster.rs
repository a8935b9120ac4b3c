//! A server of one test, with nothing in it.

use std::fs;
use std::path::PathBuf;

use super::machine::{command, free_port, hand_over, postgres_bin};
use crate::project::Ran;

/// Listens on a socket in its directory and on the loopback, where everybody may log in. Ended with the value.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let cluster = Self { dir: tempfile::tempdir_in("/tmp").expect("a directory"), port: free_port() };
        hand_over(cluster.dir.path());
        let initdb = ["-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--auth=trust", "-D"];
        cluster.program("initdb", &initdb).expect(0);
        let conf = cluster.data().join("postgresql.conf");
        let text = fs::read_to_string(&conf).expect("initdb wrote it");
        let dir = cluster.dir.path().display();
        let port = cluster.port;
        let settings = format!(
            "\nport = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{dir}'\nfsync = off\n\
             shared_buffers = 16MB\n"
        );
        fs::write(&conf, text + &settings).expect("settings");
        let log = cluster.dir.path().join("log");
        cluster.program("pg_ctl", &["-s", "-w", "-l", &log.display().to_string(), "start", "-D"]).expect(0);
        cluster
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Runs a program whose last argument is the data directory.
    fn program(&self, name: &str, args: &[&str]) -> Ran {
        let mut program = command(postgres_bin().join(name), self.dir.path());
        // A server keeps the descriptors of whoever starts it.
        let out = fs::File::create(self.dir.path().join("out")).expect("a file");
        program.args(args).arg(self.data()).stdout(out.try_clone().expect("a descriptor")).stderr(out);
        let status = program.status().expect("it runs");
        Ran { exit: status.code().unwrap_or(-1), stdout: String::new(), stderr: String::new() }
    }

    /// Runs SQL in a database and returns what it gives, as text.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        self.psql(database, &["-c", sql]).expect(0).stdout.trim().to_owned()
    }

    pub(crate) fn psql(&self, database: &str, args: &[&str]) -> Ran {
        let mut psql = command(postgres_bin().join("psql"), self.dir.path());
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-h"])
            .arg(self.dir.path());
        psql.args(["-p", &self.port.to_string()]).args(args);
        Ran::of(&mut psql)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.program("pg_ctl", &["-s", "-w", "-m", "immediate", "stop", "-D"]);
    }
}
