//! Real sockets in two places.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::place::Place;

/// How long something that should work may take: the first packets of a new device may be late.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing has to come of what should not work.
pub const SILENCE: Duration = Duration::from_millis(400);

/// An open connection through the datapath.
#[derive(Debug)]
pub struct Connection {
    client: TcpStream,
    server: TcpStream,
}

/// Connects `from` to `to`, which listens on `address`. `Ok(None)`: nothing came back in `patience`.
///
/// # Errors
/// Anything but silence.
pub fn connect(from: &Place, to: &Place, address: SocketAddr, patience: Duration) -> Result<Option<Connection>> {
    let listener = {
        let _inside = to.enter()?;
        TcpListener::bind(address).with_context(|| format!("{}: listening on {address}", to.name()))?
    };
    let client = {
        let _inside = from.enter()?;
        TcpStream::connect_timeout(&address, patience)
    };
    let client = match client {
        Ok(client) => client,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{} connects to {address}", from.name())),
    };
    let (server, _) = listener.accept().context("accepting")?;
    Ok(Some(Connection { client, server }))
}

impl Connection {
    /// Sends `len` bytes and gets them back. `Ok(false)`: they did not come in `patience`.
    ///
    /// # Errors
    /// Anything but silence.
    pub fn echo(&mut self, len: usize, patience: Duration) -> Result<bool> {
        let sent: Vec<u8> = (0..=250).cycle().take(len).collect();
        let mut server = self.server.try_clone()?;
        server.set_read_timeout(Some(patience))?;
        self.client.set_read_timeout(Some(patience))?;
        let mirror = thread::spawn(move || -> io::Result<()> {
            let mut left = len;
            let mut buffer = vec![0; 65_536];
            while left > 0 {
                let got = server.read(&mut buffer)?;
                server.write_all(&buffer[..got])?;
                left -= got.min(left);
            }
            Ok(())
        });
        let mut writer = self.client.try_clone()?;
        let data = sent.clone();
        let writing = thread::spawn(move || writer.write_all(&data));
        let mut got = vec![0; len];
        let read = self.client.read_exact(&mut got);
        let ended = (writing.join(), mirror.join());
        match read {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error).context("reading what was sent back"),
            Ok(()) => match ended {
                (Ok(Ok(())), Ok(Ok(()))) => Ok(got == sent),
                other => Err(anyhow::anyhow!("the other end: {other:?}")),
            },
        }
    }
}

/// A datagram there and one back.
///
/// # Errors
/// Anything but silence.
pub fn datagram(from: &Place, to: &Place, address: SocketAddr, patience: Duration) -> Result<bool> {
    let server = {
        let _inside = to.enter()?;
        UdpSocket::bind(address).with_context(|| format!("{}: listening on {address}", to.name()))?
    };
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let client = {
        let _inside = from.enter()?;
        UdpSocket::bind((any, 0)).context("a client's socket")?
    };
    server.set_read_timeout(Some(patience))?;
    client.set_read_timeout(Some(patience))?;
    client.send_to(b"there", address)?;
    let mut buffer = [0; 16];
    let sender = match server.recv_from(&mut buffer) {
        Ok((_, sender)) => sender,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        Err(error) => return Err(error).context("receiving"),
    };
    server.send_to(b"back", sender)?;
    match client.recv_from(&mut buffer) {
        Ok((len, source)) => Ok(&buffer[..len] == b"back" && source == address),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error).context("receiving the answer"),
    }
}

/// Sends one datagram from an address of `from`'s; nobody answers.
///
/// # Errors
/// The socket's.
pub fn shout(from: &Place, source: IpAddr, to: SocketAddr) -> Result<()> {
    let _inside = from.enter()?;
    let socket = UdpSocket::bind((source, 0)).with_context(|| format!("{}: a socket on {source}", from.name()))?;
    socket.send_to(b"?", to).with_context(|| format!("{} sends to {to}", from.name()))?;
    Ok(())
}

/// Waits until something is so; whether it came to be.
///
/// # Errors
/// As `so`.
pub fn eventually(mut so: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + PATIENCE;
    while !so()? {
        if Instant::now() > end {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}
