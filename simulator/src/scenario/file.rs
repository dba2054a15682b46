//! The TOML form: what may stand in a scenario file, and nothing else.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

pub(super) type Lines = Vec<Spanned<String>>;
pub(super) type Table = BTreeMap<String, Spanned<String>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) title: String,
    pub(super) source: String,
    pub(super) now: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) config: Config,
    #[serde(default)]
    pub(super) ipcache: Table,
    #[serde(default)]
    pub(super) cidr: Table,
    #[serde(default)]
    pub(super) policy: Table,
    #[serde(default)]
    pub(super) ct: Lines,
    #[serde(default)]
    pub(super) frag: Lines,
    #[serde(default)]
    pub(super) faults: Faults,
    #[serde(default)]
    pub(super) missing_calls: Lines,
    /// No expectations: the engines must agree, and that is all.
    #[serde(default)]
    pub(super) compare_only: bool,
    pub(super) step: Vec<Spanned<Step>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    pub(super) written: Option<bool>,
    pub(super) tunnel: Option<bool>,
    pub(super) redirect_peer: Option<bool>,
    pub(super) verdict_events: Option<bool>,
    pub(super) trace_events: Option<bool>,
    pub(super) dual_stack: Option<bool>,
    pub(super) host_policy: Option<bool>,
    pub(super) geneve: Option<bool>,
    pub(super) tunnel_ifindex: Option<u32>,
    pub(super) host_ifindex: Option<u32>,
    pub(super) ticks_per_second: Option<u32>,
    pub(super) vxlan_port: Option<u16>,
    pub(super) geneve_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Faults {
    #[serde(default)]
    pub(super) map_update_fails: bool,
    #[serde(default)]
    pub(super) set_tunnel_key_fails: bool,
    #[serde(default)]
    pub(super) get_tunnel_key_fails: bool,
    #[serde(default)]
    pub(super) ring_full: bool,
    #[serde(default)]
    pub(super) packet_memory_fails: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tunnel {
    pub(super) id: u32,
    pub(super) remote: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    #[serde(default)]
    pub(super) note: String,
    pub(super) hook: Spanned<String>,
    pub(super) ifindex: Option<u32>,
    pub(super) mark: Option<u32>,
    pub(super) tunnel: Option<Tunnel>,
    /// Bytes of the frame that are readable at first.
    pub(super) linear: Option<u32>,
    pub(super) send: Spanned<String>,
    pub(super) advance: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) ipcache: Table,
    #[serde(default)]
    pub(super) cidr: Table,
    #[serde(default)]
    pub(super) policy: Table,
    #[serde(default)]
    pub(super) remove_policy: Lines,
    #[serde(default)]
    pub(super) remove_ipcache: Lines,
    pub(super) faults: Option<Faults>,
    pub(super) verdict: Option<Spanned<String>>,
    pub(super) packet: Option<Spanned<String>>,
    pub(super) counters: Option<BTreeMap<String, Spanned<u64>>>,
    pub(super) events: Option<Lines>,
    #[serde(default)]
    pub(super) ct: Lines,
    #[serde(default)]
    pub(super) frag: Lines,
}
