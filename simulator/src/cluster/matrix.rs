//! Who reaches whom: a probe from every pod and from outside to every pod and to the outside, per port.
//!
//! Invariant: the answer depends on the question alone, not on threads, and a pair that answers for others of its class
//! was really sent.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent_core::Model;
use agent_core::model::Protocol as PortProtocol;
use simulator_vm::RunError;

use super::probe::Endpoint;
use super::{Cluster, ClusterError, Family, Options, Party, Probe, Protocol, Verdict, Why};

/// What one probe said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Request and answer arrived.
    Allow,
    /// They arrived, and a policy that only audits would have stopped them.
    Audit,
    /// They were for a proxy, and there is none.
    Redirect,
    /// They did not arrive.
    Deny,
    /// Not asked: an endpoint to itself, or a question that was left out.
    Same,
}

impl Cell {
    /// As `--json` writes it.
    pub const fn letter(self) -> char {
        match self {
            Self::Allow => '1',
            Self::Audit => 'a',
            Self::Redirect => 'r',
            Self::Deny => '0',
            Self::Same => '.',
        }
    }

    /// The verdict, if it was asked for.
    pub const fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Allow => Some(Verdict::Allow),
            Self::Audit => Some(Verdict::Audit),
            Self::Redirect => Some(Verdict::Redirect),
            Self::Deny => Some(Verdict::Deny),
            Self::Same => None,
        }
    }

    /// Of a letter of `--json`.
    pub fn from_letter(letter: char) -> Option<Self> {
        let all = [Self::Allow, Self::Audit, Self::Redirect, Self::Deny, Self::Same];
        all.into_iter().find(|cell| cell.letter() == letter)
    }

    /// As people read it.
    pub const fn symbol(self) -> char {
        match self {
            Self::Allow => '✓',
            Self::Audit => '!',
            Self::Redirect => '»',
            Self::Deny => '✗',
            Self::Same => '·',
        }
    }
}

impl From<Verdict> for Cell {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Audit => Self::Audit,
            Verdict::Redirect => Self::Redirect,
            Verdict::Deny => Self::Deny,
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

    /// How many probes ended so.
    pub fn count(&self, verdict: Verdict) -> usize {
        let cell = Cell::from(verdict);
        self.rows.iter().flatten().filter(|own| **own == cell).count()
    }

    /// Probes that arrived (audited or not), and all probes.
    pub fn totals(&self) -> (usize, usize) {
        let asked = self.rows.iter().flatten().filter(|cell| **cell != Cell::Same).count();
        (self.count(Verdict::Allow) + self.count(Verdict::Audit), asked)
    }
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Every pod, perhaps every node, then the world.
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

/// Every pod of the model, every node, then the world.
pub fn endpoints_with_nodes(model: &Model) -> Vec<Party> {
    let nodes = model.nodes().iter().map(|node| Party::Node(node.name.clone()));
    model.pods().keys().cloned().map(Party::Pod).chain(nodes).chain([Party::World]).collect()
}

/// Whether a sender (index) is to be asked about a receiver.
pub type Wanted<'a> = &'a (dyn Fn(usize, usize) -> bool + Sync);

/// The class of a sender and a receiver: all pairs of a class have the same answer on every port. `None`: like no other.
pub type Class<'a> = &'a (dyn Fn(usize, usize) -> Option<u64> + Sync);

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
    /// Of each class one pair is asked, and answers for the others; `None`: every pair is asked.
    pub class: Option<Class<'a>>,
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
    /// Probes that were sent.
    pub probes: usize,
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

/// Which pairs are asked, and whose answer each pair has.
pub struct Plan<'a> {
    question: Question<'a>,
    /// Pairs that are asked, on every port.
    pairs: Vec<(u32, u32)>,
    /// Senders × receivers: index in `pairs`; [`NOBODY`]: not asked.
    answers: Vec<u32>,
}

/// In [`Plan`]: not asked.
const NOBODY: u32 = u32::MAX;
/// Pairs that one thread takes at a time.
const CHUNK: usize = 1024;

/// What one chunk of pairs said on one port.
struct Part {
    /// Port × chunks + chunk.
    number: usize,
    cells: Vec<Cell>,
    /// Of the thread's own reasons.
    whys: Vec<u32>,
}

/// One thread's parts.
struct Share {
    parts: Vec<Part>,
    reasons: Vec<Why>,
    runs: u64,
    engine: &'static str,
}

impl<'a> Question<'a> {
    /// Decides what is sent.
    pub fn plan(self) -> Plan<'a> {
        let all = self.parties.len();
        let (mut pairs, mut answers) = (Vec::new(), Vec::with_capacity(all * all));
        let mut known: HashMap<u64, u32> = HashMap::new();
        for from in 0..all {
            for to in 0..all {
                if from == to || self.wanted.is_some_and(|wanted| !wanted(from, to)) {
                    answers.push(NOBODY);
                    continue;
                }
                let mut next = || {
                    let number = u32::try_from(pairs.len()).unwrap_or(NOBODY);
                    let index = |index: usize| u32::try_from(index).unwrap_or(NOBODY);
                    pairs.push((index(from), index(to)));
                    number
                };
                answers.push(match self.class.and_then(|class| class(from, to)) {
                    None => next(),
                    Some(class) => *known.entry(class).or_insert_with(next),
                });
            }
        }
        Plan { question: self, pairs, answers }
    }

    /// Plans and asks. `progress` is told now and then how many more probes were sent.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask(&self, progress: &(dyn Fn(usize) + Sync)) -> Result<Answer, AskError> {
        self.clone().plan().ask(self.threads, progress)
    }
}

