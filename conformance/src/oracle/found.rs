//! A difference that was found: the smallest cluster that still has it, written as a scenario that `weir-sim run` takes.

use std::fmt::Write as _;
use std::ops::Range;

use simulator::cluster::scenario::Config;
use simulator::cluster::tunnel::Protocol;

/// Clusters that one search for a smaller one tries at most.
const TRIES: usize = 4_000;

/// Leaves out whatever can be left out while `fails` still holds: whole documents, then items of lists and of maps
/// (`[…]` and `{…}`), the largest first, until nothing more can go.
pub fn smallest(mut documents: Vec<String>, mut fails: impl FnMut(&[String]) -> bool) -> Vec<String> {
    let mut tries = 0;
    let mut try_one = |documents: &[String]| {
        tries += 1;
        tries <= TRIES && fails(documents)
    };
    loop {
        let before = documents.clone();
        let mut index = documents.len();
        while let Some(last) = index.checked_sub(1) {
            index = last;
            let mut fewer = documents.clone();
            fewer.remove(index);
            if try_one(&fewer) {
                documents = fewer;
            }
        }
        for index in 0..documents.len() {
            let mut at = 0;
            while let Some(document) = documents.get(index)
                && let Some(range) = items(document).get(at)
            {
                let mut other = documents.clone();
                if let Some(document) = other.get_mut(index) {
                    document.replace_range(range.clone(), "");
                }
                if try_one(&other) {
                    documents = other;
                } else {
                    at += 1;
                }
            }
        }
        if documents == before {
            return documents;
        }
    }
}

/// Items of lists and maps in one line of YAML, each with one comma beside it; the longest first.
fn items(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    // Of each open bracket: where its present item begins, and the comma before that item.
    let mut open: Vec<(usize, Option<usize>)> = Vec::new();
    let mut quoted = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => open.push((at + 1, None)),
            b',' => {
                if let Some((start, before)) = open.last_mut() {
                    let end = if text.get(at + 1..at + 2) == Some(" ") { at + 2 } else { at + 1 };
                    found.push(*start..end);
                    (*start, *before) = (end, Some(at));
                }
            }
            b']' | b'}' => {
                if let Some((start, before)) = open.pop()
                    && start < at
                {
                    found.push(before.unwrap_or(start)..at);
                }
            }
            _ => {}
        }
    }
    found.sort_by_key(|range| (std::cmp::Reverse(range.len()), range.start));
    found
}

/// A scenario file: settings, steps (lines of YAML, without the dash) and documents.
#[must_use]
pub fn scenario(name: &str, source: &str, config: &Config, steps: &[String], documents: &[String]) -> String {
    let steps: String = steps.iter().map(|step| format!("    - {step}\n")).collect();
    let steps = if steps.is_empty() { "  steps: []\n".to_owned() } else { format!("  steps:\n{steps}") };
    let head = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: Scenario\nmetadata: {{name: \"{name}\"}}\nspec:\n  source: {source}\n  \
         config: {}\n{steps}",
        settings(config)
    );
    std::iter::once(head).chain(documents.iter().cloned()).collect::<Vec<_>>().join("---\n")
}

/// Settings that are not the usual ones.
fn settings(config: &Config) -> String {
    let usual = Config::default();
    let mut parts = Vec::new();
    match config.tunnel {
        None => parts.push("routingMode: native".to_owned()),
        Some(Protocol::Vxlan) => {}
        Some(Protocol::Geneve) => parts.push("tunnelProtocol: geneve".to_owned()),
    }
    for (name, on) in [("ipv4", config.ipv4), ("ipv6", config.ipv6)] {
        if !on {
            parts.push(format!("{name}: false"));
        }
    }
    let (own, policy) = (&config.policy, &usual.policy);
    if own.enforcement != policy.enforcement {
        parts.push(format!("policyEnforcement: {}", own.enforcement.name()));
    }
    if own.host_firewall {
        parts.push("hostFirewall: true".to_owned());
    }
    if own.cluster != policy.cluster {
        parts.push(format!("clusterName: {}", own.cluster));
    }
    let matched = [("nodes", own.cidrs_match_nodes), ("pods", own.cidrs_match_pods)];
    let matched: Vec<&str> = matched.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    if !matched.is_empty() {
        parts.push(format!("cidrMatch: [{}]", matched.join(", ")));
    }
    if own.identity_labels != policy.identity_labels {
        let patterns = own.identity_labels.patterns.iter().map(|pattern| format!("\"{pattern}\"")).collect::<Vec<_>>();
        parts.push(format!("identityLabels: [{}]", patterns.join(", ")));
    }
    if !own.names.is_empty() {
        let mut text = String::new();
        for (name, addresses) in &own.names {
            let addresses: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
            let _ = write!(text, "{}{name}: [{}]", if text.is_empty() { "" } else { ", " }, addresses.join(", "));
        }
        parts.push(format!("dnsNames: {{{text}}}"));
    }
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_found_with_their_commas_the_longest_first() {
        let text = "a: [x, {b: 1, c: \"[,]\"}]";
        let found: Vec<&str> = items(text).into_iter().map(|range| &text[range]).collect();
        assert_eq!(found, [", {b: 1, c: \"[,]\"}", ", c: \"[,]\"", "b: 1, ", "x, "]);
        assert_eq!(items("a: {}, b: []"), []);
    }

    #[test]
    fn what_is_left_is_what_the_failure_needs() {
        let documents = ["a: [1, 2, {b: 3, c: 4}]".to_owned(), "d: 5".to_owned(), "e: {f: 6}".to_owned()];
        let fails = |documents: &[String]| {
            let text = documents.concat();
            text.contains("c: 4") && text.contains("f: 6")
        };
        assert_eq!(smallest(documents.to_vec(), fails), ["a: [{c: 4}]", "e: {f: 6}"]);
    }
}
