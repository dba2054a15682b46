//! Random clusters with policies of every kind, for tests that compare two ways to the same answer.

/// A generator of its own, so that a seed is a picture for ever.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    pub fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// A namespace and pods, some of them alike, one or another in its node's network.
pub fn pods(random: &mut Random) -> Vec<String> {
    let mut all = vec!["apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {team: x}}\n".to_owned()];
    for number in 0..5 + random.below(3) {
        let namespace = random.pick(&["a", "b"]);
        let app = random.pick(&["p", "q", "r"]);
        let host = if random.below(8) == 0 { "hostNetwork: true, " } else { "" };
        let port = random.pick(&["80", "81"]);
        all.push(format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: n{number}, namespace: {namespace}, labels: {{app: {app}}}}}\nspec: {{{host}containers: [{{name: c, image: i, ports: [{{containerPort: {port}, name: web}}]}}]}}\n"
        ));
    }
    all
}

/// A policy of any kind.
pub fn policy(number: u64, random: &mut Random) -> String {
    let namespace = random.pick(&["a", "b"]);
    let subject = random.pick(&["{}", "{matchLabels: {app: p}}", "{matchLabels: {app: q}}"]);
    let peer = random.pick(&[
        "- podSelector: {matchLabels: {app: r}}",
        "- podSelector: {}",
        "- namespaceSelector: {matchLabels: {team: x}}",
        "- namespaceSelector: {}\n          podSelector: {matchLabels: {app: p}}",
        "- ipBlock: {cidr: 10.244.1.0/25}",
        "- ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.0/29]}",
        "- ipBlock: {cidr: 0.0.0.0/0, except: [10.244.1.3/32]}",
    ]);
    let ports = random.pick(&[
        "",
        "      ports: [{port: 80}]\n",
        "      ports: [{port: web}]\n",
        "      ports: [{port: 79, endPort: 80}]\n",
    ]);
    let (types, list, key) =
        if random.below(2) == 0 { ("Ingress", "ingress", "from") } else { ("Egress", "egress", "to") };
    // Some are only reported.
    let audit = random.pick(&["", "", "", ", annotations: {policy.weir.dev/audit: \"true\"}"]);
    let entity = random.pick(&["world", "cluster", "remote-node", "all", "host"]);
    match random.below(8) {
        0 | 1 => {
            let deny = random.pick(&["", "Deny"]);
            return format!(
                "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: c{number}, namespace: {namespace}{audit}}}\nspec:\n  endpointSelector: {subject}\n  {list}{deny}:\n    - {key}Entities: [{entity}]\n"
            );
        }
        2 => {
            return format!(
                "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: h{number}, namespace: {namespace}}}\nspec:\n  endpointSelector: {subject}\n  {list}:\n    - {key}Entities: [{entity}]\n      toPorts: [{{ports: [{{port: \"80\", protocol: TCP}}], rules: {{http: [{{method: GET}}]}}}}]\n"
            );
        }
        3 => {
            return format!(
                "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: n{number}}}\nspec:\n  nodeSelector: {{}}\n  {list}:\n    - {key}Entities: [{entity}]\n"
            );
        }
        _ => {}
    }
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: k{number}, namespace: {namespace}{audit}}}\nspec:\n  podSelector: {subject}\n  policyTypes: [{types}]\n  {list}:\n    - {key}:\n        {peer}\n{ports}"
    )
}
