//! One connection to the agent: a line of JSON each way.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use agent_api::{Refusal, Reply, Request};
use serde::de::DeserializeOwned;

/// Nothing came of it.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The agent is not there.
    Connect(String),
    /// The agent refused.
    Refused(Refusal),
    /// The connection, or our own output.
    Io(io::Error),
}

impl Failed {
    /// Whether the call is wrong.
    pub(crate) fn is_input(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.input,
            Self::Connect(_) | Self::Io(_) => false,
        }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(why) => write!(f, "no agent: {why}"),
            Self::Refused(refusal) => f.write_str(&refusal.message),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<serde_json::Error> for Failed {
    fn from(error: serde_json::Error) -> Self {
        Self::Io(error.into())
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Result<Self, Failed> {
        let stream = UnixStream::connect(socket).map_err(|error| {
            let hints = [
                (io::ErrorKind::NotFound, "; is weir-agent running on this node, with this `socket` in its settings?"),
                (io::ErrorKind::ConnectionRefused, "; weir-agent has ended without cleaning up: start it again"),
                (io::ErrorKind::PermissionDenied, "; only root may ask it"),
            ];
            let hint = hints.iter().find(|(kind, _)| *kind == error.kind()).map_or("", |(_, hint)| hint);
            Failed::Connect(format!("{}: {error}{hint}", socket.display()))
        })?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, Failed> {
        let text = serde_json::to_string(request)? + "\n";
        self.reader.get_mut().write_all(text.as_bytes())?;
        match self.next()? {
            Reply::Ok(value) => Ok(value),
            Reply::Error(refusal) => Err(Failed::Refused(refusal)),
        }
    }

    /// The next line.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<T, Failed> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(Failed::Connect("it has hung up".to_owned()));
        }
        Ok(serde_json::from_str(&line)?)
    }
}
