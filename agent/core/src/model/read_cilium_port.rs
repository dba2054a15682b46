//! Ports of Cilium's rules: `toPorts` with what proxies look at, and `icmps`.

use super::cilium::{CiliumPort, HttpRule, Inspect};
use super::names::{NamePattern, name_selector};
use super::object::{PortSelector, Protocol};
use super::read_cilium::List;
use super::read_icmp::icmp_type;
use crate::input::{Field, Fields, Problem, Report};
use crate::labels::is_port_name;

/// Most items of `ports` and of `fields`.
const MOST: usize = 40;

pub(super) fn ports(fields: &mut Fields<'_>, list: List, report: &mut Report) -> Vec<CiliumPort> {
    let to_ports = fields.get("toPorts");
    let icmps = fields.get("icmps");
    let mut found = Vec::new();
    let items = to_ports.map(|field| field.list(report)).unwrap_or_default();
    for (index, item) in items.iter().enumerate() {
        port_rule(item, index, list, &mut found, report);
    }
    let Some(icmps) = icmps else {
        return found;
    };
    let rules = icmps.list(report);
    if !items.is_empty() && !rules.is_empty() {
        let text = "cannot stand beside toPorts in one rule; write two rules".to_owned();
        icmps.wrong(report, Problem::Conflict(text));
    }
    for (index, item) in rules.iter().enumerate() {
        let Some(mut fields) = item.object(report) else { continue };
        let types = fields.require("fields", report).map(|field| few(&field, "types", report)).unwrap_or_default();
        for item in &types {
            let Some((protocol, kind)) = icmp_type(item, report) else { continue };
            found.push(CiliumPort {
                position: item.position().clone(),
                item: index,
                protocols: vec![protocol],
                ports: PortSelector::Range(kind, kind),
                inspect: None,
            });
        }
        fields.finish(report);
    }
    found
}

/// A list with at least one and at most 40 items.
fn few<'a>(field: &Field<'a>, what: &str, report: &mut Report) -> Vec<Field<'a>> {
    let items = field.list(report);
    if items.is_empty() {
        field.wrong(report, Problem::Conflict(format!("needs at least one item: without {what} it matches nothing")));
    }
    if items.len() > MOST {
        field.wrong(report, Problem::Conflict(format!("has {} items; at most {MOST} are allowed", items.len())));
    }
    items
}

fn port_rule(item: &Field<'_>, index: usize, list: List, found: &mut Vec<CiliumPort>, report: &mut Report) {
    let Some(mut fields) = item.object(report) else { return };
    let ports = fields.require("ports", report).map(|field| few(&field, "ports", report)).unwrap_or_default();
    let mut inspect = None;
    if !list.deny {
        for name in ["terminatingTLS", "originatingTLS"] {
            fields.refuse(name, "TLS is not opened", report);
        }
        fields.refuse("listener", "there are no listeners of Envoy", report);
        let names = fields.get("serverNames");
        let rules = fields.get("rules");
        inspect = match (&names, &rules) {
            (Some(field), None) => server_names(field, report),
            (None, Some(field)) => inspected(field, list, report),
            (Some(_), Some(field)) => {
                let text = "cannot stand beside serverNames: TLS is not opened".to_owned();
                field.wrong(report, Problem::Conflict(text));
                None
            }
            (None, None) => None,
        };
        if let Some(field) = names.as_ref().or(rules.as_ref())
            && list.host
        {
            let why = "policies about nodes know addresses and ports only";
            field.wrong(report, Problem::Unsupported { why });
        }
    }
    fields.finish(report);
    for item in &ports {
        let Some((protocols, ports)) = port(item, inspect.as_ref(), report) else { continue };
        let position = item.position().clone();
        found.push(CiliumPort { position, item: index, protocols, ports, inspect: inspect.clone() });
    }
}

/// One port: number or name in quotes, protocol `ANY` unless given.
fn port(item: &Field<'_>, inspect: Option<&Inspect>, report: &mut Report) -> Option<(Vec<u8>, PortSelector)> {
    let mut fields = item.object(report)?;
    let port = fields.require("port", report);
    let end = fields.get("endPort");
    let protocol = fields.get("protocol");
    fields.finish(report);
    let protocols = match &protocol {
        None => Protocol::ALL.map(Protocol::number).to_vec(),
        Some(field) => match field.string(report)? {
            "ANY" => Protocol::ALL.map(Protocol::number).to_vec(),
            text => match Protocol::ALL.into_iter().find(|protocol| protocol.name() == text) {
                Some(protocol) => vec![protocol.number()],
                None => {
                    field.invalid(report, "must be TCP, UDP, SCTP or ANY (ICMP has `icmps`)");
                    return None;
                }
            },
        },
    };
    let field = port?;
    // Quoted: the API takes nothing else.
    let text = field.string(report)?;
    let last =
        end.as_ref().and_then(|field| field.integer(report, 0..=65_535)).and_then(|last| u16::try_from(last).ok());
    let last = last.filter(|last| *last > 0);
    let lower = text.to_ascii_lowercase();
    let ports = match text.parse::<u16>() {
        Ok(0) if last.is_none() => PortSelector::All,
        Ok(0) => {
            let text = "`port: \"0\"` means every port; it has no endPort".to_owned();
            end.as_ref().unwrap_or(&field).wrong(report, Problem::Conflict(text));
            return None;
        }
        Ok(first) => {
            let last = last.unwrap_or(first);
            if last < first
                && let Some(end) = &end
            {
                end.invalid(report, format!("must not be below `port` ({first})"));
            }
            PortSelector::Range(first, last.max(first))
        }
        Err(_) if is_port_name(&lower) => {
            if let Some(end) = &end {
                let text = "needs a numeric `port`; it has a name".to_owned();
                end.wrong(report, Problem::Conflict(text));
            }
            PortSelector::Named(lower)
        }
        Err(_) => {
            field.invalid(report, "must be a number from 0 to 65535 or a port's name, in quotes");
            return None;
        }
    };
    if let Some(inspect) = inspect {
        check_inspected(inspect, &protocols, &ports, &field, report);
    }
    Some((protocols, ports))
}

