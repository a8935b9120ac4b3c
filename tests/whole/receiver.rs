//! A webhook of a test: takes posts on a port of the loopback and keeps them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// Takes posts until it is dropped with the test's process.
pub(crate) struct Receiver {
    port: u16,
    posts: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    /// Starts one that answers every post with this status.
    pub(crate) fn answering(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let posts = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&posts);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(post) = take(&stream, status) {
                    sink.lock().expect("nobody panicked").push(post);
                }
            }
        });
        Self { port, posts }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook-of-this-test", self.port)
    }

    /// Returns what was posted, oldest first.
    pub(crate) fn posts(&self) -> Vec<Value> {
        self.posts.lock().expect("nobody panicked").clone()
    }

    /// Returns what each post is about.
    pub(crate) fn occasions(&self) -> Vec<String> {
        self.posts().iter().map(|post| post["occasion"].as_str().unwrap_or("?").to_owned()).collect()
    }
}

fn take(stream: &TcpStream, status: &str) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut answer = stream;
    answer
        .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes())
        .ok()?;
    serde_json::from_slice(&body).ok()
}
