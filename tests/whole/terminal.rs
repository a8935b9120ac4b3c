//! A terminal for the program under test: a pair of pseudo-terminal devices of the kernel.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::project::{PATIENCE, until};

/// Makes a terminal; returns who looks at it and types, and the name of its other side. No program that is started meanwhile
/// keeps the first one open.
pub(crate) fn pair() -> (OwnedFd, String) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = openpt(flags).expect("a terminal");
    grantpt(&controller).expect("a terminal of ours");
    unlockpt(&controller).expect("an open terminal");
    let name = ptsname(&controller, Vec::new()).expect("its name").into_string().expect("a plain name");
    (controller, name)
}

/// What a program in the terminal of that name reads from and writes to.
pub(crate) fn other_side(name: &str) -> Stdio {
    OpenOptions::new().read(true).write(true).open(name).expect("its other side").into()
}

/// The program in a terminal: what it shows, and somebody who types.
pub(crate) struct Terminal {
    child: Child,
    keys: File,
    shown: Arc<Mutex<Vec<u8>>>,
    watching: JoinHandle<()>,
}

impl Terminal {
    /// Starts a command with its input, output and errors in a new terminal.
    pub(crate) fn start(command: &mut Command) -> Self {
        let (controller, name) = pair();
        let side = || other_side(&name);
        let child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("the program starts");
        // The other side stays open in the command until it is dropped or reused.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let keys = File::from(controller);
        let mut screen = keys.try_clone().expect("a second handle");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&shown);
        let watching = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose other side is closed reads as an error.
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                sink.lock().expect("nobody panicked").extend_from_slice(&buffer[..count]);
            }
        });
        Self { child, keys, shown, watching }
    }

    /// Returns everything shown so far.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("nobody panicked")).into_owned()
    }

    /// Does not show what is typed: a terminal does, and the program has no part in it.
    pub(crate) fn hush(&self) {
        let mut settings = tcgetattr(&self.keys).expect("settings of a terminal");
        settings.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&self.keys, OptionalActions::Now, &settings).expect("a terminal of ours");
    }

    pub(crate) fn until_shows(&self, text: &str) {
        until(&format!("it shows {text}"), || self.shown().contains(text));
    }

    pub(crate) fn type_line(&mut self, text: &str) {
        self.keys.write_all(format!("{text}\n").as_bytes()).expect("a key");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program to end by itself, and until all that it has shown is here.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                until("all that was shown is read", || self.watching.is_finished());
                return status;
            }
            assert!(Instant::now() < deadline, "it did not end:\n{}", self.shown());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
