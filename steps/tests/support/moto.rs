//! A real server that speaks the protocol of S3: `moto_server`, one for all tests of a program, or whatever
//! `LIFEBOAT_TEST_S3` names.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Ends when its standard input does, so that it never outlives the test program, however that ends.
const SERVER: &str = "
import os, sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
os._exit(0)
";

/// Returns the address of the server.
pub fn endpoint() -> &'static str {
    static ENDPOINT: OnceLock<String> = OnceLock::new();
    ENDPOINT.get_or_init(|| match std::env::var("LIFEBOAT_TEST_S3") {
        Ok(endpoint) => endpoint,
        Err(_) => format!("http://127.0.0.1:{}", start()),
    })
}

#[expect(clippy::zombie_processes, reason = "the server ends when this process closes its input by ending")]
fn start() -> u16 {
    let python = python();
    let mut server = Command::new(&python)
        .args(["-c", SERVER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{} cannot be started: {error}; `scripts/test` installs it", python.display())
        });
    // Kept open until this process ends.
    std::mem::forget(server.stdin.take());
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("is piped"))
        .read_line(&mut line)
        .expect("the server says its port");
    line.trim().parse().expect("moto is installed: run `scripts/test` once")
}

/// The Python in which `scripts/test` has installed moto.
fn python() -> PathBuf {
    if let Some(dir) = std::env::var_os("LIFEBOAT_MOTO") {
        return PathBuf::from(dir).join("bin/python");
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    cache.or_else(home).unwrap_or_default().join("lifeboat/moto-5.2.5/bin/python")
}
