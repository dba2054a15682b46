//! What is probably not meant: policies that are right by the API and do not do what their author thinks.
//!
//! Invariants: every finding has an id that stays, from [`CHECKS`], and a place in a file; a finding about verdicts is drawn
//! from the compiled policies, not from how they look. What needs pods says nothing where there are none.

mod blocks;
mod decisions;
mod selectors;
mod view;

use std::collections::BTreeSet;

use agent_core::input::InputError;
use agent_core::model::{Model, Object};
use agent_core::policy::PolicySettings;
use agent_core::{Compiled, IdentityAllocator, InputErrors, Position};

use crate::cluster::scenario::Config;
use crate::manifests::Manifests;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The input is refused, or cannot be enforced.
    Error,
    /// Probably not meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl Level {
    /// As people and JSON read it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A check: its id and what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Never changes.
    pub id: &'static str,
    /// Level of its findings.
    pub level: Level,
    /// What it finds.
    pub finds: &'static str,
}

macro_rules! checks {
    ($($name:ident $level:ident $id:literal $finds:literal;)*) => {
        $(pub(crate) const $name: Check = Check { id: $id, level: Level::$level, finds: $finds };)*
        /// Every check.
        pub const CHECKS: &[Check] = &[$($name),*];
    };
}

checks! {
    REFUSED Error "refused" "a manifest that weir refuses: not YAML, a field that is unknown, unsupported or wrong, an object that does not fit";
    OVERFULL Error "map-full" "an endpoint or a node needs more policy entries than there is room for";
    NEARLY_FULL Warning "map-nearly-full" "an endpoint or a node needs more than four fifths of the policy entries there is room for";
    NO_SUBJECT Warning "subject-selects-nothing" "a policy that is about no pod (or node)";
    NO_PEER Warning "peer-selects-nothing" "a peer's selector that no pod (or node, service, group) matches";
    HOST_PEER Warning "peer-on-host-network" "a peer's selector that only pods in their node's network match: no policy tells them from the node";
    CONTRADICTION Warning "selector-contradicts" "a selector whose conditions exclude each other";
    NO_NAMESPACE Warning "namespace-missing" "a namespace that does not exist";
    NO_PORT_NAME Warning "port-name-missing" "a port's name that none of the pods in question has";
    UNDECLARED Note "port-undeclared" "a port's number that none of the pods in question declares";
    EMPTY_RULE Warning "rule-matches-nothing" "an empty rule of a Cilium policy: it matches nothing (in a NetworkPolicy it would match everything)";
    SHADOWED Warning "rule-shadowed" "a rule that never decides a verdict, because others do";
    IGNORED Warning "rules-ignored" "rules of a direction that policyTypes does not name: the API ignores them";
    CLOSED Warning "closed-without-rules" "a policy with rules for one direction that closes the other, which nobody opens";
    NO_DNS Warning "egress-without-dns" "pods that may send something, but cannot ask for names";
    COVERS_CLUSTER Warning "cidr-covers-cluster" "a block that holds addresses of the cluster's own pods or nodes";
    COVERS_ALL Note "cidr-covers-everything" "a block of all addresses without the cluster's own in its exceptions";
    COVERS_SERVICE Warning "cidr-covers-service" "a block that holds service addresses: policies see the pods behind them";
    EMPTY_BLOCK Warning "cidr-is-empty" "a block whose exceptions leave nothing";
    NO_FAMILY Note "cidr-other-family" "a block of an address family that the cluster's pods do not have";
    NEEDS_PROXY Warning "needs-proxy" "a rule that needs a proxy: until there is one, what it matches is dropped";
    HOST_POLICY Note "host-policy" "a policy about nodes: enforced only with the host firewall switched on";
    NO_PODS Note "no-pods" "no pods in the input: what is about pods is not checked";
    PASSED_OVER Note "kinds-passed-over" "objects of kinds that have no part in who reaches whom";
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// By which check.
    pub check: Check,
    /// Where; `None`: in no file.
    pub position: Option<Position>,
    /// Which object and rule; empty for what is no object.
    pub object: String,
    /// What.
    pub message: String,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: Check, position: &Position, object: impl Into<String>, message: impl Into<String>) {
        let position = Some(position.clone());
        self.0.push(Finding { check, position, object: object.into(), message: message.into() });
    }

    fn general(&mut self, check: Check, message: impl Into<String>) {
        self.0.push(Finding { check, position: None, object: String::new(), message: message.into() });
    }

    fn refused(&mut self, errors: &[InputError]) {
        for error in errors {
            let message = error.to_string();
            let place = format!("{}: ", error.position);
            let message = message.strip_prefix(&place).unwrap_or(&message).to_owned();
            self.add(REFUSED, &error.position, "", message);
        }
    }
}

/// Checks what was read. Objects with errors are left out, and the rest is checked as if they did not exist.
pub fn check(manifests: Manifests, config: &Config) -> Vec<Finding> {
    let mut findings = Findings::default();
    findings.refused(&manifests.errors);
    if !manifests.passed.is_empty() {
        findings.general(PASSED_OVER, manifests.passed.to_string());
    }
    if let Some(model) = model(manifests.objects, config, &mut findings) {
        check_model(&model, &config.policy, &mut findings);
    }
    let mut all = findings.0;
    all.sort_by(|a, b| {
        let key = |finding: &Finding| (finding.position.clone(), finding.check.level, finding.check.id);
        key(a).cmp(&key(b)).then_with(|| a.object.cmp(&b.object)).then_with(|| a.message.cmp(&b.message))
    });
    all.dedup();
    all
}

/// The cluster. Where objects do not fit together, those that are to blame go, and the rest is tried again.
fn model(mut objects: Vec<Object>, config: &Config, findings: &mut Findings) -> Option<Model> {
    let mut seen = BTreeSet::new();
    objects.retain(|object| seen.insert(object.key()));
    loop {
        match Model::from_objects(objects.clone(), config.families()) {
            Ok(model) => return Some(model),
            Err(InputErrors(errors)) => {
                findings.refused(&errors);
                // The object whose text holds the place: the last one of the file that begins before it.
                let before = objects.len();
                for error in &errors {
                    let place = &error.position;
                    let begins = |object: &Object| {
                        let start = &object.meta().position;
                        (start.file == place.file && start <= place).then(|| start.clone())
                    };
                    let blamed = objects.iter().filter_map(begins).max();
                    objects.retain(|object| Some(&object.meta().position) != blamed.as_ref());
                }
                if objects.len() == before {
                    return None;
                }
            }
        }
    }
}

fn check_model(model: &Model, settings: &PolicySettings, findings: &mut Findings) {
    let policies = view::policies(model);
    if model.pods().is_empty() {
        if !policies.is_empty() {
            findings.general(NO_PODS, "the input has no pods: what is about pods is not checked");
        }
    } else {
        selectors::check(model, &policies, settings, findings);
    }
    blocks::check(model, &policies, settings, findings);
    match Compiled::with(model, &mut IdentityAllocator::default(), settings.clone()) {
        Ok(compiled) => decisions::check(model, &policies, &compiled, findings),
        Err(error) => {
            // No single object is to blame.
            findings.general(OVERFULL, error.to_string());
        }
    }
}
