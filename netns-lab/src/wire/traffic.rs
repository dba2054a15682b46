//! Real sockets that make the traffic of these checks.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use rustix::net::sockopt::{set_ip_ttl, set_ipv6_unicast_hops};

use crate::place::Place;

/// How long something that must arrive may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A UDP socket on an address of a place; port 0: a fresh one.
///
/// # Errors
/// The socket's.
pub fn udp(place: &Place, address: IpAddr, port: u16) -> Result<UdpSocket> {
    let _inside = place.enter()?;
    let socket = UdpSocket::bind((address, port))
        .with_context(|| format!("{}: a UDP socket on {address} port {port}", place.name()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sets the time to live, or the hop limit, of what a socket sends.
///
/// # Errors
/// The socket's.
pub fn set_hops(socket: &UdpSocket, ipv6: bool, hops: u8) -> Result<()> {
    if ipv6 { set_ipv6_unicast_hops(socket, Some(hops)) } else { set_ip_ttl(socket, hops.into()) }
        .context("setting the hop limit")
}

/// `len` bytes that differ from those of every other length.
#[must_use]
pub fn bytes(len: usize) -> Vec<u8> {
    let start = u8::try_from(len % 251).unwrap_or_default();
    (0..=250u8).cycle().skip(start.into()).take(len).collect()
}

/// Receives the next datagram, which must be these bytes.
///
/// # Errors
/// Nothing came, or something else.
pub fn expect(socket: &UdpSocket, wanted: &[u8], buffer: &mut [u8]) -> Result<SocketAddr> {
    let (len, from) = match socket.recv_from(buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            anyhow::bail!("a datagram of {} bytes did not arrive", wanted.len())
        }
        other => other.context("receiving")?,
    };
    ensure!(buffer.get(..len) == Some(wanted), "{len} bytes arrived instead of {}, or others", wanted.len());
    Ok(from)
}

/// Sends to an address of the other place and gets it back, so that both stacks know their neighbours and IPv6 has had
/// the second that it needs on a new device.
///
/// # Errors
/// It did not come back.
pub fn warm_up(client: &UdpSocket, server: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 64];
    client.send_to(b"warm", server.local_addr()?)?;
    let from = expect(server, b"warm", &mut buffer)?;
    server.send_to(b"up", from)?;
    expect(client, b"up", &mut buffer)?;
    Ok(())
}