impl Plan<'_> {
    /// How many probes are sent.
    pub fn probes(&self) -> usize {
        self.pairs.len() * self.question.ports.len()
    }

    /// Asks, with so many clusters at the same time. `progress` is told now and then how many more probes were sent.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask(&self, threads: usize, progress: &(dyn Fn(usize) + Sync)) -> Result<Answer, AskError> {
        let next = AtomicUsize::new(0);
        let shares: Vec<Result<Share, AskError>> = if threads > 1 {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.share(&next, progress))).collect();
                // A thread that panics has hit a bug of ours: it must not look like an answer.
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
            })
        } else {
            vec![self.share(&next, progress)]
        };
        let shares = shares.into_iter().collect::<Result<Vec<Share>, AskError>>()?;
        let found: BTreeSet<Why> = shares.iter().flat_map(|share| &share.reasons).copied().collect();
        let reasons: Vec<Why> = found.into_iter().collect();
        let mut parts: BTreeMap<usize, Part> = BTreeMap::new();
        let (mut runs, mut engine) = (0, "");
        for share in shares {
            runs += share.runs;
            engine = share.engine;
            let place = |why: &Why| reasons.binary_search(why).ok().and_then(|place| u32::try_from(place).ok());
            let places: Vec<u32> = share.reasons.iter().map(|why| place(why).unwrap_or(NO_REASON)).collect();
            for mut part in share.parts {
                for number in &mut part.whys {
                    let own = usize::try_from(*number).ok().and_then(|number| places.get(number));
                    *number = own.copied().unwrap_or(NO_REASON);
                }
                parts.insert(part.number, part);
            }
        }
        let mut parts = parts.into_values();
        let tables = self.question.ports.iter().map(|port| self.table(*port, &mut parts)).collect();
        let matrix = Matrix { endpoints: self.question.parties.to_vec(), tables, reasons };
        Ok(Answer { matrix, probes: self.probes(), runs, engine })
    }

    fn chunks(&self) -> usize {
        self.pairs.len().div_ceil(CHUNK)
    }

    /// The table of a port from its parts, which come next.
    fn table(&self, port: Protocol, parts: &mut impl Iterator<Item = Part>) -> Table {
        let (mut cells, mut whys) = (Vec::with_capacity(self.pairs.len()), Vec::new());
        for part in parts.take(self.chunks()) {
            cells.extend(part.cells);
            whys.extend(part.whys);
        }
        let of = |answer: &u32| usize::try_from(*answer).ok();
        let cell = |answer: &u32| of(answer).and_then(|answer| cells.get(answer)).copied().unwrap_or(Cell::Same);
        let why = |answer: &u32| of(answer).and_then(|answer| whys.get(answer)).copied().unwrap_or(NO_REASON);
        let rows = || self.answers.chunks(self.question.parties.len().max(1));
        Table {
            port,
            rows: rows().map(|row| row.iter().map(cell).collect()).collect(),
            whys: if self.question.options.verdicts {
                rows().map(|row| row.iter().map(why).collect()).collect()
            } else {
                Vec::new()
            },
        }
    }

    /// Takes part after part until none is left, in a cluster of its own.
    fn share(&self, next: &AtomicUsize, progress: &(dyn Fn(usize) + Sync)) -> Result<Share, AskError> {
        let Question { model, options, parties, ports, family, .. } = &self.question;
        let mut cluster = Cluster::new(Model::clone(model), Options::clone(options))?;
        // A party that the model names is always found.
        let found: Vec<Option<Endpoint>> = parties.iter().map(|party| cluster.endpoint(party).ok()).collect();
        let engine = cluster.nodes().first().map_or("", |node| node.datapath.name());
        let mut share = Share { parts: Vec::new(), reasons: Vec::new(), runs: 0, engine };
        let mut known: BTreeMap<Why, u32> = BTreeMap::new();
        let end = |end: u32| usize::try_from(end).ok().and_then(|end| found.get(end)).and_then(Option::as_ref);
        while !self.pairs.is_empty() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (table, chunk) = (number / self.chunks(), number % self.chunks());
            let (Some(port), Some(pairs)) = (ports.get(table), self.pairs.chunks(CHUNK).nth(chunk)) else { break };
            let mut part = Part { number, cells: Vec::with_capacity(pairs.len()), whys: Vec::new() };
            for (from, to) in pairs {
                // Ends without a family in common cannot reach each other.
                let probe = end(*from).zip(end(*to)).and_then(|(from, to)| Probe::between(from, to, *port, *family));
                let why = match probe {
                    Some(probe) if options.verdicts => cluster.probe_why(&probe)?,
                    Some(probe) => {
                        let outcome = cluster.probe(&probe)?;
                        part.cells.push(cluster.verdict(&outcome).into());
                        continue;
                    }
                    None => Why::NO_FAMILY,
                };
                part.cells.push(why.verdict().into());
                if options.verdicts {
                    part.whys.push(*known.entry(why).or_insert_with(|| {
                        share.reasons.push(why);
                        u32::try_from(share.reasons.len() - 1).unwrap_or(NO_REASON)
                    }));
                }
            }
            progress(part.cells.len());
            share.parts.push(part);
        }
        cluster.finish_captures().map_err(ClusterError::Capture)?;
        share.runs = cluster.runs();
        Ok(share)
    }
}
