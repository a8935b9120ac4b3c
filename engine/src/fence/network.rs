use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

/// How long a name may take to be resolved; then it is compared as it is written.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of hosts.
pub trait Network {
    /// Returns the addresses of a host; none if it cannot be found.
    fn addresses(&self, host: &str) -> Vec<IpAddr>;
    /// Says whether an address is one of this machine.
    fn is_own(&self, address: IpAddr) -> bool;
}

/// Knows of hosts what is written, and asks nobody: for checks that must not depend on a network.
#[derive(Clone, Copy, Debug)]
pub struct Spelled;

impl Network for Spelled {
    fn addresses(&self, host: &str) -> Vec<IpAddr> {
        literal(host).into_iter().collect()
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback() || address.is_unspecified()
    }
}

/// Asks the resolver and the interfaces of this machine; each name once.
#[derive(Debug, Default)]
pub struct Machine {
    known: Mutex<HashMap<String, Vec<IpAddr>>>,
}

impl Machine {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Network for Machine {
    fn addresses(&self, host: &str) -> Vec<IpAddr> {
        if let Some(address) = literal(host) {
            return vec![address];
        }
        let Ok(mut known) = self.known.lock() else { return Vec::new() };
        known.entry(host.to_owned()).or_insert_with(|| resolve(host)).clone()
    }

    fn is_own(&self, address: IpAddr) -> bool {
        // Only an address of this machine can be bound to.
        Spelled.is_own(address) || UdpSocket::bind((address, 0)).is_ok()
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    host.split('%').next().and_then(|host| host.parse().ok()).map(|address: IpAddr| address.to_canonical())
}

/// Asks the system's resolver, which has no limit of its own: a thread that is still waiting is left to itself.
fn resolve(host: &str) -> Vec<IpAddr> {
    let (sender, receiver) = mpsc::channel();
    let host = host.to_owned();
    std::thread::spawn(move || {
        let found = (host.as_str(), 0).to_socket_addrs();
        let addresses = found.map(|all| all.map(|one| one.ip().to_canonical()).collect::<Vec<_>>());
        // Nobody listens any more if it took too long.
        let _ = sender.send(addresses.unwrap_or_default());
    });
    receiver.recv_timeout(PATIENCE).unwrap_or_default()
}
