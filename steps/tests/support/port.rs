//! Ports of the loopback that belong to a test.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

/// Returns a port that nobody listens on, for a server that a test starts, or for nobody.
///
/// It stays this process's own: a socket that does not listen has it until the process ends. A socket that says that it may share
/// its address, as those of servers do, can listen there all the same; but the kernel gives it to nobody who asks for any port,
/// neither to another test nor to a connection.
pub fn closed_port() -> u16 {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = socket.expect("a socket");
    sockopt::set_socket_reuseaddr(&socket, true).expect("it may be shared");
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    // Only std's types tell an address, and this is none that listens.
    let kept = TcpListener::from(socket);
    let port = kept.local_addr().expect("an address").port();
    std::mem::forget(kept);
    port
}
