//! Lab files: how the nodes are connected, how their agents are set, and which scenarios run on them. Read as strictly as
//! scenarios: what nobody knows is an error with file and line.
//!
//! ```yaml
//! apiVersion: weir.dev/v1alpha1
//! kind: Lab
//! metadata: {name: three-nodes}
//! spec:
//!   about: two segments with a router between them
//!   segments:                                  # without them: one, of 1500 bytes, with all nodes
//!     - {nodes: [a, b]}
//!     - {nodes: [c], mtu: 1400}
//!   agent: {flows: 16384, mtu: 1300}           # any setting of weir-agent
//!   scenarios: [three-nodes, ../../conformance/clusters/five-nodes.yaml]
//!   matrix: [boutique]                         # manifests: every pod to every pod on every declared port
//!   checks: [open-connection]                  # checks in code, see `checks`
//!   skip: [{scenario: flow-expiry.yaml, reason: two hours pass in it}]
//! ```

use std::path::{Path, PathBuf};

use agent_core::input::{Field, Fields, InputError, Problem, Report};
use agent_core::yaml::{self, Node, Value};
use agent_core::{InputErrors, Model};
use anyhow::{Context as _, Result, ensure};
use simulator::cluster::scenario::{Config, manifest_files};
use simulator::cluster::tunnel::Protocol;

use crate::checks::{self, Check};

/// `apiVersion` of labs.
const VERSION: &str = "weir.dev/v1alpha1";
/// Bytes of an IP packet on a segment, unless the file says otherwise.
const ETHERNET_MTU: u32 = 1500;

/// Nodes that reach each other without a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bytes of an IP packet, at most.
    pub mtu: u32,
    /// Names of its nodes.
    pub nodes: Vec<String>,
}

/// How nodes are connected, and how their agents are set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Empty: one with all nodes.
    pub segments: Vec<Segment>,
    /// Settings of the agents: name and value as TOML has it.
    pub agent: Vec<(String, String)>,
    /// Settings that scenarios give.
    pub config: Config,
    /// What tunnels speak in this lab, whatever scenarios say: `tunnel-protocol` of `agent`.
    pub protocol: Option<Protocol>,
}

impl Default for Topology {
    fn default() -> Self {
        let config = Config::default();
        // A lab has few flows, and its maps are made anew for every node.
        Self { segments: Vec::new(), agent: vec![("flows".to_owned(), "16384".to_owned())], config, protocol: None }
    }
}

impl Topology {
    /// The settings of a scenario, with what this lab's tunnels speak.
    #[must_use]
    pub fn adapt(&self, config: Config) -> Config {
        Config { tunnel: config.tunnel.map(|protocol| self.protocol.unwrap_or(protocol)), ..config }
    }

    /// The segments of these nodes.
    ///
    /// # Errors
    /// A node on no segment, or on two.
    pub fn segments(&self, model: &Model) -> Result<Vec<Segment>> {
        let all: Vec<String> = model.nodes().iter().map(|node| node.name.clone()).collect();
        if self.segments.is_empty() {
            return Ok(vec![Segment { mtu: ETHERNET_MTU, nodes: all }]);
        }
        for name in &all {
            let count = self.segments.iter().flat_map(|segment| &segment.nodes).filter(|node| *node == name).count();
            ensure!(count == 1, "node {name} is on {count} segments of this lab, and must be on one");
        }
        Ok(self.segments.clone())
    }

    /// The number of a node's segment.
    ///
    /// # Errors
    /// It is on none.
    pub fn segment_of(&self, model: &Model, node: &str) -> Result<usize> {
        let segments = self.segments(model)?;
        let place = segments.iter().position(|segment| segment.nodes.iter().any(|name| name == node));
        place.with_context(|| format!("node {node} is on no segment"))
    }

