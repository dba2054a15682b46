//! Strict reading of scenario files: what nobody knows is an error with file and line.

use std::path::{Path, PathBuf};

use agent_core::input::{Field, Fields, Report};
use agent_core::model::{Name, Object, ObjectKey, Protocol as PortProtocol};
use agent_core::policy::{Enforcement, LabelFilter};
use agent_core::yaml::{self, Node, Value};
use agent_core::{Direction, InputErrors, Position};
use datapath_abi::{DropReason, Hook};

use super::{Action, Config, Expect, ProbeStep, Scenario, Step, Talk, manifest_files};
use crate::cluster::explain::parse_party;
use crate::cluster::matrix::of;
use crate::cluster::{Family, Party, Protocol, proxy, tunnel};
use crate::manifests::{self, PassedOver};

/// `apiVersion` of scenarios.
const VERSION: &str = "weir.dev/v1alpha1";

/// Why a scenario cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Something in the files is wrong.
    #[error(transparent)]
    Input(#[from] InputErrors),
    /// No document of the file is a scenario, or more than one.
    #[error("{file}: expected one document with `kind: Scenario`, found {found}")]
    Documents {
        /// File.
        file: String,
        /// How many.
        found: usize,
    },
}

/// Reads a scenario file and all that it names.
///
/// # Errors
/// See [`ScenarioError`].
pub fn load(path: &Path) -> Result<Scenario, ScenarioError> {
    load_with(path, &[])
}

/// As [`load`], with further documents of objects; `-` is standard input, and what it names is sought in the working folder.
///
/// # Errors
/// See [`ScenarioError`].
pub fn load_with(path: &Path, with: &[Node]) -> Result<Scenario, ScenarioError> {
    let wrap = |error| ScenarioError::File { path: path.to_owned(), error };
    let (file, text) = if path.as_os_str() == "-" {
        ("stdin".to_owned(), std::io::read_to_string(std::io::stdin()).map_err(wrap)?)
    } else {
        (path.display().to_string(), std::fs::read_to_string(path).map_err(wrap)?)
    };
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut reader = Reader { folder, report: Report::default(), applied: Vec::new(), passed: PassedOver::default() };
    let documents = yaml::parse(&file, &text).map_err(|error| InputErrors(vec![error]))?;
    let is_scenario = |node: &&Node| node.get("kind").and_then(Node::text) == Some("Scenario");
    let scenarios: Vec<&Node> = documents.iter().filter(is_scenario).collect();
    let [scenario] = scenarios.as_slice() else {
        return Err(ScenarioError::Documents { file, found: scenarios.len() });
    };
    let own = documents.iter().filter(|node| !is_scenario(node));
    let scenario = reader.scenario(&file, scenario, with.iter().chain(own).cloned().collect())?;
    Ok(reader.report.finish(scenario)?)
}

/// Reads settings alone: a file that holds what `config` of a scenario holds.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_config(file: &str, text: &str) -> Result<Config, InputErrors> {
    let documents = yaml::parse(file, text).map_err(|error| InputErrors(vec![error]))?;
    let (report, passed) = (Report::default(), PassedOver::default());
    let mut reader = Reader { folder: PathBuf::new(), report, applied: Vec::new(), passed };
    let mut config = Config::default();
    for document in &documents {
        reader.config(&Field::root(document), &mut config);
    }
    reader.report.finish(config)
}

struct Reader {
    folder: PathBuf,
    report: Report,
    /// Documents of steps.
    applied: Vec<Node>,
    passed: PassedOver,
}

