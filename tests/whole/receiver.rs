//! A webhook of a test: takes posts on a port of the loopback and keeps them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// Takes posts until it is dropped with the test's process.
pub(crate) struct Receiver {
    port: u16,
    posts: Arc<Mutex<Vec<Value>>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    /// Starts one that answers every post with this status.
    pub(crate) fn answering(status: &'static str) -> Self {
        Self::saying(status, "")
    }

    /// Starts one that answers every post with this status and this text.
    pub(crate) fn saying(status: &'static str, text: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let posts = Arc::new(Mutex::new(Vec::new()));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (sink, tops) = (Arc::clone(&posts), Arc::clone(&heads));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some((head, body)) = take(&stream) else { continue };
                // Before the answer: whoever has posted may be gone as soon as it has that.
                tops.lock().expect("nobody panicked").push(head);
                sink.lock().expect("nobody panicked").push(body);
                drop(answer(&stream, status, text));
            }
        });
        Self { port, posts, heads }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}/hook-of-this-test", self.base())
    }

    pub(crate) fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the first lines and the headers of what was posted, oldest first.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("nobody panicked").clone()
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

/// Takes one post: its head and its body, which is null if there is none.
fn take(stream: &TcpStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let (mut length, mut head) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).ok()? };
    Some((head, body))
}

fn answer(mut stream: &TcpStream, status: &str, text: &str) -> std::io::Result<()> {
    let length = text.len();
    let said = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{text}"
    );
    stream.write_all(said.as_bytes())
}
