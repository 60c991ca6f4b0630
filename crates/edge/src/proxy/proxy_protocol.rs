//! The PROXY protocol: a proxy in front says in a header of its own whose connection it passes on.

use std::io;
use std::net::SocketAddr;

use ppp::v1;
use ppp::v2;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Version 2 begins with these bytes.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 1 is a line of at most so many bytes.
const MAX_LINE: usize = 107;
/// Addresses, and what balancers of clouds add to them.
const MAX_HEADER: usize = 4096;

/// Reads the header, and nothing behind it. `None` where the proxy speaks for itself, as in a health check.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    // The shortest header of either version is longer.
    let mut header = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == SIGNATURE { read_binary(stream, header).await } else { read_text(stream, header).await }
}

async fn read_text(stream: &mut TcpStream, mut header: Vec<u8>) -> io::Result<Option<SocketAddr>> {
    if !header.starts_with(b"PROXY ") {
        return Err(invalid("no PROXY protocol header"));
    }
    while !header.ends_with(b"\n") {
        if header.len() >= MAX_LINE {
            return Err(invalid("the line does not end"));
        }
        // Byte by byte, so that nothing of the request is taken: once a connection, and from a proxy of one's own.
        header.push(stream.read_u8().await?);
    }
    match v1::Header::try_from(&header[..]).map_err(invalid)?.addresses {
        v1::Addresses::Tcp4(ip) => Ok(Some((ip.source_address, ip.source_port).into())),
        v1::Addresses::Tcp6(ip) => Ok(Some((ip.source_address, ip.source_port).into())),
        v1::Addresses::Unknown => Ok(None),
    }
}

async fn read_binary(stream: &mut TcpStream, mut header: Vec<u8>) -> io::Result<Option<SocketAddr>> {
    let mut rest = [0; 4];
    stream.read_exact(&mut rest).await?;
    header.extend_from_slice(&rest);
    let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
    if length > MAX_HEADER {
        return Err(invalid("the header is too long"));
    }
    let begin = header.len();
    header.resize(begin + length, 0);
    stream.read_exact(&mut header[begin..]).await?;
    let header = v2::Header::try_from(&header[..]).map_err(invalid)?;
    match (header.command, header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => Ok(Some((ip.source_address, ip.source_port).into())),
        (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => Ok(Some((ip.source_address, ip.source_port).into())),
        _ => Ok(None),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
