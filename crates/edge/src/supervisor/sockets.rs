//! Where instances listen: ports that they are told, and sockets that they inherit.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{BorrowedFd, RawFd};

use command_fds::{CommandFdExt, FdMapping};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::process::Command;

const PORT_ATTEMPTS: usize = 16;
// Connections that wait while the command starts again; the system caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
// Where systemd's protocol begins to count.
const FIRST_FD: RawFd = 3;
/// The name, in `LISTEN_FDNAMES`, of the socket on which an instance takes requests.
pub(super) const HTTP: &str = "http";

/// Sets `LISTEN_PID` to the pid that the command is about to have. Nobody but the process itself knows it in time.
pub(super) const SHIM: [&str; 3] = ["sh", "-c", r#"export LISTEN_PID=$$; exec "$0" "$@""#];

/// A socket on a free loopback port.
pub(super) fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A loopback address whose port was free a moment ago and that none of ours has.
pub(super) fn free_address(taken: impl Fn(&SocketAddr) -> bool) -> io::Result<SocketAddr> {
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
    let mut address = free()?;
    for _ in 0..PORT_ATTEMPTS {
        if !taken(&address) {
            break;
        }
        address = free()?;
    }
    Ok(address)
}

/// Lets the command inherit these, by systemd's protocol; whoever becomes the command sets `LISTEN_PID`.
pub(super) fn pass(command: &mut Command, sockets: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
    let mut mappings = Vec::with_capacity(sockets.len());
    for (child_fd, (_, socket)) in (FIRST_FD..).zip(sockets) {
        mappings.push(FdMapping { parent_fd: socket.try_clone_to_owned()?, child_fd });
    }
    let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
    command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    Ok(())
}
