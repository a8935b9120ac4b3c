//! A server that speaks HTTP between a store and its bucket, and does to chosen requests what a test wants.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What is done to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is answered with this status, and the code in the words of S3.
    Status(u16, &'static str),
    /// It is taken and never answered.
    Silence,
    /// The answer comes in pieces of so many bytes, with a pause before each.
    Drip(usize, Duration),
    /// The connection is reset when the head of the answer has been sent.
    ResetAfterHead,
    /// The request waits until the fault is taken away, and is then passed on.
    Hold,
    /// The answer ends after so many bytes of its body.
    Cut(u64),
    /// The answer announces more bytes than it has.
    Longer,
    /// One bit of this byte of the answer's body is another one.
    Flip(usize),
    /// It is passed on without the range that it asks for, as some proxies do.
    NoRange,
}

#[derive(Debug)]
struct Rule {
    /// Parts of the request's head, in this order, with `*` between them.
    on: String,
    fault: Fault,
    left: usize,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    /// Heads of all requests.
    seen: Vec<String>,
    /// Heads of those that a rule was for.
    hit: Vec<String>,
    /// Counts how often the rules were taken away.
    heals: u64,
}

/// Listens until the test program ends.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub endpoint: String,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Proxy {
    /// Begins to pass on to an endpoint such as `http://127.0.0.1:5000`.
    pub fn before(endpoint: &str) -> Self {
        let server = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("is bound"));
        let proxy = Self { endpoint, shared: Arc::default() };
        let serving = proxy.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (proxy, server) = (serving.clone(), server.clone());
                std::thread::spawn(move || proxy.serve(client, &server));
            }
        });
        proxy
    }

    /// Does something to every request whose head holds this text, until [`Proxy::heal`]. A `*` in it stands for
    /// anything.
    pub fn on(&self, text: &str, fault: Fault) {
        self.times(usize::MAX, text, fault);
    }

    /// Does something to the next requests whose head holds this text.
    pub fn times(&self, count: usize, text: &str, fault: Fault) {
        self.state().rules.push(Rule { on: text.to_owned(), fault, left: count });
    }

    /// Takes all faults away, and lets go what is held.
    pub fn heal(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.heals += 1;
        drop(state);
        self.shared.1.notify_all();
    }

    /// Returns the heads of the requests that something was done to.
    pub fn hit(&self) -> Vec<String> {
        self.state().hit.clone()
    }

    /// Returns the heads of all requests.
    pub fn seen(&self) -> Vec<String> {
        self.state().seen.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().expect("nobody panics while holding it")
    }

    fn serve(&self, mut client: TcpStream, server: &str) {
        let Some(head) = read_head(&mut client) else { return };
        // Each connection is for one request, so that each request is seen.
        let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        match self.fault_for(&head) {
            None if has(&head, "x-id=ListParts") => drop(pass(client, server, (&head, Answer::Renamed))),
            None => drop(pass(client, server, (&head, Answer::Whole))),
            Some(Fault::Status(status, code)) => refuse(client, &head, (status, code)),
            Some(Fault::Silence) => self.wait_for_heal(),
            Some(Fault::Drip(bytes, pause)) => {
                drop(pass(client, server, (&head, Answer::Drip(bytes, pause))));
            }
            Some(Fault::ResetAfterHead) => drop(pass(client, server, (&head, Answer::HeadOnly))),
            Some(Fault::Cut(bytes)) => drop(pass(client, server, (&head, Answer::Cut(bytes)))),
            Some(Fault::Longer) => drop(pass(client, server, (&head, Answer::Longer))),
            Some(Fault::Flip(byte)) => drop(pass(client, server, (&head, Answer::Flip(byte)))),
            Some(Fault::NoRange) => {
                let lines = head.split_inclusive("\r\n");
                let head: String = lines.filter(|line| !line.to_lowercase().starts_with("range:")).collect();
                drop(pass(client, server, (&head, Answer::Whole)));
            }
            Some(Fault::Hold) => {
                self.wait_for_heal();
                drop(pass(client, server, (&head, Answer::Whole)));
            }
        }
    }

    fn fault_for(&self, head: &str) -> Option<Fault> {
        let mut state = self.state();
        state.seen.push(head.to_owned());
        let rule = state.rules.iter_mut().find(|rule| rule.left > 0 && has(head, &rule.on))?;
        rule.left -= 1;
        let fault = rule.fault.clone();
        state.hit.push(head.to_owned());
        Some(fault)
    }

    fn wait_for_heal(&self) {
        let state = self.state();
        let heals = state.heals;
        drop(self.shared.1.wait_while(state, |state| state.heals == heals));
    }
}

