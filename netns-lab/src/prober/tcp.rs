//! TCP: a listener and a client; a connection, and bytes both ways.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use rustix::net::{SocketType, connect, listen, sockopt};

use super::{Attempt, Next, PATIENCE, Seen, bound, refusal};

const QUESTION: [u8; 8] = *b"question";
const ANSWER: [u8; 8] = *b"answered";

pub(super) fn probe(mut attempt: Attempt<'_>) -> Result<Seen> {
    let (from, to) = (attempt.ask.from, attempt.ask.to);
    let server = bound(to, attempt.flow.destination, SocketType::STREAM, None)?;
    listen(&server, 8).context("listening")?;
    let server = TcpListener::from(server);
    let client = bound(from, attempt.flow.source, SocketType::STREAM, None)?;
    // Closed by a reset: the same ports may be asked again at once.
    sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO))?;
    match connect(&client, &attempt.flow.destination) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(errno) => {
            let error = io::Error::from(errno);
            return refusal(&error).map_or_else(|| Err(error).context("connecting"), Ok);
        }
    }
    let client = TcpStream::from(client);
    let connected = loop {
        match attempt.wait(&[client.as_fd()], true)? {
            Next::Ready => break true,
            Next::Drop => break false,
            Next::Again => {}
            Next::Nothing => return Ok(Seen::Silent { arrived: accept(&server)?.is_some() }),
        }
    };
    if !connected {
        // The first reports may be of packets after the first: the kernel repeats what is not answered.
        return Ok(attempt.dropped(accept(&server)?.is_some()));
    }
    if let Some(error) = client.take_error()? {
        return refusal(&error).map_or_else(|| Err(error).context("connecting"), Ok);
    }
    let accepted = loop {
        match accept(&server)? {
            Some(found) => break found,
            None => match attempt.wait(&[server.as_fd()], false)? {
                Next::Ready | Next::Again => {}
                Next::Drop => return Ok(attempt.dropped(true)),
                Next::Nothing => return Ok(Seen::Silent { arrived: true }),
            },
        }
    };
    talk(&mut attempt, client, accepted)
}

fn accept(server: &TcpListener) -> Result<Option<(TcpStream, SocketAddr)>> {
    match server.accept() {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).context("accepting"),
    }
}

/// Eight bytes there, eight other bytes back.
fn talk(attempt: &mut Attempt<'_>, mut client: TcpStream, accepted: (TcpStream, SocketAddr)) -> Result<Seen> {
    let (mut server, peer) = accepted;
    sockopt::set_socket_linger(&server, Some(std::time::Duration::ZERO))?;
    if peer != attempt.flow.source {
        return Ok(Seen::Wrong(format!("arrived from {peer}")));
    }
    for stream in [&client, &server] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    let mut exchange = || -> io::Result<bool> {
        let mut got = [0; 8];
        client.write_all(&QUESTION)?;
        server.read_exact(&mut got)?;
        let there = got == QUESTION;
        server.write_all(&ANSWER)?;
        client.read_exact(&mut got)?;
        Ok(there && got == ANSWER)
    };
    match exchange() {
        Ok(true) => Ok(Seen::Allowed),
        Ok(false) => Ok(Seen::Wrong("other bytes arrived".to_owned())),
        Err(_) if attempt.hear() => Ok(attempt.dropped(true)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Seen::Silent { arrived: true }),
        Err(error) => refusal(&error).map_or_else(|| Err(error).context("bytes both ways"), Ok),
    }
}
