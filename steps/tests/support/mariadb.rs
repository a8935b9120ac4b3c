//! A throw-away MariaDB server on a socket of its own.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Small files: what a server of a test writes does not matter.
const SMALL: [&str; 3] =
    ["--innodb-log-file-size=8M", "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0"];

/// A server that lives as long as this value, with a binary log.
#[derive(Debug)]
pub struct Mariadb {
    pub dir: PathBuf,
    pub server_id: u32,
    child: Option<Child>,
    _template: Arc<tempfile::TempDir>,
}

/// Returns the number and group of the system user that runs servers if the tests are root's.
pub fn mysql_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let user = lifeboat_steps::process::OsUser::lookup("mysql").expect("the package makes the user mysql");
    Some((user.uid, user.gid))
}

fn program(name: &str) -> Command {
    let dirs = ["/usr/sbin", "/usr/bin", "/usr/local/bin"];
    let path = dirs.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    let mut command = Command::new(path.unwrap_or_else(|| panic!("{name} is not installed")));
    command.stdin(Stdio::null()).current_dir("/");
    command
}

fn run_as_server_user(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    if let Some((uid, gid)) = mysql_user() {
        command.uid(uid).gid(gid);
    }
}

/// An empty data directory that is made once and copied for each server.
///
/// The last server that was made from it removes it: a static is never dropped.
fn template() -> Arc<tempfile::TempDir> {
    static TEMPLATE: Mutex<Weak<tempfile::TempDir>> = Mutex::new(Weak::new());
    let mut template = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner);
    template.upgrade().unwrap_or_else(|| {
        let dir = tempfile::Builder::new().prefix("lb-mariadb-").tempdir().expect("a temporary directory");
        super::keeper::watch(dir.path());
        open_to_server(dir.path());
        let mut install = program("mariadb-install-db");
        install.arg("--no-defaults").arg(format!("--datadir={}", dir.path().join("data").display()));
        let tmp = dir.path().join("tmp");
        std::fs::create_dir(&tmp).expect("a directory");
        open_to_server(&tmp);
        install.arg(format!("--tmpdir={}", tmp.display()));
        install.args(["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]);
        install.args(SMALL).stdout(Stdio::null());
        run_as_server_user(&mut install);
        let output = install.output().expect("mariadb-install-db starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let dir = Arc::new(dir);
        *template = Arc::downgrade(&dir);
        dir
    })
}

/// Lets the user of servers write into a directory, and enter what is above it.
pub fn open_to_server(dir: &Path) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("our own directory");
    if let Some((uid, gid)) = mysql_user() {
        chown(dir, Some(uid), Some(gid)).expect("root may give things away");
    }
}

impl Mariadb {
    /// Starts an empty server in `dir`, which is made.
    pub fn start(dir: &Path, server_id: u32) -> Self {
        std::fs::create_dir_all(dir).expect("a directory");
        open_to_server(dir);
        let template = template();
        let copied = Command::new("cp").arg("-a").arg(template.path().join("data")).arg(dir).status();
        assert!(copied.expect("cp starts").success());
        let mut server = Self { dir: dir.to_owned(), server_id, child: None, _template: template };
        server.up(&[]);
        server
    }

    /// Kills the server, as a power cut does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// Starts the server on its data directory again, with further settings.
    pub fn up(&mut self, settings: &[&str]) {
        let mut command = program("mariadbd");
        command.arg("--no-defaults").arg(format!("--datadir={}", self.data_dir().display()));
        // In a shared one it would remove the temporary tables of other servers when it starts.
        let tmp = self.dir.join("tmp");
        std::fs::create_dir_all(&tmp).expect("a directory");
        open_to_server(&tmp);
        command.arg(format!("--tmpdir={}", tmp.display()));
        command.arg(format!("--socket={}", self.socket().display()));
        command.arg(format!("--pid-file={}", self.dir.join("pid").display()));
        command.args(["--skip-networking", "--log-bin=binlog", "--binlog-format=MIXED"]).args(SMALL);
        command.arg(format!("--server-id={}", self.server_id)).args(settings);
        let log =
            std::fs::File::options().create(true).append(true).open(self.dir.join("log")).expect("a log");
        command.stderr(log.try_clone().expect("a second handle")).stdout(log);
        run_as_server_user(&mut command);
        self.child = Some(command.spawn().expect("mariadbd starts"));
        let deadline = Instant::now() + Duration::from_secs(300);
        while self.try_sql("select 1").is_err() {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let ended = self.child.as_mut().and_then(|child| child.try_wait().expect("our own child"));
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "mariadbd does not come up ({ended:?}): {log}"
            );
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Ends the server in order, and waits for it.
    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.try_sql("shutdown").ok();
            let deadline = Instant::now() + Duration::from_secs(300);
            while child.try_wait().expect("our own child").is_none() {
                if Instant::now() >= deadline {
                    child.kill().ok();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("s.sock")
    }

    /// The number of its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The resource that describes it.
    pub fn resource(&self) -> Value {
        json!({ "kind": "mariadb", "socket": self.socket(), "data_dir": self.data_dir() })
    }

    /// Runs statements and returns the rows as text.
    pub fn sql(&self, statements: &str) -> String {
        self.try_sql(statements).unwrap_or_else(|error| panic!("{statements}: {error}"))
    }

    /// Begins to run statements in a session of its own, which ends with them or with the process that is returned.
    pub fn session(&self, statements: &str) -> Child {
        let mut command = client(&self.socket());
        command.arg("-e").arg(statements);
        // What is ended from outside is followed by the rest.
        command.arg("--force").stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("mariadb starts")
    }

    /// Runs a file, as a person does, up to its first error.
    pub fn try_file(&self, path: &Path) -> Result<String, String> {
        answer(client(&self.socket()).stdin(std::fs::File::open(path).expect("a file")))
    }

    pub fn try_sql(&self, statements: &str) -> Result<String, String> {
        sql_at(&self.socket(), statements)
    }
}

impl Drop for Mariadb {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn client(socket: &Path) -> Command {
    let mut command = program("mariadb");
    command.args([
        "--no-defaults",
        "--batch",
        "--skip-column-names",
        "-uroot",
        "--default-character-set=utf8mb4",
    ]);
    command.arg(format!("--socket={}", socket.display()));
    command
}

fn answer(command: &mut Command) -> Result<String, String> {
    let output = command.output().expect("mariadb starts");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Runs statements at a socket, as root without a password.
pub fn sql_at(socket: &Path, statements: &str) -> Result<String, String> {
    answer(client(socket).arg("-e").arg(statements))
}