fn check_inspected(inspect: &Inspect, protocols: &[u8], ports: &PortSelector, field: &Field<'_>, report: &mut Report) {
    let tcp = [Protocol::Tcp.number()];
    let problem = match inspect {
        Inspect::Http(_) | Inspect::Tls(_) if protocols != tcp => "what a proxy looks at needs `protocol: TCP`",
        Inspect::Dns(_) if protocols.contains(&Protocol::Sctp.number()) && protocols.len() == 1 => {
            "DNS goes over UDP and TCP"
        }
        Inspect::Http(_) | Inspect::Tls(_) | Inspect::Dns(_) if *ports == PortSelector::All => {
            "what a proxy looks at needs a port; \"0\" is all of them"
        }
        Inspect::Dns(_) if matches!(ports, PortSelector::Range(first, last) if first != last) => {
            "DNS rules have no ranges of ports"
        }
        Inspect::Http(_) | Inspect::Tls(_) | Inspect::Dns(_) => return,
    };
    field.wrong(report, Problem::Conflict(problem.to_owned()));
}

fn server_names(field: &Field<'_>, report: &mut Report) -> Option<Inspect> {
    let mut names = Vec::new();
    for item in few(field, "names", report) {
        let pattern = item.string(report).and_then(NamePattern::parse);
        if pattern.is_none() {
            item.invalid(report, "must be a DNS name, with `*` for characters of one label if wanted");
        }
        names.extend(pattern);
    }
    Some(Inspect::Tls(names))
}

fn inspected(field: &Field<'_>, list: List, report: &mut Report) -> Option<Inspect> {
    let mut fields = field.object(report)?;
    for name in ["kafka", "l7", "l7proto"] {
        fields.refuse(name, "Cilium removed it", report);
    }
    let http = fields.get("http");
    let dns = fields.get("dns");
    fields.finish(report);
    match (http, dns) {
        (Some(field), None) => {
            let items = some(&field, report);
            Some(Inspect::Http(items.iter().filter_map(|item| http_rule(item, report)).collect()))
        }
        (None, Some(field)) => {
            if list.ingress {
                let why = "DNS is looked at where it is asked: in an egress rule";
                field.wrong(report, Problem::Unsupported { why });
            }
            let items = some(&field, report);
            Some(Inspect::Dns(items.iter().filter_map(|item| name_selector(item, report)).collect()))
        }
        (Some(_), Some(field)) => {
            field.wrong(report, Problem::Conflict("cannot stand beside http: a port speaks one protocol".to_owned()));
            None
        }
        (None, None) => {
            field.wrong(report, Problem::Conflict("needs http or dns".to_owned()));
            None
        }
    }
}

fn some<'a>(field: &Field<'a>, report: &mut Report) -> Vec<Field<'a>> {
    let items = field.list(report);
    if items.is_empty() {
        let text = "needs at least one rule (`{}` matches every request)".to_owned();
        field.wrong(report, Problem::Conflict(text));
    }
    items
}

fn http_rule(item: &Field<'_>, report: &mut Report) -> Option<HttpRule> {
    let mut fields = item.object(report)?;
    fields.refuse("headerMatches", "headers are matched by `headers` only", report);
    let mut expression = |name: &'static str, report: &mut Report| {
        let field = fields.get(name)?;
        let text = field.string(report)?;
        if let Err(error) = regex_syntax::parse(text) {
            let last = error.to_string().lines().last().unwrap_or_default().to_owned();
            field.invalid(report, format!("must be a regular expression: {last}"));
        }
        Some(text.to_owned())
    };
    let (path, method, host) = (expression("path", report), expression("method", report), expression("host", report));
    let mut headers = Vec::new();
    for item in fields.get("headers").map(|field| field.list(report)).unwrap_or_default() {
        if let Some(text) = item.string(report) {
            headers.extend(header(text, &item, report));
        }
    }
    fields.finish(report);
    Some(HttpRule { path, method, host: host.map(|host| host.to_ascii_lowercase()), headers })
}

/// `Name` or `Name: value` (the colon may be missing).
fn header(text: &str, item: &Field<'_>, report: &mut Report) -> Option<(String, Option<String>)> {
    let (name, value) = match text.split_once([':', ' ']) {
        Some((name, value)) => (name, Some(value.trim().to_owned())),
        None => (text, None),
    };
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        item.invalid(report, "must be a header's name, or `Name: value`");
        return None;
    }
    Some((name.to_ascii_lowercase(), value))
}
