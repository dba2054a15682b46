//! One turn: bytes in one direction as fast as they go, or one byte there and one back, over and over.

use std::io::{self, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use datapath_kernel::{Pinned, pin_to_cpu};
use rustix::net::sockopt::set_tcp_congestion;

use super::Pair;

/// Bytes of one write.
const CHUNK: usize = 128 * 1024;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As much as possible, client to server, on two CPUs.
    Stream,
    /// One byte each way, on one CPU: what counts is the way, not who wakes up where.
    RequestResponse,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::RequestResponse => "request-response",
        }
    }

    pub const fn unit(self) -> &'static str {
        match self {
            Self::Stream => "Gbit/s",
            Self::RequestResponse => "per s",
        }
    }
}

/// Sends for `length`; Gbit/s, or transactions per second.
///
/// # Errors
/// A connection that is not made, or breaks.
pub fn run(kind: Kind, pair: Pair<'_>, length: Duration) -> Result<f64> {
    let listener = {
        let _inside = pair.server.enter()?;
        TcpListener::bind(pair.address).with_context(|| format!("listening on {}", pair.address))?
    };
    let client = {
        let _inside = pair.client.enter()?;
        TcpStream::connect_timeout(&pair.address, PATIENCE)
            .with_context(|| format!("connecting to {}", pair.address))?
    };
    let (server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        // bbr paces, and then what is measured is its idea of the path. Without cubic, what is there.
        let _ = set_tcp_congestion(stream, "cubic");
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    let receiver = match kind {
        Kind::Stream => thread::spawn(move || receive(server)),
        Kind::RequestResponse => thread::spawn(move || mirror(server)),
    };
    let sent = thread::spawn(move || match kind {
        Kind::Stream => send(client, length),
        Kind::RequestResponse => ask(client, length),
    });
    let asked = sent.join().map_err(|_| anyhow!("the sender panicked"))??;
    let got = receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
    Ok(match kind {
        Kind::Stream => got,
        Kind::RequestResponse => asked,
    })
}

fn send(mut client: TcpStream, length: Duration) -> io::Result<f64> {
    let _pinned = pin(0)?;
    let chunk = vec![0x5a; CHUNK];
    let end = Instant::now() + length;
    while Instant::now() < end {
        client.write_all(&chunk)?;
    }
    Ok(0.0)
}

/// Gbit/s from the first byte to the last.
fn receive(mut server: TcpStream) -> io::Result<f64> {
    let _pinned = pin(1)?;
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0_u64;
    let mut began = None;
    loop {
        let got = server.read(&mut buffer)?;
        let began = *began.get_or_insert_with(Instant::now);
        if got == 0 {
            let bits = bytes as f64 * 8.0;
            return Ok(bits / began.elapsed().as_secs_f64() / 1e9);
        }
        bytes += got as u64;
    }
}

fn ask(mut client: TcpStream, length: Duration) -> io::Result<f64> {
    let _pinned = pin(1)?;
    let began = Instant::now();
    let mut count = 0_u32;
    while began.elapsed() < length {
        client.write_all(b"?")?;
        client.read_exact(&mut [0])?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

fn mirror(mut server: TcpStream) -> io::Result<f64> {
    let _pinned = pin(1)?;
    let mut byte = [0];
    while server.read(&mut byte)? == 1 {
        server.write_all(&byte)?;
    }
    Ok(0.0)
}

/// Where there is one CPU only, both are there.
fn pin(cpu: usize) -> io::Result<Pinned> {
    let there = thread::available_parallelism().map_or(1, usize::from);
    pin_to_cpu(u32::try_from(cpu % there).unwrap_or(0)).map_err(io::Error::other)
}