impl Reader {
    fn scenario(&mut self, file: &str, node: &Node, inline: Vec<Node>) -> Result<Scenario, ScenarioError> {
        let mut scenario = Scenario {
            file: file.to_owned(),
            name: String::new(),
            source: None,
            objects: Vec::new(),
            documents: Vec::new(),
            passed: PassedOver::default(),
            config: Config::default(),
            steps: Vec::new(),
        };
        let root = Field::root(node);
        let Some(mut fields) = root.object(&mut self.report) else { return Ok(scenario) };
        if let Some(version) = fields.require("apiVersion", &mut self.report)
            && version.string(&mut self.report).is_some_and(|version| version != VERSION)
        {
            version.invalid(&mut self.report, format!("must be {VERSION}"));
        }
        fields.accept(&["kind"]);
        if let Some(metadata) = fields.require("metadata", &mut self.report)
            && let Some(mut metadata) = metadata.object(&mut self.report)
        {
            scenario.name = self.text(&mut metadata, "name").unwrap_or_default();
            metadata.finish(&mut self.report);
        }
        let mut documents = Vec::new();
        if let Some(spec) = fields.require("spec", &mut self.report)
            && let Some(mut spec) = spec.object(&mut self.report)
        {
            scenario.source = spec.get("source").and_then(|source| source.string(&mut self.report).map(str::to_owned));
            if let Some(manifests) = spec.get("manifests") {
                for item in manifests.list(&mut self.report) {
                    self.manifests(&item, &mut documents)?;
                }
            }
            if let Some(config) = spec.get("config") {
                self.config(&config, &mut scenario.config);
            }
            if let Some(steps) = spec.require("steps", &mut self.report) {
                for step in steps.list(&mut self.report) {
                    let position = step.position().clone();
                    if let Some(action) = self.step(&step)? {
                        scenario.steps.push(Step { position, action });
                    }
                }
            }
            spec.finish(&mut self.report);
        }
        fields.finish(&mut self.report);
        documents.extend(inline);
        (scenario.objects, scenario.documents) = self.objects(documents);
        scenario.documents.append(&mut self.applied);
        scenario.passed = std::mem::take(&mut self.passed);
        Ok(scenario)
    }

    /// Objects as every command reads them, with their documents.
    fn objects(&mut self, documents: Vec<Node>) -> (Vec<Object>, Vec<Node>) {
        let read = manifests::of_documents(documents);
        read.errors.into_iter().for_each(|error| self.report.add(error));
        self.passed.add(read.passed);
        (read.objects, read.documents)
    }

