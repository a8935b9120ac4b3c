//! The last line before anybody's eyes: whatever leaves this process for a terminal or a log is cleaned of the secrets
//! that it has read.
//!
//! What steps report is cleaned before it reaches the journal. This is for everything else: errors of the program itself,
//! logs of libraries under `LIFEBOAT_LOG`, and panics.

use std::borrow::Cow;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::{PoisonError, RwLock};

use lifeboat_engine::redact::Redactor;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

static KNOWN: RwLock<Option<Redactor>> = RwLock::new(None);

/// Takes note of the secrets that this process has read.
pub(crate) fn know(redactor: &Redactor) {
    *KNOWN.write().unwrap_or_else(PoisonError::into_inner) = Some(redactor.clone());
}

/// Returns a text without the secrets that this process has read.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    match &*KNOWN.read().unwrap_or_else(PoisonError::into_inner) {
        Some(redactor) => redactor.text(text),
        None => Cow::Borrowed(text),
    }
}

/// Keeps the memory of this process, in which secrets are, out of core dumps and out of reach of other processes of the
/// same user. Programs that it starts are not affected.
pub(crate) fn shield_memory() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::debug!(%error, "a core dump of this process would hold its secrets");
    }
}

/// Standard error for log lines, each of which comes in one write.
#[derive(Debug)]
pub(crate) struct CleanStderr;

impl Write for CleanStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        io::stderr().write_all(clean(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Shows panics without secrets: a panic may carry any value that was at hand.
pub(crate) fn clean_panics() {
    std::panic::set_hook(Box::new(|info| {
        // Without a standard error there is nobody to tell.
        let _ = io::stderr().write_all(told(info).as_bytes());
    }));
}

fn told(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let mut text = format!("thread '{}' {info}\n", thread.name().unwrap_or("<unnamed>"));
    let trace = std::backtrace::Backtrace::capture();
    if trace.status() == std::backtrace::BacktraceStatus::Captured {
        text.push_str(&format!("stack backtrace:\n{trace}"));
    }
    clean(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use lifeboat_engine::secret::{SecretRef, Secrets};

    use super::*;

    #[test]
    fn a_panic_does_not_show_the_value_that_it_carries() {
        let mut secrets = Secrets::default();
        secrets.insert(SecretRef::Env("KEY".into()), "hunter22-and-more".into());
        know(&Redactor::new(&secrets));
        let seen = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&seen);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| sink.lock().unwrap().push_str(&told(info))));
        let panicked = std::thread::spawn(|| panic!("no login with hunter22-and-more")).join();
        std::panic::set_hook(before);
        assert!(panicked.is_err());
        let seen = seen.lock().unwrap();
        assert!(seen.contains("no login with ***") && seen.contains("secrets.rs"), "{seen}");
        assert!(!seen.contains("hunter22"), "{seen}");
    }

    #[test]
    fn the_memory_of_the_program_is_in_no_core_dump() {
        shield_memory();
        let behavior = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(behavior, DumpableBehavior::NotDumpable);
    }
}
