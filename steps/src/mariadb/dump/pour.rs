//! Streams SQL from the store into the client program: read, hashed, unpacked, adapted, never on a disk in between.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;

use lifeboat_engine::resource::Mariadb;
use lifeboat_engine::step::{StepContext, StepError};

use super::super::connect::{Login, PATIENCE, quoted};
use super::super::{codes, tools};
use super::scan::SANDBOX;
use crate::process::Output;
use crate::store::{HashingReader, Key, Marker, Meter, Store, blocking};

/// What is changed in the text on its way.
#[derive(Clone, Debug, Default)]
pub(super) struct Adapt {
    /// The client knows no sandbox mode: this one line is left out.
    pub(super) without_sandbox: bool,
    /// The database gets another name.
    pub(super) rename: Option<(String, String)>,
    /// Statements about these accounts are left out: `` `user`@`host` `` and `'user'@'host'`.
    pub(super) without_accounts: Vec<String>,
}

impl Adapt {
    /// Returns what becomes of a line; `None` if it is left out. Lines of data and of bodies are never asked about.
    fn line(&self, line: &[u8]) -> Option<Vec<u8>> {
        if self.without_sandbox && line.starts_with(SANDBOX) {
            return None;
        }
        let text = String::from_utf8_lossy(line);
        if self.without_accounts.iter().any(|account| text.contains(account.as_str())) {
            return None;
        }
        let Some((from, to)) = &self.rename else { return Some(line.to_vec()) };
        let (from, to) = (quoted(from), quoted(to));
        let is_use = text.trim_end() == format!("USE {from};");
        let is_create = text.starts_with(&format!("CREATE DATABASE /*!32312 IF NOT EXISTS*/ {from} "));
        match is_use || is_create {
            true => Some(text.replacen(&from, &to, 1).into_bytes()),
            false => Some(line.to_vec()),
        }
    }
}

/// Where SQL goes.
pub(super) struct Target<'a> {
    pub(super) ctx: &'a StepContext,
    pub(super) mariadb: &'a Mariadb,
    pub(super) login: &'a Login,
}

/// Runs an object of a backup in the server, without the binary log, up to the first error.
pub(super) async fn pour(
    target: &Target<'_>,
    store: &Store,
    (marker, object): (&Marker, &str),
    adapt: Adapt,
) -> Result<(), StepError> {
    let (reading, writing) = os_pipe::pipe()
        .map_err(|error| StepError::transient(codes::LB2032, "no pipe can be made").caused_by(&error))?;
    let entry = marker.objects.iter().find(|entry| entry.name == object).cloned().ok_or_else(|| {
        StepError::permanent(codes::LB2030, format!("the backup `{}` has no `{object}`", marker.label))
    })?;
    let meter = Meter::bytes(target.ctx, Some(entry.size), "restoring");
    let (store, key) = (store.clone(), marker.key(object)?);
    let fed = blocking(move || feed(&store, (&key, &entry.sha256), (writing, &adapt), &meter));
    let command = tools::client(target.mariadb, "mariadb", &target.login.database(None))
        .await?
        .args(["--binary-mode", "--batch", "--max-allowed-packet=1G", "--default-character-set=utf8mb4"])
        .arg(format!("--init-command=set sql_log_bin = 0, {PATIENCE}"))
        .stdin_from(File::from(OwnedFd::from(reading)));
    let (output, fed) = tokio::join!(command.run(target.ctx), fed);
    let output = output?;
    if output.exit_code != 0 {
        return Err(stopped(&output));
    }
    fed
}

/// The client ends at the first statement that the server refuses, and says which.
fn stopped(output: &Output) -> StepError {
    let message = format!("the restore stopped at an error: {}", tools::said(output));
    if tools::lost_server(output) {
        return tools::server_ended(message, "it drops what was restored until then, and begins anew");
    }
    let mut error = StepError::permanent(codes::LB2032, message).help(
        "what was restored until then is dropped by the next attempt and by undo; mend the cause and retry",
    );
    error.causes = tools::shown(output);
    error
}

