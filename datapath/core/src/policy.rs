//! What the endpoint's policy says about a peer: two longest-prefix look-ups, one winner (see `datapath_abi::policy`).

use datapath_abi::{Be16, DropReason, MatchType, PolicyEntry, PolicyFlags, PolicyKey, policy};

use crate::tables::PolicyTable;

/// One question to the policy of a local endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The endpoint.
    pub endpoint: u16,
    /// `policy::INGRESS` or `policy::EGRESS`.
    pub direction: u8,
    /// The peer's identity.
    pub identity: u32,
    /// IANA number.
    pub protocol: u8,
    /// Destination port or ICMP type, network order.
    pub port: [u8; 2],
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `None`: allowed.
    pub drop: Option<DropReason>,
    /// Rule that decided; 0 = none did.
    pub rule: u32,
    /// How it matched.
    pub matched: MatchType,
    /// What would have been the reason, where a policy only audits.
    pub audited: Option<DropReason>,
    /// Proxy that should take the packet; 0: none.
    pub proxy_port: Be16,
}

/// Asks the policy.
#[inline(always)]
pub fn decide<T: PolicyTable>(tables: &T, question: &Question) -> Answer {
    let mut key = PolicyKey {
        prefix_len: policy::FULL_BITS,
        endpoint: question.endpoint,
        direction: question.direction,
        pad: 0,
        identity: question.identity,
        protocol: question.protocol,
        port: question.port,
        pad2: 0,
    };
    let exact = tables.policy(&key);
    if let Some(entry) = exact
        && entry.precedence == u32::MAX
    {
        return answer(&entry, true);
    }
    key.identity = 0;
    let any = tables.policy(&key);
    match (exact, any) {
        (Some(exact), Some(any)) => {
            let any_wins = any.precedence > exact.precedence
                || (any.precedence == exact.precedence && any.l4_prefix > exact.l4_prefix);
            if any_wins { answer(&any, false) } else { answer(&exact, true) }
        }
        (Some(exact), None) => answer(&exact, true),
        (None, Some(any)) => answer(&any, false),
        (None, None) => Answer {
            drop: Some(DropReason::PolicyNoMatch),
            rule: 0,
            matched: MatchType::None,
            audited: None,
            proxy_port: Be16::ZERO,
        },
    }
}

#[inline(always)]
fn answer(entry: &PolicyEntry, exact: bool) -> Answer {
    let matched = match (exact, entry.l4_prefix) {
        (true, 0) => MatchType::L3Only,
        (true, 8) => MatchType::L3Protocol,
        (true, _) => MatchType::L3L4,
        (false, 0) => MatchType::All,
        (false, 8) => MatchType::ProtocolOnly,
        (false, _) => MatchType::L4Only,
    };
    let (mut drop, mut audited) = (None, None);
    if entry.flags.has(PolicyFlags::DENY) {
        drop = Some(DropReason::PolicyDeny);
    } else if entry.flags.has(PolicyFlags::REDIRECT) {
        drop = Some(DropReason::ProxyLookupFailed);
    } else if entry.flags.has(PolicyFlags::AUDIT) {
        audited = Some(if entry.rule == 0 { DropReason::PolicyNoMatch } else { DropReason::PolicyDeny });
    }
    Answer { drop, rule: entry.rule, matched, audited, proxy_port: entry.proxy_port }
}