    /// Entries of each table of flows.
    ///
    /// # Errors
    /// Something else than a number.
    pub fn flows(&self) -> Result<u32> {
        let value = self.agent.iter().find(|(name, _)| name == "flows");
        let (_, value) = value.context("a lab has a setting `flows`")?;
        value.parse().with_context(|| format!("setting flows: `{value}` is no number"))
    }

    /// Lines of an agent's settings file.
    #[must_use]
    pub fn agent_settings(&self) -> String {
        let mut lines = format!("ipv4 = {}\nipv6 = {}\n", self.config.ipv4, self.config.ipv6);
        match self.config.tunnel {
            Some(protocol) => lines.push_str(&format!("tunnel-protocol = \"{}\"\n", protocol.name())),
            None => lines.push_str("routing-mode = \"native\"\n"),
        }
        let policy = &self.config.policy;
        let quoted = |items: Vec<&str>| items.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ");
        let matched = [(policy.cidrs_match_nodes, "nodes"), (policy.cidrs_match_pods, "pods")];
        let matched = matched.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        lines.push_str(&format!(
            "policy-enforcement = \"{}\"\nhost-firewall = {}\ncluster-name = \"{}\"\ncidr-match = [{}]\nidentity-labels = [{}]\n",
            policy.enforcement.name(),
            policy.host_firewall,
            policy.cluster,
            quoted(matched),
            quoted(policy.identity_labels.patterns.iter().map(String::as_str).collect()),
        ));
        for (name, value) in &self.agent {
            lines.push_str(&format!("{name} = {value}\n"));
        }
        lines
    }
}

/// A scenario that does not run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// Name of its file.
    pub scenario: String,
    /// Why.
    pub reason: String,
}

/// A lab.
#[derive(Clone, Debug)]
pub struct Lab {
    /// The file.
    pub file: PathBuf,
    /// `metadata.name`.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// Its network.
    pub topology: Topology,
    /// Files of scenarios.
    pub scenarios: Vec<PathBuf>,
    /// Files and folders of manifests whose pods are asked for everything.
    pub matrix: Vec<PathBuf>,
    /// Checks in code.
    pub checks: Vec<&'static Check>,
    /// What does not run, and why.
    pub skips: Vec<Skip>,
}

/// Every lab of a folder, by name of file.
///
/// # Errors
/// What is wrong with a file.
pub fn load_all(folder: &Path) -> Result<Vec<Lab>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    files.iter().map(|file| load(file)).collect()
}

/// Reads a lab file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<Lab> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| shown.clone())?;
    let documents = yaml::parse(&shown, &text).map_err(|error| InputErrors(vec![error]))?;
    let [document] = documents.as_slice() else {
        let position = agent_core::Position { file: shown.as_str().into(), line: 1, column: 1 };
        let problem = Problem::Conflict(format!("a lab file has one document, this one has {}", documents.len()));
        return Err(InputErrors(vec![InputError::new(position, "", problem)]).into());
    };
    let mut reader = Reader { folder: path.parent().unwrap_or(Path::new("")).to_owned(), report: Report::default() };
    let lab = reader.lab(path, document);
    Ok(reader.report.finish(lab)?)
}

struct Reader {
    folder: PathBuf,
    report: Report,
}

