//! The simulator reads the agent's settings file: it must know every field, and take from it what the agent takes.

use agent::settings::{DEFAULTS, RoutingMode, Settings};

#[test]
fn the_simulator_takes_from_a_settings_file_what_the_agent_takes() {
    let changed = DEFAULTS
        .replace("policy-enforcement = \"default\"", "policy-enforcement = \"always\"")
        .replace("host-firewall = false", "host-firewall = true")
        .replace("cluster-name = \"default\"", "cluster-name = \"blue\"")
        .replace("cidr-match = []", "cidr-match = [\"nodes\", \"pods\"]")
        .replace("ipv6 = true", "ipv6 = false");
    assert_ne!(changed, DEFAULTS);
    let native = changed.replace("routing-mode = \"tunnel\"", "routing-mode = \"native\"");
    let geneve = changed.replace("tunnel-protocol = \"vxlan\"", "tunnel-protocol = \"geneve\"");
    assert!(native != changed && geneve != changed);
    for text in [DEFAULTS, &changed, &native, &geneve] {
        let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        std::fs::write(file.path(), text).unwrap();
        let agent = Settings::read(file.path()).unwrap();
        let simulator = simulator::settings::read(file.path()).unwrap();
        assert_eq!(simulator.policy, agent.policy());
        let tunnel = (agent.routing_mode == RoutingMode::Tunnel).then(|| agent.tunnel_protocol.name());
        assert_eq!(simulator.tunnel.map(|protocol| protocol.name()), tunnel);
        assert_eq!((simulator.ipv4, simulator.ipv6), (agent.ipv4, agent.ipv6));
    }
}
