//! UDP: a datagram there and one back, each from the address that the other was sent to.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use rustix::net::{SocketType, connect};

use super::{Attempt, Next, Seen, bound, in_use, refusal};

pub(super) fn probe(mut attempt: Attempt<'_>) -> Result<Seen> {
    let (from, to) = (attempt.ask.from, attempt.ask.to);
    let server = match bound(to, attempt.flow.destination, SocketType::DGRAM, None) {
        Ok(server) => Some(UdpSocket::from(server)),
        // The node's tunnel device has the port: nobody else can answer there.
        Err(error) if in_use(&error) => None,
        Err(error) => return Err(error),
    };
    let client = bound(from, attempt.flow.source, SocketType::DGRAM, None)?;
    // Takes answers from there only.
    connect(&client, &attempt.flow.destination).context("a client's socket")?;
    let client = UdpSocket::from(client);
    let question = [b"question".as_slice(), &attempt.flow.tag.to_be_bytes()].concat();
    let answer = [b"answered".as_slice(), &attempt.flow.tag.to_be_bytes()].concat();
    if let Err(error) = client.send(&question) {
        return refusal(&error).map_or_else(|| Err(error).context("sending"), Ok);
    }
    let mut arrived = false;
    let mut buffer = [0; 64];
    loop {
        if let Some(server) = &server
            && let Some((len, peer)) = received(server.recv_from(&mut buffer))?
        {
            if peer != attempt.flow.source {
                return Ok(Seen::Wrong(format!("arrived from {peer}")));
            }
            if buffer[..len] != question[..] {
                return Ok(Seen::Wrong("other bytes arrived".to_owned()));
            }
            if !arrived {
                server.send_to(&answer, peer).context("answering")?;
            }
            arrived = true;
        }
        match client.recv(&mut buffer) {
            Ok(len) if buffer[..len] == answer[..] && arrived => return Ok(Seen::Allowed),
            Ok(_) => return Ok(Seen::Wrong("another answer arrived".to_owned())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return refusal(&error).map_or_else(|| Err(error).context("receiving"), Ok),
        }
        let mut sockets = vec![client.as_fd()];
        sockets.extend(server.as_ref().map(|server| server.as_fd()));
        match attempt.wait(&sockets, false)? {
            Next::Ready => {}
            Next::Again => {
                // What is wrong is said when receiving.
                let _ = client.send(&question);
            }
            Next::Drop => {
                // Was it really dropped?
                if let Some(server) = &server {
                    arrived |= received(server.recv_from(&mut buffer))?.is_some();
                }
                return Ok(attempt.dropped(arrived));
            }
            Next::Nothing => return Ok(Seen::Silent { arrived }),
        }
    }
}

fn received<T>(result: io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).context("receiving"),
    }
}