fn feed(
    store: &Store,
    (key, sha256): (&Key, &str),
    (to, adapt): (os_pipe::PipeWriter, &Adapt),
    meter: &Meter,
) -> Result<(), StepError> {
    let unreadable = |error: &io::Error| {
        StepError::transient(codes::LB2032, format!("`{key}` cannot be read to its end")).caused_by(error)
    };
    let mut packed = HashingReader::new(Counted { inner: store.read(key)?, meter: meter.clone() });
    let decoder = zstd::stream::read::Decoder::new(&mut packed).map_err(|error| unreadable(&error))?;
    match write_lines(BufReader::with_capacity(256 * 1024, decoder), to, adapt) {
        Ok(()) => {}
        // The client has ended, and says why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(error) => return Err(unreadable(&error)),
    }
    io::copy(&mut packed, &mut io::sink()).map_err(|error| unreadable(&error))?;
    let (_, found) = packed.finish();
    match found.sha256 == sha256 {
        true => Ok(()),
        false => Err(StepError::permanent(
            crate::store::codes::LB1108,
            format!("`{key}` is damaged: its SHA-256 is {}, not {sha256}", found.sha256),
        )
        .help("choose another dump, or bring this object back from a copy of the store")),
    }
}

/// Counts what is read, and stops the reading when the step must end.
struct Counted<R> {
    inner: R,
    meter: Meter,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.meter.advance(count as u64).map_err(|error| io::Error::other(error.message))?;
        Ok(count)
    }
}

/// Passes lines on. Only those that begin like statements outside of bodies are looked at whole.
fn write_lines(mut from: impl BufRead, mut to: impl Write, adapt: &Adapt) -> io::Result<()> {
    const LOOKED_AT: [&[u8]; 6] = [b"USE `", b"CREATE ", b"/*M!", b"GRANT ", b"/*!80001 ", b"DELIMITER "];
    let (mut in_body, mut line) = (false, Vec::new());
    loop {
        let buffer = from.fill_buf()?;
        if buffer.is_empty() {
            return to.flush();
        }
        // The beginning of a line decides; the rest of a long one passes piece by piece.
        line.clear();
        let ended = take_until(&mut from, &mut line, 64 * 1024)?;
        let looked_at = ended && LOOKED_AT.iter().any(|start| line.starts_with(start));
        if looked_at && let Some(delimiter) = line.strip_prefix(b"DELIMITER ".as_slice()) {
            in_body = delimiter.trim_ascii() != b";";
        }
        match looked_at && !in_body {
            true => {
                if let Some(line) = adapt.line(&line) {
                    to.write_all(&line)?;
                }
            }
            false => to.write_all(&line)?,
        }
        if !ended {
            pass_line(&mut from, &mut to)?;
        }
    }
}

/// Takes bytes up to and with the end of the line, or as many as the limit; says whether the line has ended.
fn take_until(from: &mut impl BufRead, line: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
    let count = from.by_ref().take(limit as u64).read_until(b'\n', line)?;
    // The end of the text ends a line, too.
    Ok(line.ends_with(b"\n") || count < limit)
}

fn pass_line(from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    loop {
        let buffer = from.fill_buf()?;
        let (end, ended) = match memchr::memchr(b'\n', buffer) {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        to.write_all(&buffer[..end])?;
        from.consume(end);
        if ended {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(text: &str, adapt: &Adapt) -> String {
        let mut to = Vec::new();
        // A small buffer, so that lines come in pieces.
        write_lines(BufReader::with_capacity(7, text.as_bytes()), &mut to, adapt).unwrap();
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn only_what_must_be_adapted_is() {
        let text = "/*M!999999\\- enable the sandbox mode */ \nUSE `a`;\nINSERT INTO `t` VALUES\n('USE `a`;');\n\
            DELIMITER ;;\nUSE `a`;\n;;\nDELIMITER ;\nUSE `b`;\nGRANT ALL ON *.* TO `root`@`localhost`;\n\
            CREATE DATABASE /*!32312 IF NOT EXISTS*/ `a` /*!40100 x */;\nlast";
        assert_eq!(adapted(text, &Adapt::default()), text);
        let adapt = Adapt {
            without_sandbox: true,
            rename: Some(("a".into(), "c".into())),
            without_accounts: vec!["`root`@`localhost`".into()],
        };
        let expected = "USE `c`;\nINSERT INTO `t` VALUES\n('USE `a`;');\nDELIMITER ;;\nUSE `a`;\n;;\nDELIMITER ;\n\
            USE `b`;\nCREATE DATABASE /*!32312 IF NOT EXISTS*/ `c` /*!40100 x */;\nlast";
        assert_eq!(adapted(text, &adapt), expected);
        let long = format!("({}\n,x);\nUSE `a`;\n", "y".repeat(200_000));
        assert_eq!(adapted(&long, &adapt), long.replace("USE `a`", "USE `c`"));
    }
}
