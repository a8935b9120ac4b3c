//! A throwaway Redis server on loopback.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::Commands;

/// A server that lives as long as this value, with its files in a directory of its own.
#[derive(Debug)]
pub struct Redis {
    pub port: u16,
    pub dir: PathBuf,
    child: Child,
}

impl Redis {
    /// Starts a server in `dir` with further settings, and waits until it answers.
    pub fn start(dir: &Path, settings: &[&str]) -> Self {
        let settings = ["--save", ""].iter().chain(settings);
        Self::start_with(dir, &settings.copied().collect::<Vec<_>>())
    }

    /// Starts a server with the arguments first, among them perhaps a configuration file.
    pub fn start_with(dir: &Path, settings: &[&str]) -> Self {
        Self::begin(dir, settings, &mut Command::new("redis-server"))
    }

    /// Starts a server that a command has been prepared for.
    pub fn start_by(dir: &Path, command: &mut Command) -> Self {
        Self::begin(dir, &["--save", ""], command)
    }

    fn begin(dir: &Path, settings: &[&str], command: &mut Command) -> Self {
        std::fs::create_dir_all(dir).expect("a directory");
        let port = super::web::closed_port();
        let child = command
            .args(settings)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .arg("--dir")
            .arg(dir)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let mut server = Self { port, dir: dir.to_owned(), child };
        let mut ended = || server.child.try_wait().expect("our own child");
        up(port, password(settings), &mut || {
            assert_eq!(ended(), None, "redis-server on port {port} has ended")
        });
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn connect(&self) -> redis::Connection {
        connect(self.port, None)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn password<'a>(settings: &[&'a str]) -> Option<&'a str> {
    let at = settings.iter().position(|word| *word == "--requirepass")?;
    settings.get(at + 1).copied()
}

pub fn connect(port: u16, password: Option<&str>) -> redis::Connection {
    let credentials = password.map_or(String::new(), |word| format!(":{word}@"));
    let url = format!("redis://{credentials}127.0.0.1:{port}");
    redis::Client::open(url).expect("a url").get_connection().expect("connects")
}

/// Waits until a server answers and has loaded its data.
pub fn wait_up(port: u16, password: Option<&str>) {
    up(port, password, &mut || {});
}

fn up(port: u16, password: Option<&str>, look: &mut dyn FnMut()) {
    let credentials = password.map_or(String::new(), |word| format!(":{word}@"));
    let client = redis::Client::open(format!("redis://{credentials}127.0.0.1:{port}")).expect("a url");
    let deadline = Instant::now() + Duration::from_secs(300);
    while client.get_connection().and_then(|mut up| up.ping::<String>()).is_err() {
        look();
        assert!(Instant::now() < deadline, "redis-server on port {port} does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
}
