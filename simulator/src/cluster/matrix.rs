//! Who reaches whom: a probe from every pod and from outside to every pod and to the outside, per port.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent_core::Model;
use agent_core::model::Protocol as PortProtocol;
use simulator_vm::RunError;

use super::probe::Endpoint;
use super::{Cluster, ClusterError, Family, Options, Party, Probe, Protocol, Why};

/// What one probe said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Request and answer arrived.
    Allow,
    /// They did not.
    Deny,
    /// Not asked: an endpoint to itself, or a question that was left out.
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
    /// Alike, why: indices of [`Matrix::reasons`], [`NO_REASON`] where nothing was asked. No rows unless the options ask
    /// for verdicts.
    pub whys: Vec<Vec<u32>>,
}

/// In [`Table::whys`]: not asked.
pub const NO_REASON: u32 = u32::MAX;

impl Table {
    /// Why a probe ended as it did.
    pub fn why(&self, reasons: &[Why], sender: usize, receiver: usize) -> Option<Why> {
        let number = *self.whys.get(sender)?.get(receiver)?;
        reasons.get(usize::try_from(number).ok()?).copied()
    }

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
    /// What decided, each once, in order; see [`Table::whys`].
    pub reasons: Vec<Why>,
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

/// Whether a sender (index) is to be asked about a receiver.
pub type Wanted<'a> = &'a (dyn Fn(usize, usize) -> bool + Sync);

/// What is asked, and how.
#[derive(Clone)]
pub struct Question<'a> {
    /// Objects.
    pub model: &'a Model,
    /// Simulation.
    pub options: &'a Options,
    /// Who sends and receives; see [`endpoints`].
    pub parties: &'a [Party],
    /// Ports, one table each.
    pub ports: &'a [Protocol],
    /// Questions that are asked; `None`: all.
    pub wanted: Option<Wanted<'a>>,
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

/// One sender's answers to one port's questions.
struct Row {
    /// Table × senders + sender.
    number: usize,
    cells: Vec<Cell>,
    /// Of the thread's own reasons.
    whys: Vec<u32>,
}

/// One thread's rows.
struct Share {
    rows: Vec<Row>,
    reasons: Vec<Why>,
    runs: u64,
    engine: &'static str,
}

impl Question<'_> {
    /// Asks. `progress` is told after every row, how many questions it asked.
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
        let shares = shares.into_iter().collect::<Result<Vec<Share>, AskError>>()?;
        let found: BTreeSet<Why> = shares.iter().flat_map(|share| &share.reasons).copied().collect();
        let reasons: Vec<Why> = found.into_iter().collect();
        let mut rows: Vec<Vec<Cell>> = vec![Vec::new(); self.parties.len() * self.ports.len()];
        let mut whys: Vec<Vec<u32>> = vec![Vec::new(); if self.options.verdicts { rows.len() } else { 0 }];
        let (mut runs, mut engine) = (0, "");
        for share in shares {
            runs += share.runs;
            engine = share.engine;
            let place = |why: &Why| reasons.binary_search(why).ok().and_then(|place| u32::try_from(place).ok());
            let places: Vec<u32> = share.reasons.iter().map(|why| place(why).unwrap_or(NO_REASON)).collect();
            let place = |number: &u32| {
                let own = usize::try_from(*number).ok().and_then(|number| places.get(number));
                own.copied().unwrap_or(NO_REASON)
            };
            for row in share.rows {
                if let Some(to) = whys.get_mut(row.number) {
                    *to = row.whys.iter().map(place).collect();
                }
                if let Some(to) = rows.get_mut(row.number) {
                    *to = row.cells;
                }
            }
        }
        let (mut rows, mut whys) = (rows.into_iter(), whys.into_iter());
        let senders = self.parties.len();
        let table = |port: &Protocol| Table {
            port: *port,
            rows: rows.by_ref().take(senders).collect(),
            whys: whys.by_ref().take(senders).collect(),
        };
        let tables = self.ports.iter().map(table).collect();
        Ok(Answer { matrix: Matrix { endpoints: self.parties.to_vec(), tables, reasons }, runs, engine })
    }

    /// Takes row after row until none is left, in a cluster of its own.
    fn share(&self, next: &AtomicUsize, progress: &(dyn Fn(usize) + Sync)) -> Result<Share, AskError> {
        let mut cluster = Cluster::new(self.model.clone(), self.options.clone())?;
        // A party that the model names is always found.
        let found: Vec<Option<Endpoint>> = self.parties.iter().map(|party| cluster.endpoint(party).ok()).collect();
        let engine = cluster.nodes().first().map_or("", |node| node.datapath.name());
        let mut share = Share { rows: Vec::new(), reasons: Vec::new(), runs: 0, engine };
        let mut known: BTreeMap<Why, u32> = BTreeMap::new();
        while !found.is_empty() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (table, sender) = (number / found.len(), number % found.len());
            let (Some(port), Some(from)) = (self.ports.get(table), found.get(sender)) else { break };
            let mut row = Row { number, cells: Vec::with_capacity(found.len()), whys: Vec::new() };
            for (receiver, to) in found.iter().enumerate() {
                if sender == receiver || self.wanted.is_some_and(|wanted| !wanted(sender, receiver)) {
                    row.cells.push(Cell::Same);
                    if self.options.verdicts {
                        row.whys.push(NO_REASON);
                    }
                    continue;
                }
                let ends = from.as_ref().zip(to.as_ref());
                // Ends without a family in common cannot reach each other.
                let probe = ends.and_then(|(from, to)| Probe::between(from, to, *port, self.family));
                let why = match probe {
                    Some(probe) if self.options.verdicts => cluster.probe_why(&probe)?,
                    Some(probe) => {
                        row.cells.push(if cluster.probe(&probe)?.allowed() { Cell::Allow } else { Cell::Deny });
                        continue;
                    }
                    None => Why::NO_FAMILY,
                };
                row.cells.push(if why.allowed() { Cell::Allow } else { Cell::Deny });
                if self.options.verdicts {
                    row.whys.push(*known.entry(why).or_insert_with(|| {
                        share.reasons.push(why);
                        u32::try_from(share.reasons.len() - 1).unwrap_or(NO_REASON)
                    }));
                }
            }
            progress(row.cells.iter().filter(|cell| **cell != Cell::Same).count());
            share.rows.push(row);
        }
        cluster.finish_captures().map_err(ClusterError::Capture)?;
        share.runs = cluster.runs();
        Ok(share)
    }
}