impl Reader {
    fn lab(&mut self, path: &Path, document: &Node) -> Lab {
        let mut lab = Lab {
            file: path.to_owned(),
            name: String::new(),
            about: String::new(),
            topology: Topology::default(),
            scenarios: Vec::new(),
            matrix: Vec::new(),
            checks: Vec::new(),
            skips: Vec::new(),
        };
        let Some(mut fields) = Field::root(document).object(&mut self.report) else { return lab };
        for (name, value) in [("apiVersion", VERSION), ("kind", "Lab")] {
            if let Some(field) = fields.require(name, &mut self.report)
                && field.string(&mut self.report).is_some_and(|found| found != value)
            {
                field.invalid(&mut self.report, format!("must be {value}"));
            }
        }
        if let Some(mut metadata) = self.object(&mut fields, "metadata") {
            lab.name = self.text(&mut metadata, "name");
            metadata.finish(&mut self.report);
        }
        if let Some(mut spec) = self.object(&mut fields, "spec") {
            lab.about = self.text(&mut spec, "about");
            for segment in self.items(&mut spec, "segments") {
                lab.topology.segments.extend(self.segment(&segment));
            }
            if let Some(agent) = spec.get("agent") {
                self.agent(&agent, &mut lab.topology);
            }
            for item in self.items(&mut spec, "scenarios") {
                lab.scenarios.extend(self.files(&item));
            }
            for item in self.items(&mut spec, "matrix") {
                lab.matrix.extend(self.files(&item));
            }
            for item in self.items(&mut spec, "checks") {
                lab.checks.extend(self.check(&item));
            }
            for item in self.items(&mut spec, "skip") {
                if let Some(mut fields) = item.object(&mut self.report) {
                    let scenario = self.text(&mut fields, "scenario");
                    let reason = self.text(&mut fields, "reason");
                    fields.finish(&mut self.report);
                    lab.skips.push(Skip { scenario, reason });
                }
            }
            spec.finish(&mut self.report);
        }
        fields.finish(&mut self.report);
        // In a folder, files without a scenario are what others name.
        lab.scenarios.retain(|file| is_scenario(file));
        lab
    }

    fn object<'a>(&mut self, fields: &mut Fields<'a>, name: &'static str) -> Option<Fields<'a>> {
        fields.require(name, &mut self.report)?.object(&mut self.report)
    }

    fn text(&mut self, fields: &mut Fields<'_>, name: &'static str) -> String {
        let field = fields.require(name, &mut self.report);
        field.and_then(|field| field.string(&mut self.report)).unwrap_or_default().to_owned()
    }

    fn items<'a>(&mut self, fields: &mut Fields<'a>, name: &'static str) -> Vec<Field<'a>> {
        fields.get(name).map(|field| field.list(&mut self.report)).unwrap_or_default()
    }

    fn segment(&mut self, field: &Field<'_>) -> Option<Segment> {
        let mut fields = field.object(&mut self.report)?;
        let mtu = fields.get("mtu").and_then(|mtu| mtu.integer(&mut self.report, 1280..=65_535));
        let mtu = mtu.and_then(|mtu| u32::try_from(mtu).ok()).unwrap_or(ETHERNET_MTU);
        let nodes = self.items(&mut fields, "nodes");
        let nodes = nodes.iter().filter_map(|node| node.string(&mut self.report)).map(str::to_owned).collect();
        fields.finish(&mut self.report);
        Some(Segment { mtu, nodes })
    }

    /// Settings of the agent, which says itself what is wrong with them.
    fn agent(&mut self, field: &Field<'_>, topology: &mut Topology) {
        let settings = &mut topology.agent;
        for (name, _, value) in field.entries(&mut self.report) {
            if name == "tunnel-protocol" {
                let found = value.string(&mut self.report).map(Protocol::from_name);
                topology.protocol = found.flatten();
                if found == Some(None) {
                    value.invalid(&mut self.report, "must be vxlan or geneve");
                }
                continue;
            }
            let Some(text) = toml(value.node) else {
                value.invalid(&mut self.report, "must be a number, true, false, a string, or a list of strings");
                continue;
            };
            settings.retain(|(known, _)| known != name);
            settings.push((name.to_owned(), text));
        }
    }

    fn files(&mut self, item: &Field<'_>) -> Vec<PathBuf> {
        let Some(name) = item.string(&mut self.report) else { return Vec::new() };
        let path = self.folder.join(name);
        match manifest_files(&path, &["yaml", "yml"]) {
            // What scenarios name lies in folders below.
            Ok(files) if path.is_dir() => {
                files.into_iter().filter(|file| file.parent() == Some(path.as_path())).collect()
            }
            Ok(files) => files,
            Err((path, error)) => {
                item.invalid(&mut self.report, format!("{}: {error}", path.display()));
                Vec::new()
            }
        }
    }

