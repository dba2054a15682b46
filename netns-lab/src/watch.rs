//! What the agents of all nodes report as it happens: one thread per agent reads its monitor's stream.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_api::{Event, EventKind, Filter, Line, Request};
use anyhow::{Context as _, Result};
use rustix::event::{EventfdFlags, eventfd};

/// Drops at all nodes, in the order in which they were heard of.
#[derive(Debug)]
pub struct Watch {
    heard: Mutex<Heard>,
    /// Readable when there is something.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Heard {
    drops: Vec<Dropped>,
    /// Nodes that are listened to, each with the number of its listener.
    nodes: BTreeMap<String, u64>,
    listeners: u64,
    /// Events that an agent could not keep for us.
    lost: u64,
}

/// A packet that was dropped at a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The node.
    pub node: String,
    /// What its agent says.
    pub event: Event,
}

impl Watch {
    /// Hears nothing yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> Result<Arc<Self>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { heard: Mutex::default(), wake }))
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to an agent until it ends; nothing to do where that is so already.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn listen(self: &Arc<Self>, node: &str, socket: &Path) -> Result<()> {
        if self.heard().nodes.contains_key(node) {
            return Ok(());
        }
        let mut stream = UnixStream::connect(socket).with_context(|| format!("{node}: its agent's socket"))?;
        let request = Request::Monitor(Filter { kinds: vec![EventKind::Drop], ..Filter::default() });
        stream.write_all(format!("{}\n", serde_json::to_string(&request)?).as_bytes())?;
        let mut reader = BufReader::new(stream);
        // Its answer: from here on nothing is missed.
        reader.read_line(&mut String::new())?;
        let number = {
            let mut heard = self.heard();
            heard.listeners += 1;
            let number = heard.listeners;
            heard.nodes.insert(node.to_owned(), number);
            number
        };
        let (watch, node) = (Arc::downgrade(self), node.to_owned());
        std::thread::Builder::new().name(format!("watch {node}")).spawn(move || {
            for text in reader.lines().map_while(Result::ok) {
                let Some(watch) = watch.upgrade() else { return };
                match serde_json::from_str(&text) {
                    Ok(Line::Event(event)) => watch.heard().drops.push(Dropped { node: node.clone(), event: *event }),
                    Ok(Line::Lost(count)) => watch.heard().lost += count,
                    Err(_) => continue,
                }
                // A full counter is readable too.
                let _ = rustix::io::write(&watch.wake, &1_u64.to_ne_bytes());
            }
            if let Some(watch) = watch.upgrade() {
                watch.heard().nodes.retain(|known, listener| *known != node || *listener != number);
            }
        })?;
        Ok(())
    }

    /// The agent of a node has ended: the next one must be listened to anew.
    pub fn forget(&self, node: &str) {
        self.heard().nodes.remove(node);
    }

    /// Takes all that was heard since the last time.
    #[must_use]
    pub fn take(&self) -> Vec<Dropped> {
        // First the signal: what comes between is heard the next time.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::take(&mut self.heard().drops)
    }

    /// Takes what was heard of something; the rest stays.
    #[must_use]
    pub fn take_of(&self, mut wanted: impl FnMut(&Dropped) -> bool) -> Vec<Dropped> {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut heard = self.heard();
        let (of_it, rest) = std::mem::take(&mut heard.drops).into_iter().partition(|drop| wanted(drop));
        heard.drops = rest;
        of_it
    }

    /// Events that agents could not keep for this listener.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.heard().lost
    }
}

/// Readable when something was heard.
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
