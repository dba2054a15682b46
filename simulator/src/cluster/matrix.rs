//! Who reaches whom: a probe from every pod and from outside to every pod and to the outside, per port.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent_core::Model;
use agent_core::model::Protocol as PortProtocol;
use simulator_vm::RunError;

use super::probe::Endpoint;
use super::{Cluster, ClusterError, Family, Options, Party, Probe, Protocol};

/// What one probe said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Request and answer arrived.
    Allow,
    /// They did not.
    Deny,
    /// Not asked: an endpoint to itself.
    Same,
}

impl Cell {
    /// As `--json` writes it.
    pub const fn letter(self) -> char {
        match self {
            Self::Allow => '1',
            Self::Deny => '0',
            Self::Same => '.',
        }
    }

    /// As people read it.
    pub const fn symbol(self) -> char {
        match self {
            Self::Allow => '✓',
            Self::Deny => '✗',
            Self::Same => '·',
        }
    }
}

/// The table of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Port and protocol.
    pub port: Protocol,
    /// Row: sender, column: receiver, both in the order of [`Matrix::endpoints`].
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Probes that were allowed, and all probes.
    pub fn totals(&self) -> (usize, usize) {
        let cells = || self.rows.iter().flatten();
        let allowed = cells().filter(|cell| **cell == Cell::Allow).count();
        (allowed, cells().filter(|cell| **cell != Cell::Same).count())
    }
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Every pod, then the world.
    pub endpoints: Vec<Party>,
    /// Per port.
    pub tables: Vec<Table>,
}

/// Every port that a pod declares, by number, then protocol.
pub fn declared_ports(model: &Model) -> Vec<Protocol> {
    let all = model.pods().values().flat_map(|pod| &pod.ports);
    let sorted: BTreeSet<(u16, PortProtocol)> = all.map(|port| (port.port, port.protocol)).collect();
    sorted.into_iter().map(|(port, protocol)| of(protocol, port)).collect()
}

/// A container port as a probe names it.
pub const fn of(protocol: PortProtocol, port: u16) -> Protocol {
    match protocol {
        PortProtocol::Tcp => Protocol::Tcp(port),
        PortProtocol::Udp => Protocol::Udp(port),
        PortProtocol::Sctp => Protocol::Sctp(port),
    }
}

/// Every pod of the model, then the world.
pub fn endpoints(model: &Model) -> Vec<Party> {
    model.pods().keys().cloned().map(Party::Pod).chain([Party::World]).collect()
}

/// What is asked, and how.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Objects.
    pub model: &'a Model,
    /// Simulation.
    pub options: &'a Options,
    /// Ports, one table each.
    pub ports: &'a [Protocol],
    /// Address family; `None`: IPv4 where both ends have it.
    pub family: Option<Family>,
    /// Clusters that are asked at the same time. The answer does not depend on it; captures need one.
    pub threads: usize,
}

/// A matrix, and what it took.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The matrix.
    pub matrix: Matrix,
    /// Hook programs run.
    pub runs: u64,
    /// Engine of the nodes.
    pub engine: &'static str,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The cluster could not be made.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A program failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// One thread's rows, each with its number.
struct Share {
    rows: Vec<(usize, Vec<Cell>)>,
    runs: u64,
    engine: &'static str,
}

impl Question<'_> {
    /// Asks. `progress` is told after every row, how many cells it has.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask(&self, progress: &(dyn Fn(usize) + Sync)) -> Result<Answer, AskError> {
        let next = AtomicUsize::new(0);
        let shares: Vec<Result<Share, AskError>> = if self.threads > 1 {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..self.threads).map(|_| scope.spawn(|| self.share(&next, progress))).collect();
                // A thread that panics has hit a bug of ours: it must not look like an answer.
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
            })
        } else {
            vec![self.share(&next, progress)]
        };
        let endpoints = endpoints(self.model);
        let mut rows: Vec<Vec<Cell>> = vec![Vec::new(); endpoints.len() * self.ports.len()];
        let (mut runs, mut engine) = (0, "");
        for share in shares {
            let share = share?;
            runs += share.runs;
            engine = share.engine;
            for (number, row) in share.rows {
                if let Some(place) = rows.get_mut(number) {
                    *place = row;
                }
            }
        }
        let mut rows = rows.into_iter();
        let tables = self
            .ports
            .iter()
            .map(|port| Table { port: *port, rows: rows.by_ref().take(endpoints.len()).collect() })
            .collect();
        Ok(Answer { matrix: Matrix { endpoints, tables }, runs, engine })
    }

    /// Takes row after row until none is left, in a cluster of its own.
    fn share(&self, next: &AtomicUsize, progress: &(dyn Fn(usize) + Sync)) -> Result<Share, AskError> {
        let mut cluster = Cluster::new(self.model.clone(), self.options.clone())?;
        // A party that the model names is always found.
        let found: Vec<Option<Endpoint>> =
            endpoints(self.model).iter().map(|party| cluster.endpoint(party).ok()).collect();
        let engine = cluster.nodes().first().map_or("", |node| node.datapath.name());
        let mut share = Share { rows: Vec::new(), runs: 0, engine };
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (table, sender) = (number / found.len(), number % found.len());
            let (Some(port), Some(from)) = (self.ports.get(table), found.get(sender)) else { break };
            let mut row = Vec::with_capacity(found.len());
            for (receiver, to) in found.iter().enumerate() {
                row.push(if sender == receiver {
                    Cell::Same
                } else {
                    let ends = from.as_ref().zip(to.as_ref());
                    // Ends without a family in common cannot reach each other.
                    match ends.and_then(|(from, to)| Probe::between(from, to, *port, self.family)) {
                        Some(probe) if cluster.probe(&probe)?.allowed() => Cell::Allow,
                        Some(_) | None => Cell::Deny,
                    }
                });
            }
            share.rows.push((number, row));
            progress(found.len());
        }
        cluster.finish_captures().map_err(ClusterError::Capture)?;
        share.runs = cluster.runs();
        Ok(share)
    }
}