    fn check(&mut self, item: &Field<'_>) -> Option<&'static Check> {
        let name = item.string(&mut self.report)?;
        let found = checks::ALL.iter().find(|check| check.name == name);
        if found.is_none() {
            let names: Vec<&str> = checks::ALL.iter().map(|check| check.name).collect();
            item.invalid(&mut self.report, format!("must be one of {}", names.join(", ")));
        }
        found
    }
}

/// A value as TOML has it.
fn toml(node: &Node) -> Option<String> {
    match &node.value {
        Value::Scalar { text, plain: true }
            if text.parse::<i64>().is_ok() || matches!(text.as_str(), "true" | "false") =>
        {
            Some(text.clone())
        }
        Value::Scalar { text, .. } => Some(format!("{text:?}")),
        Value::List(items) => Some(format!("[{}]", items.iter().map(toml).collect::<Option<Vec<_>>>()?.join(", "))),
        Value::Map(_) => None,
    }
}

fn is_scenario(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line.trim_end() == "kind: Scenario"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(spec: &str) -> Result<Lab> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lab.yaml");
        let head = "apiVersion: weir.dev/v1alpha1\nkind: Lab\nmetadata: {name: l}\n";
        std::fs::write(&path, format!("{head}spec: {{about: x, {spec}}}\n")).unwrap();
        load(&path)
    }

    #[test]
    fn every_lab_of_the_repository_can_be_read_and_has_something_to_run() {
        let labs = load_all(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/labs"))).unwrap();
        assert!(labs.len() >= 6);
        for lab in labs {
            let tasks = lab.scenarios.len() + lab.checks.len() + lab.matrix.len();
            assert!(tasks > 0 && !lab.about.is_empty(), "{}", lab.name);
            assert_eq!(lab.file.file_stem().unwrap().to_string_lossy(), lab.name);
            for skip in &lab.skips {
                let known = lab.scenarios.iter().any(|file| file.ends_with(&skip.scenario));
                assert!(known, "{}: no scenario {} to skip", lab.name, skip.scenario);
            }
        }
    }

    #[test]
    fn what_nobody_knows_is_an_error_with_its_line() {
        for (spec, wrong) in [
            ("scenario: []", "lab.yaml:4: spec.scenario: unknown field"),
            ("checks: [none]", "lab.yaml:4: spec.checks[0]: `none`: must be one of open-connection"),
            ("scenarios: [nowhere]", "lab.yaml:4: spec.scenarios[0]: `nowhere`"),
            ("segments: [{nodes: [a], mtu: 20}]", "must be between 1280 and 65535"),
            ("agent: {flows: {a: b}}", "must be a number, true, false, a string, or a list of strings"),
        ] {
            let error = read(spec).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn settings_of_the_agent_are_written_as_toml() {
        let lab =
            read("agent: {flows: 2048, devices: [eth0, eth1], redirect-peer: false, socket: \"/run/x\"}").unwrap();
        let lines = lab.topology.agent_settings();
        for line in ["flows = 2048", r#"devices = ["eth0", "eth1"]"#, "redirect-peer = false", r#"socket = "/run/x""#] {
            assert!(lines.lines().any(|found| found == line), "{lines}");
        }
        assert_eq!(lab.topology.flows().unwrap(), 2048);
    }

    #[test]
    fn every_node_is_on_one_segment() {
        let lab = read("segments: [{nodes: [node-1]}, {nodes: [node-2], mtu: 1400}]").unwrap();
        let model = Model::empty(agent_core::Settings::default()).unwrap();
        assert_eq!(lab.topology.segment_of(&model, "node-2").unwrap(), 1);
        let lab = read("segments: [{nodes: [node-1]}]").unwrap();
        assert!(lab.topology.segments(&model).unwrap_err().to_string().contains("node-2 is on 0 segments"));
    }
}
