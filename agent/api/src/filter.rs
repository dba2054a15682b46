//! Which events a monitor shows.

use serde::{Deserialize, Serialize};

use crate::{Event, EventKind};

/// Which events are wanted: those that fulfil every part. A part that is empty wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// One of these kinds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<EventKind>,
    /// From or to this pod (`NAMESPACE/NAME`) or any of a namespace (`NAMESPACE/`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// With one of these outcomes: names of drop reasons, `allowed`, or where a trace leads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Of one of these protocols, in any case: `TCP`, `udp`, `47`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<String>,
    /// From or to one of these ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// `ingress` or `egress`, seen from the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
}

/// Whether a list wants something.
fn wants<T>(list: &[T], fits: impl Fn(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(fits)
}

impl Filter {
    /// What can be told to be wrong before the first event.
    ///
    /// # Errors
    /// The field, and what it must be.
    pub fn check(&self) -> Result<(), String> {
        if let Some(direction) = self.direction.as_ref().filter(|name| !["ingress", "egress"].contains(&name.as_str()))
        {
            return Err(format!("direction `{direction}`: must be ingress or egress"));
        }
        if let Some(pod) = self.pod.as_ref().filter(|pod| !pod.contains('/')) {
            return Err(format!("pod `{pod}`: must be NAMESPACE/NAME, or NAMESPACE/ for all of a namespace"));
        }
        Ok(())
    }

    /// Whether an event is wanted.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        let ends = [&event.source, &event.destination];
        let named = |pod: &String| {
            ends.iter().any(|end| if pod.ends_with('/') { end.name.starts_with(pod) } else { end.name == *pod })
        };
        wants(&self.kinds, |kind| *kind == event.kind)
            && self.pod.as_ref().is_none_or(named)
            && wants(&self.reasons, |reason| reason.eq_ignore_ascii_case(&event.outcome))
            && wants(&self.protocols, |protocol| protocol.eq_ignore_ascii_case(&event.protocol))
            && wants(&self.ports, |port| ends.iter().any(|end| end.port == *port))
            && self.direction.as_ref().is_none_or(|direction| *direction == event.direction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Peer;

    fn event() -> Event {
        let peer = |name: &str, port| Peer { address: "10.0.0.1".into(), port, identity: 300, name: name.into() };
        Event {
            time_ns: 0,
            kind: EventKind::Drop,
            hook: "from_container".into(),
            ifindex: 7,
            direction: "ingress".into(),
            endpoint: 2,
            protocol: "TCP".into(),
            tcp_flags: "SYN".into(),
            len: 74,
            source: peer("shop/bot", 40_000),
            destination: peer("shop/web", 80),
            state: "new".into(),
            outcome: "PolicyNoMatch".into(),
            text: String::new(),
            rule: None,
        }
    }

    #[test]
    fn an_empty_filter_wants_everything() {
        assert!(Filter::default().wants(&event()));
    }

    #[test]
    fn every_part_must_be_fulfilled_and_any_of_a_list_does() {
        let fits = [
            Filter { kinds: vec![EventKind::Trace, EventKind::Drop], ..Filter::default() },
            Filter { pod: Some("shop/web".into()), ..Filter::default() },
            Filter { pod: Some("shop/".into()), ..Filter::default() },
            Filter { reasons: vec!["policynomatch".into()], ..Filter::default() },
            Filter { protocols: vec!["udp".into(), "tcp".into()], ..Filter::default() },
            Filter { ports: vec![40_000], direction: Some("ingress".into()), ..Filter::default() },
        ];
        for filter in &fits {
            assert!(filter.wants(&event()), "{filter:?}");
        }
        let others = [
            Filter { kinds: vec![EventKind::Trace], ..fits[1].clone() },
            Filter { pod: Some("shop/we".into()), ..Filter::default() },
            Filter { pod: Some("sho/".into()), ..Filter::default() },
            Filter { reasons: vec!["PolicyDeny".into()], ..Filter::default() },
            Filter { protocols: vec!["UDP".into()], ..Filter::default() },
            Filter { ports: vec![81], ..Filter::default() },
            Filter { direction: Some("egress".into()), ..fits[5].clone() },
        ];
        for filter in &others {
            assert!(!filter.wants(&event()), "{filter:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_said() {
        let wrong = Filter { direction: Some("in".into()), ..Filter::default() };
        assert!(wrong.check().unwrap_err().contains("direction `in`"));
        let wrong = Filter { pod: Some("web".into()), ..Filter::default() };
        assert!(wrong.check().unwrap_err().contains("NAMESPACE/NAME"));
    }
}
