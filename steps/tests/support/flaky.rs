//! A way to a server on which connections break.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What goes wrong with the first connections; later ones are left alone.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// It breaks after so many bytes of answers.
    Cut { after: usize, connections: u32 },
    /// The answer is that the server is busy.
    Busy { connections: u32 },
}

/// Listens until the test program ends.
#[derive(Debug)]
pub struct Flaky {
    pub endpoint: String,
    seen: Arc<AtomicU32>,
}

impl Flaky {
    pub fn before(endpoint: &str, trouble: Trouble) -> Self {
        let server = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("is bound");
        let seen = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&seen);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                let server = server.clone();
                std::thread::spawn(move || serve(client, &server, trouble, number));
            }
        });
        Self { endpoint: format!("http://{address}"), seen }
    }

    /// Counts connections so far.
    pub fn connections(&self) -> u32 {
        self.seen.load(Ordering::Relaxed)
    }
}

fn serve(client: TcpStream, server: &str, trouble: Trouble, number: u32) {
    match trouble {
        Trouble::Busy { connections } if number < connections => busy(client),
        Trouble::Cut { after, connections } if number < connections => pass(client, server, after),
        _ => pass(client, server, usize::MAX),
    }
}

fn busy(mut client: TcpStream) {
    let mut request = [0; 4096];
    drop(client.read(&mut request));
    let body = "<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";
    let answer = format!(
        "HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    drop(client.write_all(answer.as_bytes()));
}

/// Passes bytes both ways, until `limit` bytes have come back.
fn pass(client: TcpStream, server: &str, limit: usize) {
    let Ok(upstream) = TcpStream::connect(server) else { return };
    let (mut from, mut to) = (client.try_clone().expect("a handle"), upstream.try_clone().expect("a handle"));
    let there = std::thread::spawn(move || {
        drop(std::io::copy(&mut from, &mut to));
        drop(to.shutdown(Shutdown::Write));
    });
    let (mut from, mut to, mut left) = (upstream, client, limit);
    let mut buffer = [0; 16 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        let passed = count.min(left);
        if count == 0 || to.write_all(&buffer[..passed]).is_err() {
            break;
        }
        left -= passed;
        if left == 0 {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
    drop(from.shutdown(Shutdown::Both));
    drop(there.join());
}