fn has(head: &str, pattern: &str) -> bool {
    let rest = pattern.split('*').try_fold(head, |rest, part| Some(rest.split_once(part)?.1));
    rest.is_some()
}

/// What is passed on of an answer.
#[derive(Clone, Copy)]
enum Answer {
    Whole,
    HeadOnly,
    Drip(usize, Duration),
    Cut(u64),
    Longer,
    Flip(usize),
    /// Parts are listed under the name that S3 gives to the list, by which the client knows it; moto has one of its own.
    Renamed,
}

fn read_head(from: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match from.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    String::from_utf8(head).ok()
}

fn refuse(mut client: TcpStream, head: &str, (status, code): (u16, &str)) {
    let body = format!("<Error><Code>{code}</Code><Message>As the test wants it.</Message></Error>");
    // An answer to HEAD has no body.
    let shown = if head.starts_with("HEAD") { "" } else { &body };
    let answer = format!(
        "HTTP/1.1 {status} {code}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{shown}",
        body.len()
    );
    drop(client.write_all(answer.as_bytes()));
    // What the client still sends is read, or the kernel would reset the connection before the answer is.
    drop(client.shutdown(Shutdown::Write));
    drop(client.set_read_timeout(Some(Duration::from_millis(200))));
    drop(std::io::copy(&mut client, &mut std::io::sink()));
}

fn pass(mut client: TcpStream, server: &str, (head, answer): (&str, Answer)) -> std::io::Result<()> {
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(head.as_bytes())?;
    let (mut from, mut to) = (client.try_clone()?, upstream.try_clone()?);
    let body = std::thread::spawn(move || {
        drop(std::io::copy(&mut from, &mut to));
    });
    let passed = answer_through(&mut upstream, &mut client, answer);
    drop(client.shutdown(Shutdown::Both));
    drop(upstream.shutdown(Shutdown::Both));
    drop(body.join());
    passed
}

fn answer_through(upstream: &mut TcpStream, client: &mut TcpStream, answer: Answer) -> std::io::Result<()> {
    let Some(head) = read_head(upstream) else { return Ok(()) };
    let mut head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    if matches!(answer, Answer::Longer) {
        head = with_longer_length(&head);
    }
    if matches!(answer, Answer::Renamed) {
        let mut body = String::new();
        upstream.read_to_string(&mut body)?;
        let body = body.replace("ListPartsResponse", "ListPartsResult");
        let kept =
            head.split_inclusive("\r\n").filter(|line| !line.to_lowercase().starts_with("content-length:"));
        let head: String = kept.collect();
        let length = format!("\r\nContent-Length: {}\r\n", body.len());
        client.write_all(head.replacen("\r\n", &length, 1).as_bytes())?;
        return client.write_all(body.as_bytes());
    }
    client.write_all(head.as_bytes())?;
    match answer {
        Answer::Cut(bytes) => std::io::copy(&mut upstream.take(bytes), client).map(drop),
        Answer::Longer => std::io::copy(upstream, client).map(drop),
        Answer::Whole | Answer::Renamed => std::io::copy(upstream, client).map(drop),
        Answer::Flip(byte) => {
            let mut body = Vec::new();
            upstream.read_to_end(&mut body)?;
            if let Some(byte) = body.get_mut(byte) {
                *byte ^= 1;
            }
            client.write_all(&body)
        }
        Answer::HeadOnly => {
            // Closed with data unread and no patience, the kernel sends a reset.
            rustix::net::sockopt::set_socket_linger(&*client, Some(Duration::ZERO))?;
            Ok(())
        }
        Answer::Drip(bytes, pause) => {
            let mut buffer = vec![0; bytes];
            loop {
                let count = upstream.read(&mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                std::thread::sleep(pause);
                client.write_all(&buffer[..count])?;
            }
        }
    }
}

fn with_longer_length(head: &str) -> String {
    let longer = |line: &str| match line.to_lowercase().strip_prefix("content-length: ") {
        Some(length) => format!("Content-Length: {}\r\n", length.trim().parse::<u64>().unwrap_or(0) + 1000),
        None => line.to_owned(),
    };
    head.split_inclusive("\r\n").map(longer).collect()
}

/// Polls for some minutes at most: only a test that fails waits so long.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
