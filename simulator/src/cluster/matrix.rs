//! Who reaches whom: a probe from every pod and from outside to every pod and to the outside, per port.

use std::collections::BTreeSet;

use agent_core::Model;
use agent_core::model::Protocol as PortProtocol;
use simulator_vm::RunError;

use super::probe::Endpoint;
use super::{Cluster, Family, Party, Probe, Protocol};

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

impl Matrix {
    /// Asks. `progress` is told after every row.
    ///
    /// # Errors
    /// A fault of a program.
    pub fn ask(
        cluster: &mut Cluster,
        ports: &[Protocol],
        family: Option<Family>,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, RunError> {
        let endpoints = endpoints(cluster.model());
        // A party that the model names is always found.
        let found: Vec<Option<Endpoint>> = endpoints.iter().map(|party| cluster.endpoint(party).ok()).collect();
        let mut tables = Vec::with_capacity(ports.len());
        for &port in ports {
            let mut rows = Vec::with_capacity(endpoints.len());
            for (sender, from) in found.iter().enumerate() {
                let mut row = Vec::with_capacity(endpoints.len());
                for (receiver, to) in found.iter().enumerate() {
                    if sender == receiver {
                        row.push(Cell::Same);
                        continue;
                    }
                    let ends = from.as_ref().zip(to.as_ref());
                    // Ends without a family in common cannot reach each other.
                    let probe = ends.and_then(|(from, to)| Probe::between(from, to, port, family));
                    let allowed = match probe {
                        Some(probe) => cluster.probe(&probe)?.allowed(),
                        None => false,
                    };
                    row.push(if allowed { Cell::Allow } else { Cell::Deny });
                }
                rows.push(row);
                progress(endpoints.len());
            }
            tables.push(Table { port, rows });
        }
        Ok(Self { endpoints, tables })
    }
}
