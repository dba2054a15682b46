//! ICMP and SCTP through raw sockets. The kernel answers echo requests itself; it has no SCTP, so the lab answers for it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use rustix::net::{RecvFlags, SendFlags, SocketType, ipproto, recvfrom, sendto};
use simulator::cluster::Protocol;

use super::{Attempt, Next, Seen, bound, packet, refusal};

pub(super) fn probe(mut attempt: Attempt<'_>) -> Result<Seen> {
    let flow = attempt.flow;
    let (source, destination) = (flow.source.ip(), flow.destination.ip());
    let ipv6 = source.is_ipv6();
    let sctp = matches!(flow.protocol, Protocol::Sctp(_));
    let protocol = match (sctp, ipv6) {
        (true, _) => ipproto::SCTP,
        (false, false) => ipproto::ICMP,
        (false, true) => ipproto::ICMPV6,
    };
    // Ports of raw sockets mean nothing.
    let end = |address: IpAddr| SocketAddr::new(address, 0);
    let server = bound(attempt.ask.to, end(destination), SocketType::RAW, Some(protocol))?;
    let client = bound(attempt.ask.from, end(source), SocketType::RAW, Some(protocol))?;
    let request = packet::request(&flow).context("a protocol for raw sockets")?;
    let request = packet::bytes(request, source, destination);
    let answer = packet::answer(&flow).map(|answer| packet::bytes(answer, destination, source));
    let send = |socket: &OwnedFd, bytes: &[u8], to: IpAddr| {
        sendto(socket, bytes, SendFlags::empty(), &end(to)).map_err(std::io::Error::from)
    };
    if let Err(error) = send(&client, &request, destination) {
        return refusal(&error).map_or_else(|| Err(error).context("sending"), Ok);
    }
    let mut arrived = false;
    loop {
        while let Some((bytes, from)) = receive(&server, ipv6)? {
            if from == source && same(&bytes, &request, sctp) {
                if !arrived
                    && sctp
                    && let Some(answer) = &answer
                {
                    send(&server, answer, source).context("answering")?;
                }
                arrived = true;
            }
        }
        let Some(answer) = &answer else {
            if arrived {
                return Ok(Seen::Allowed);
            }
            match attempt.wait(&[server.as_fd()], false)? {
                Next::Ready => continue,
                Next::Again => drop(send(&client, &request, destination)),
                Next::Drop => return Ok(attempt.dropped(has_arrived(&server, &request, source, sctp)?)),
                Next::Nothing => return Ok(Seen::Silent { arrived }),
            }
            continue;
        };
        while let Some((bytes, from)) = receive(&client, ipv6)? {
            if from == destination && same(&bytes, answer, sctp) {
                // The request came before its answer, if it came, but perhaps after this loop looked.
                let arrived = arrived || has_arrived(&server, &request, source, sctp)?;
                return Ok(if arrived {
                    Seen::Allowed
                } else {
                    Seen::Wrong("answered, but not by the receiver".to_owned())
                });
            }
        }
        match attempt.wait(&[client.as_fd(), server.as_fd()], false)? {
            Next::Ready => {}
            Next::Again => drop(send(&client, &request, destination)),
            Next::Drop => {
                return Ok(attempt.dropped(arrived || has_arrived(&server, &request, source, sctp)?));
            }
            Next::Nothing => return Ok(Seen::Silent { arrived }),
        }
    }
}

fn has_arrived(server: &OwnedFd, request: &[u8], source: IpAddr, sctp: bool) -> Result<bool> {
    while let Some((bytes, from)) = receive(server, source.is_ipv6())? {
        if from == source && same(&bytes, request, sctp) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether this is the packet: of SCTP all of it, of ICMP what follows the checksum, and the type.
fn same(got: &[u8], sent: &[u8], sctp: bool) -> bool {
    if sctp { got == sent } else { got.first() == sent.first() && got.get(4..8) == sent.get(4..8) }
}

/// A packet that is waiting, and its sender.
fn receive(socket: &OwnedFd, ipv6: bool) -> Result<Option<(Vec<u8>, IpAddr)>> {
    let mut buffer = [0; 256];
    let (len, from) = match recvfrom(socket, &mut buffer, RecvFlags::empty()) {
        Ok((len, _, from)) => (len, from),
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(errno).context("receiving"),
    };
    ensure!(len <= buffer.len(), "a packet longer than any of ours");
    let from: SocketAddr = from.context("a packet without sender")?.try_into().context("a sender's address")?;
    Ok(Some((packet::content(&buffer[..len], ipv6).to_vec(), from.ip())))
}