    fn text(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<String> {
        fields.require(name, &mut self.report)?.string(&mut self.report).map(str::to_owned)
    }

    /// The documents of a file or folder that a scenario names.
    fn manifests(&mut self, item: &Field<'_>, documents: &mut Vec<Node>) -> Result<(), ScenarioError> {
        let Some(name) = item.string(&mut self.report) else { return Ok(()) };
        let files = match manifest_files(&self.folder.join(name), &["yaml", "yml", "json"]) {
            Ok(files) => files,
            Err((path, error)) => {
                item.invalid(&mut self.report, format!("{}: {error}", path.display()));
                return Ok(());
            }
        };
        for path in files {
            let text =
                std::fs::read_to_string(&path).map_err(|error| ScenarioError::File { path: path.clone(), error })?;
            match yaml::parse(&path.display().to_string(), &text) {
                Ok(found) => documents.extend(found),
                Err(error) => self.report.add(error),
            }
        }
        Ok(())
    }

    fn config(&mut self, field: &Field<'_>, config: &mut Config) {
        let Some(mut fields) = field.object(&mut self.report) else { return };
        let report = &mut self.report;
        if let Some(mode) = fields.get("routingMode") {
            match mode.string(report) {
                Some("tunnel") => {}
                Some("native") => config.tunnel = None,
                Some(_) => mode.invalid(report, "must be tunnel or native"),
                None => {}
            }
        }
        if let Some(protocol) = fields.get("tunnelProtocol")
            && let Some(text) = protocol.string(report)
        {
            match tunnel::Protocol::from_name(text) {
                Some(protocol) => config.tunnel = config.tunnel.map(|_| protocol),
                None => protocol.invalid(report, "must be vxlan or geneve"),
            }
        }
        if let Some(on) = fields.get("ipv4").and_then(|field| field.boolean(report)) {
            config.ipv4 = on;
        }
        if let Some(on) = fields.get("ipv6").and_then(|field| field.boolean(report)) {
            config.ipv6 = on;
        }
        if let Some(mode) = fields.get("policyEnforcement")
            && let Some(text) = mode.string(report)
        {
            match Enforcement::from_name(text) {
                Some(enforcement) => config.policy.enforcement = enforcement,
                None => mode.invalid(report, "must be default, always or never"),
            }
        }
        if let Some(on) = fields.get("hostFirewall").and_then(|field| field.boolean(report)) {
            config.policy.host_firewall = on;
        }
        if let Some(name) = fields.get("clusterName").and_then(|field| field.string(report)) {
            name.clone_into(&mut config.policy.cluster);
        }
        if let Some(field) = fields.get("cidrMatch") {
            for item in field.list(report) {
                match item.string(report) {
                    Some("nodes") => config.policy.cidrs_match_nodes = true,
                    Some("pods") => config.policy.cidrs_match_pods = true,
                    Some(_) => item.invalid(report, "must be nodes or pods"),
                    None => {}
                }
            }
        }
        if let Some(field) = fields.get("identityLabels") {
            let patterns = field.list(report);
            let patterns = patterns.iter().filter_map(|item| item.string(report)).map(str::to_owned).collect();
            config.policy.identity_labels = LabelFilter { patterns };
        }
        for (name, _, field) in fields.get("dnsNames").map(|field| field.entries(report)).unwrap_or_default() {
            let addresses = config.policy.names.entry(name.to_owned()).or_default();
            for item in field.list(report) {
                match item.string(report).map(str::parse) {
                    Some(Ok(address)) => drop(addresses.insert(address)),
                    Some(Err(_)) => item.invalid(report, "must be an IP address"),
                    None => {}
                }
            }
        }
        fields.finish(report);
    }

    fn step(&mut self, step: &Field<'_>) -> Result<Option<Action>, ScenarioError> {
        let Some(mut fields) = step.object(&mut self.report) else { return Ok(None) };
        let parts = [fields.get("probe"), fields.get("apply"), fields.get("delete"), fields.get("advance")];
        fields.finish(&mut self.report);
        if parts.iter().flatten().count() != 1 {
            step.invalid(&mut self.report, "a step has exactly one of probe, apply, delete and advance");
            return Ok(None);
        }
        let [probe, apply, delete, advance] = parts;
        if let Some(probe) = probe {
            return Ok(self.probe(&probe).map(|probe| Action::Probe(Box::new(probe))));
        }
        if let Some(apply) = apply {
            let documents = self.objects_of(&apply)?;
            let (objects, documents) = self.objects(documents);
            self.applied.extend(documents);
            return Ok(Some(Action::Apply(objects)));
        }
        if let Some(delete) = delete {
            let documents = self.objects_of(&delete)?;
            return Ok(Some(Action::Delete(self.keys(&documents))));
        }
        Ok(advance.and_then(|advance| {
            let text = advance.string(&mut self.report)?;
            let ns = duration(text);
            if ns.is_none() {
                advance.invalid(&mut self.report, "must be a duration, as 500ms, 61s, 5m or 2h");
            }
            ns.map(Action::Advance)
        }))
    }

    /// Documents of a list of files and inline objects.
    fn objects_of(&mut self, field: &Field<'_>) -> Result<Vec<Node>, ScenarioError> {
        let mut documents = Vec::new();
        for item in field.list(&mut self.report) {
            match &item.node.value {
                Value::Map(_) => documents.push(item.node.clone()),
                Value::Scalar { .. } | Value::List(_) => self.manifests(&item, &mut documents)?,
            }
        }
        Ok(documents)
    }

    /// What objects are called. An object to be deleted may be just apiVersion, kind and metadata.
    fn keys(&mut self, documents: &[Node]) -> Vec<ObjectKey> {
        let mut whole = Vec::new();
        let mut keys = Vec::new();
        for document in documents {
            match named(document) {
                Some(key) => keys.push(key),
                None => whole.push(document.clone()),
            }
        }
        keys.extend(self.objects(whole).0.iter().map(Object::key));
        keys
    }

    fn probe(&mut self, field: &Field<'_>) -> Option<ProbeStep> {
        let mut fields = field.object(&mut self.report)?;
        let from = self.party(&mut fields, "from");
        let to = self.party(&mut fields, "to");
        let talk = self.talk(&mut fields);
        let family = fields.get("family").and_then(|family| match family.string(&mut self.report)? {
            "IPv4" => Some(Family::Ipv4),
            "IPv6" => Some(Family::Ipv6),
            _ => {
                family.invalid(&mut self.report, "must be IPv4 or IPv6");
                None
            }
        });
        let source_port = fields.get("sourcePort").and_then(|port| port.port(&mut self.report));
        let repeat = fields.get("repeat").and_then(|repeat| repeat.integer(&mut self.report, 1..=1_000_000));
        for name in ["backend", "share", "distinctBackends", "sourceSeen"] {
            fields.refuse(name, "services are not simulated yet", &mut self.report);
        }
        for name in ["http", "dns", "sni"] {
            fields.refuse(name, "proxies are not simulated yet", &mut self.report);
        }
        let expect = fields.require("expect", &mut self.report).and_then(|expect| self.expect(&expect));
        fields.finish(&mut self.report);
        Some(ProbeStep {
            from: from?,
            to: to?,
            talk: talk?,
            family,
            source_port,
            repeat: repeat.and_then(|repeat| u32::try_from(repeat).ok()).unwrap_or(1),
            expect: expect?,
        })
    }

    fn party(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<Party> {
        let field = fields.require(name, &mut self.report)?;
        match parse_party(field.string(&mut self.report)?) {
            Ok(party) => Some(party),
            Err(rule) => {
                field.invalid(&mut self.report, rule);
                None
            }
        }
    }

    fn talk(&mut self, fields: &mut Fields<'_>) -> Option<Talk> {
        let protocol = fields.get("protocol");
        let name = match &protocol {
            None => "TCP",
            Some(field) => field.string(&mut self.report)?,
        };
        let kind = match name {
            "TCP" => Some(PortProtocol::Tcp),
            "UDP" => Some(PortProtocol::Udp),
            "SCTP" => Some(PortProtocol::Sctp),
            "ICMP" => None,
            _ => {
                if let Some(field) = protocol {
                    field.invalid(&mut self.report, "must be TCP, UDP, SCTP or ICMP");
                }
                fields.accept(&["port", "type"]);
                return None;
            }
        };
        let Some(kind) = kind else {
            fields.refuse("port", "ICMP has no ports; use `type`", &mut self.report);
            let number = fields.get("type").map(|field| field.integer(&mut self.report, 0..=255));
            return match number {
                None => Some(Talk::Known(Protocol::Icmp(None))),
                Some(number) => Some(Talk::Known(Protocol::Icmp(Some(u8::try_from(number?).ok()?)))),
            };
        };
        fields.refuse("type", "only ICMP has types", &mut self.report);
        let port = fields.require("port", &mut self.report)?;
        if port.is_plain_number() {
            return port.port(&mut self.report).map(|port| Talk::Known(of(kind, port)));
        }
        port.string(&mut self.report).map(|name| Talk::Named(kind, name.to_owned()))
    }

    fn expect(&mut self, field: &Field<'_>) -> Option<Expect> {
        if let Value::Map(_) = &field.node.value {
            return self.expect_more(field);
        }
        match field.string(&mut self.report)? {
            "allow" => Some(Expect::Allow),
            "deny" => Some(Expect::Deny),
            "redirect" => Some(Expect::Redirect { proxy: None, at: None }),
            "audit" => Some(Expect::Audit { reason: None, at: None }),
            "refused" | "reset" => {
                field.invalid(&mut self.report, "proxies are not simulated yet");
                None
            }
            _ => {
                let rule = "must be allow, deny, redirect, audit, {drop: REASON, at: ingress}, {redirect: http, at: ingress} or \
                            {audit: REASON, at: ingress}";
                field.invalid(&mut self.report, rule);
                None
            }
        }
    }

    /// `{drop: REASON}`, `{redirect: PROXY}`, `{audit: REASON}`, each with `at` if that matters.
    fn expect_more(&mut self, field: &Field<'_>) -> Option<Expect> {
        let mut fields = field.object(&mut self.report)?;
        fields.refuse("status", "proxies are not simulated yet", &mut self.report);
        let parts = [fields.get("drop"), fields.get("redirect"), fields.get("audit")];
        let at = fields.get("at").and_then(|at| Some((at.string(&mut self.report)?, at)));
        fields.finish(&mut self.report);
        let count = parts.iter().flatten().count();
        let [drop, redirect, audit] = parts;
        if count != 1 {
            field.invalid(&mut self.report, "must have exactly one of drop, redirect and audit");
            return None;
        }
        if let Some(audit) = audit {
            let reason = self.reason(&audit)?;
            let at = match at {
                None => None,
                Some(("ingress", _)) => Some(Direction::Ingress),
                Some(("egress", _)) => Some(Direction::Egress),
                Some((_, at)) => {
                    at.invalid(&mut self.report, "must be ingress or egress");
                    return None;
                }
            };
            return Some(Expect::Audit { reason: Some(reason), at });
        }
        if let Some((text, at)) = &at
            && !["ingress", "egress"].contains(text)
            && Hook::from_name(text).is_none()
        {
            at.invalid(&mut self.report, "must be ingress, egress or the name of a hook");
        }
        let at = at.map(|(text, _)| text.to_owned());
        if let Some(drop) = drop {
            return Some(Expect::Drop { reason: self.reason(&drop)?, at });
        }
        let redirect = redirect?;
        let text = redirect.string(&mut self.report)?;
        let proxy = proxy::ALL.into_iter().find(|proxy| proxy::name(*proxy) == text);
        if proxy.is_none() {
            let known = proxy::ALL.map(proxy::name).join(", ");
            redirect.invalid(&mut self.report, format!("must be a proxy: {known}"));
        }
        Some(Expect::Redirect { proxy: Some(proxy?), at })
    }

    fn reason(&mut self, field: &Field<'_>) -> Option<DropReason> {
        let text = field.string(&mut self.report)?;
        let reason = DropReason::ALL.iter().copied().find(|reason| reason.name() == text);
        if reason.is_none() {
            let known: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
            field.invalid(&mut self.report, format!("must be a drop reason: {}", known.join(", ")));
        }
        reason
    }
}

/// Kind, namespace and name of an object that has nothing else.
fn named(document: &Node) -> Option<ObjectKey> {
    const CLUSTER: [&str; 5] =
        ["Namespace", "Node", "CiliumClusterwideNetworkPolicy", "CiliumCIDRGroup", "ClusterNetworkPolicy"];
    const NAMESPACED: [&str; 10] = [
        "Pod",
        "NetworkPolicy",
        "CiliumNetworkPolicy",
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "Job",
        "Service",
        "EndpointSlice",
    ];
    let Value::Map(entries) = &document.value else { return None };
    if entries.iter().any(|entry| !["apiVersion", "kind", "metadata"].contains(&entry.key.as_str())) {
        return None;
    }
    let kind = document.get("kind")?.text()?;
    let metadata = document.get("metadata")?;
    let Value::Map(parts) = &metadata.value else { return None };
    if parts.iter().any(|entry| !["name", "namespace"].contains(&entry.key.as_str())) {
        return None;
    }
    let name = metadata.get("name")?.text()?;
    if let Some(kind) = CLUSTER.into_iter().find(|known| *known == kind) {
        return Some(ObjectKey { kind, name: Name::new("", name) });
    }
    let kind = NAMESPACED.into_iter().find(|known| *known == kind)?;
    let namespace = metadata.get("namespace").and_then(Node::text).unwrap_or("default");
    Some(ObjectKey { kind, name: Name::new(namespace, name) })
}

/// `500ms`, `61s`, `5m`, `2h` in nanoseconds.
fn duration(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.strip_prefix(digits)?;
    let scale: u64 = match unit {
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(scale)
}

/// The place of a scenario, for errors about it as a whole.
pub(super) fn whole(file: &str) -> Position {
    Position { file: file.into(), line: 1, column: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("61s"), Some(61_000_000_000));
        assert_eq!(duration("500ms"), Some(500_000_000));
        assert_eq!(duration("2h"), Some(7_200_000_000_000));
        for wrong in ["", "61", "s", "-1s", "1.5s", "1 s", "1d", "99999999999999999h"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
