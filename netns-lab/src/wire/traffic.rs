//! Real sockets that make the traffic of these checks.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use rustix::net::sockopt::{set_ip_ttl, set_ipv6_unicast_hops};

use crate::place::Place;

/// How long something that must arrive may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long nothing has to come of what may be lost.
pub const SHORT: Duration = Duration::from_millis(500);

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
            bail!("a datagram of {} bytes did not arrive", wanted.len())
        }
        other => other.context("receiving")?,
    };
    ensure!(buffer.get(..len) == Some(wanted), "{len} bytes arrived instead of {}, or others", wanted.len());
    Ok(from)
}

/// As [`expect`], within a time of its own.
///
/// # Errors
/// As [`expect`].
pub fn expect_within(socket: &UdpSocket, wanted: &[u8], patience: Duration) -> Result<()> {
    socket.set_read_timeout(Some(patience))?;
    let got = expect(socket, wanted, &mut vec![0; 65_536]);
    socket.set_read_timeout(Some(PATIENCE))?;
    got.map(drop)
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

/// Sends so many bytes through a connection of its own, there and back at the same time; they must arrive as they were,
/// and nothing may stand still for longer than [`PATIENCE`].
///
/// # Errors
/// No connection, or what became of the bytes.
pub fn bulk(from: &Place, to: &Place, address: SocketAddr, len: usize) -> Result<()> {
    let listener = {
        let _inside = to.enter()?;
        TcpListener::bind(address).with_context(|| format!("{}: listening on {address}", to.name()))?
    };
    let client = {
        let _inside = from.enter()?;
        TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("no connection to {address}"))?
    };
    let (server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    let data = bytes(len);
    let send = |mut stream: &TcpStream| stream.write_all(&data);
    let receive = |mut stream: &TcpStream| {
        let (mut buffer, mut got) = (vec![0; 1 << 16], 0);
        while got < len {
            let more = stream.read(&mut buffer).with_context(|| format!("after {got} of {len} bytes"))?;
            ensure!(more > 0, "the connection ended after {got} of {len} bytes");
            ensure!(buffer.get(..more) == data.get(got..got + more), "bytes from {got} on arrived as others");
            got += more;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let senders = [scope.spawn(|| send(&client)), scope.spawn(|| send(&server))];
        let receivers = [scope.spawn(|| receive(&client)), scope.spawn(|| receive(&server))];
        let received: Result<()> =
            receivers.into_iter().try_for_each(|end| end.join().unwrap_or_else(|_| bail!("a thread ended early")));
        if received.is_err() {
            // Nobody reads any more: senders need not wait.
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        }
        let sent: Result<()> = senders.into_iter().try_for_each(|end| match end.join() {
            Ok(sent) => sent.context("sending"),
            Err(_) => bail!("a thread ended early"),
        });
        received.and(sent)
    })
}
