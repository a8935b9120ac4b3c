//! Measures how fast secrets are looked for: `cargo run --release -p lifeboat-engine --example redact_speed`.

use std::time::Instant;

use lifeboat_engine::redact::Redactor;
use lifeboat_engine::secret::{SecretRef, Secrets};

/// Lines as programs print them: plain ones, some with escapes, one in a thousand with a secret.
fn lines(secret: &str) -> Vec<String> {
    (0..200_000)
        .map(|n| match n % 1000 {
            0 => format!("connecting as app with {secret} to db.example.org"),
            1..100 => format!(
                r#"{{"time":"2026-11-21T18:00:00Z","path":"C:\\data\\{n}","message":"it's \"done\" 100 %"}}"#
            ),
            _ => format!(
                "2026-11-21 18:00:00 INFO restored table members, {n} rows in 12.5 ms, next is payments"
            ),
        })
        .collect()
}

fn main() {
    for (what, length) in [("passwords of 24 bytes", 24), ("keys of 1,700 bytes", 1700)] {
        let mut secrets = Secrets::default();
        let value = |n: usize| -> String {
            let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let byte =
                |at: usize| char::from(alphabet[(at * at * 31 + at * 7 + n * 13 + at / 64) % alphabet.len()]);
            (0..length).map(|at| if at % 65 == 64 { '\n' } else { byte(at) }).collect()
        };
        for n in 0..20 {
            secrets.insert(SecretRef::Env(format!("S{n}")), value(n).into());
        }
        let begun = Instant::now();
        let redactor = Redactor::new(&secrets);
        let prepared = begun.elapsed();
        let lines = lines(value(7).lines().next().unwrap_or_default());
        let bytes: usize = lines.iter().map(String::len).sum();
        let begun = Instant::now();
        let removed = lines.iter().filter(|line| redactor.text(line) != line.as_str()).count();
        let took = begun.elapsed().as_secs_f64();
        let speed = bytes as f64 / 1e6 / took;
        println!(
            "20 {what}: prepared in {prepared:?}, {speed:.0} MB/s, {removed} of {} lines changed",
            lines.len()
        );
    }
}
