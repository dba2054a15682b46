//! How fast pods talk through weir, beside the same namespaces connected by the kernel alone. Both stand at the same time
//! and take turns: what else the machine does meets both alike, and the ratio is that of turns next to each other.
//!
//! | case | weir | the kernel alone |
//! |---|---|---|
//! | `same-node` | two pods of a node | two namespaces, a veth pair each, a third that routes between them |
//! | `native` | pods of two nodes, `routing-mode = "native"` | the same four namespaces and switch, routes |
//! | `tunnel` | pods of two nodes over VXLAN | two namespaces with a VXLAN device each: no pods behind them |
//! | `tunnel-pods` | the same | two nodes with a VXLAN device each, and a namespace behind each that they route to |

mod baseline;
mod traffic;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use agent_core::{Model, Settings};
use anyhow::{Context as _, Result};
use serde::Serialize;
use simulator::cluster::tunnel::Protocol;

use crate::place::Place;
use crate::registry::Run;
use crate::topology::Topology;
use crate::world::World;

pub use baseline::Baseline;
use traffic::Kind;

/// Port of servers.
const PORT: u16 = 5001;

/// A node with its pods; pods a and b are on the first node, c on the second.
const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.244.1.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: x}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.244.1.6}]}
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: x}
spec: {nodeName: n2, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.244.2.5}]}
";

/// Who talks to whom.
#[derive(Clone, Copy)]
struct Pair<'a> {
    client: &'a Place,
    server: &'a Place,
    address: SocketAddr,
}

/// What one case and kind of traffic came to.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Case.
    pub case: &'static str,
    /// `stream` or `request-response`.
    pub traffic: &'static str,
    /// Gbit/s, or transactions per second.
    pub unit: &'static str,
    /// Medians: weir's, and the kernel's.
    pub weir: f64,
    /// As above.
    pub kernel: f64,
    /// Median, lowest and highest of the turns' ratios, weir to kernel.
    pub ratio: [f64; 3],
}

/// Measures every case, `rounds` turns of `seconds` each. `tell` is told what is measured next.
///
/// # Errors
/// Missing privileges, or a connection that breaks.
pub fn run(rounds: usize, seconds: f64, tell: &dyn Fn(&str)) -> Result<Vec<Row>> {
    let length = Duration::try_from_secs_f64(seconds).context("seconds")?;
    let mut rows = Vec::new();
    {
        let world = world(false)?;
        let plain = Baseline::routed()?;
        let server = world.address("x/b", false, PORT)?;
        let weir = Pair { client: world.pod("x/a")?, server: world.pod("x/b")?, address: server };
        measure("same-node", weir, plain.pair(), rounds, length, tell, &mut rows)?;
        let plain = Baseline::two_nodes(false)?;
        let server = world.address("x/c", false, PORT)?;
        let weir = Pair { client: world.pod("x/a")?, server: world.pod("x/c")?, address: server };
        measure("native", weir, plain.pair(), rounds, length, tell, &mut rows)?;
    }
    let world = world(true)?;
    let server = world.address("x/c", false, PORT)?;
    let weir = Pair { client: world.pod("x/a")?, server: world.pod("x/c")?, address: server };
    let plain = Baseline::vxlan()?;
    measure("tunnel", weir, plain.pair(), rounds, length, tell, &mut rows)?;
    drop(plain);
    let plain = Baseline::two_nodes(true)?;
    measure("tunnel-pods", weir, plain.pair(), rounds, length, tell, &mut rows)?;
    Ok(rows)
}

fn world(tunnel: bool) -> Result<World> {
    let model = Model::parse(
        &[("bench.yaml".to_owned(), CLUSTER.to_owned())],
        Settings { ipv6: false, ..Settings::default() },
    )?;
    let mut topology = Topology::default();
    topology.config.tunnel = tunnel.then_some(Protocol::Vxlan);
    topology.config.ipv6 = false;
    World::build(Run::begin(None)?, &model, CLUSTER, topology)
}

fn measure(
    case: &'static str,
    weir: Pair<'_>,
    kernel: Pair<'_>,
    rounds: usize,
    length: Duration,
    tell: &dyn Fn(&str),
    rows: &mut Vec<Row>,
) -> Result<()> {
    for kind in [Kind::Stream, Kind::RequestResponse] {
        tell(&format!("{case}: {}", kind.name()));
        let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=rounds {
            // Who goes first changes.
            let (first, second) = if round.is_multiple_of(2) { (weir, kernel) } else { (kernel, weir) };
            let one = traffic::run(kind, first, length)?;
            let other = traffic::run(kind, second, length)?;
            let (our, their) = if round.is_multiple_of(2) { (one, other) } else { (other, one) };
            // The first turn warms up.
            if round > 0 {
                ours.push(our);
                theirs.push(their);
                ratios.push(our / their);
            }
        }
        let (lowest, highest) = (fold(&ratios, f64::min), fold(&ratios, f64::max));
        rows.push(Row {
            case,
            traffic: kind.name(),
            unit: kind.unit(),
            weir: median(&mut ours),
            kernel: median(&mut theirs),
            ratio: [median(&mut ratios), lowest, highest],
        });
    }
    Ok(())
}

fn fold(values: &[f64], with: fn(f64, f64) -> f64) -> f64 {
    values.iter().copied().reduce(with).unwrap_or_default()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    if values.len().is_multiple_of(2) { f64::midpoint(at(middle.saturating_sub(1)), at(middle)) } else { at(middle) }
}

/// A table of rows.
#[must_use]
pub fn text(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<12} {:<17} {:>10} {:>10} {:<8} {:>7}  {:>13}\n",
        "case", "traffic", "weir", "kernel", "", "ratio", "lowest-highest"
    );
    for row in rows {
        let [ratio, lowest, highest] = row.ratio;
        let _ = writeln!(
            out,
            "{:<12} {:<17} {:>10.1} {:>10.1} {:<8} {:>6.1}%  {:>5.1}-{:.1}%",
            row.case,
            row.traffic,
            row.weir,
            row.kernel,
            row.unit,
            ratio * 100.0,
            lowest * 100.0,
            highest * 100.0
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
