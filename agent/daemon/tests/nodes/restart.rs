//! Agents that are killed under load: nobody notices, nothing that is denied gets through, numbers stay.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::routing::{Lab, POLICY, lab};
use crate::support::{Ends, Node, pause};

const CONNECTIONS: usize = 200;

/// One exchange of bytes.
fn exchange((client, server): &mut (TcpStream, TcpStream), round: usize) {
    let (sent, mut bytes) = (round.to_be_bytes(), [0; 8]);
    client.write_all(&sent).unwrap();
    server.read_exact(&mut bytes).unwrap();
    server.write_all(&bytes).unwrap();
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, sent);
}

/// What must be the same after a restart.
fn numbers(node: &Node) -> [Value; 3] {
    ["endpoint-list", "identity-list", "ipcache-list"]
        .map(|request| node.ask(&format!(r#"{{"request":"{request}"}}"#))["ok"].clone())
}

/// Segments that a namespace has sent again.
fn sent_again(lab: &Lab) -> u64 {
    [&lab.a, &lab.b]
        .iter()
        .map(|pod| {
            let text = pod.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
            let lines: Vec<Vec<&str>> =
                text.lines().filter(|line| line.starts_with("Tcp:")).map(|line| line.split(' ').collect()).collect();
            let column = lines[0].iter().position(|name| *name == "RetransSegs").unwrap();
            lines[1][column].parse::<u64>().unwrap()
        })
        .sum()
}

#[test]
fn two_hundred_connections_and_a_denied_flow_do_not_notice_that_agents_are_killed() {
    for (name, settings) in [("sa", ""), ("sb", "attach = 'clsact'")] {
        let Some(mut lab) = lab(name, settings) else { return };
        for node in &mut lab.nodes {
            node.write("policy.yaml", POLICY);
            node.wait_for("maps are as the objects say");
        }
        let servers = ["10.244.2.6:80", "[fd00:10:244:2::6]:80"].map(|address| lab.b.listen(address));
        let mut connections: Vec<_> = (0..CONNECTIONS).map(|n| lab.a.reach(&servers[n % 2])).collect();
        let before = [0, 1].map(|node| numbers(&lab.nodes[node]));
        let (end, rounds, knocks) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let bind = |pod: &crate::support::Namespace, address: &str| {
            let socket = pod.inside(|| UdpSocket::bind(address).unwrap());
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            socket
        };
        let (denied, knocked) = (bind(&lab.c, "10.244.1.7:0"), bind(&lab.b, "10.244.2.6:90"));
        let again = sent_again(&lab);
        let Lab { nodes, .. } = &mut lab;
        std::thread::scope(|scope| {
            let _ends = Ends(&end);
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    let round = rounds.fetch_add(1, Ordering::Relaxed);
                    connections.iter_mut().for_each(|connection| exchange(connection, round));
                }
            });
            // x/c may not reach x/b: not one of its packets may arrive, at any time.
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    denied.send_to(b"knock", "10.244.2.6:90").unwrap();
                    knocks.fetch_add(1, Ordering::Relaxed);
                    let error = knocked.recv_from(&mut [0; 16]).unwrap_err();
                    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                }
            });
            let goes_on = || {
                let before = (rounds.load(Ordering::Relaxed), knocks.load(Ordering::Relaxed));
                for _ in 0..1000 {
                    pause(Duration::from_millis(10));
                    let now = (rounds.load(Ordering::Relaxed), knocks.load(Ordering::Relaxed));
                    if now.0 > before.0 + 2 && now.1 > before.1 + 20 {
                        return;
                    }
                }
                panic!("traffic has stopped: {before:?}");
            };
            goes_on();
            nodes.iter_mut().for_each(Node::kill);
            goes_on();
            nodes.iter_mut().for_each(Node::spawn);
            nodes.iter_mut().for_each(|node| {
                node.wait_for("maps are as the objects say");
            });
            goes_on();
        });
        println!(
            "{} rounds over {CONNECTIONS} connections, {} packets denied, {} segments sent again",
            rounds.into_inner(),
            knocks.into_inner(),
            sent_again(&lab) - again
        );
        for (node, before) in lab.nodes.iter().zip(before) {
            assert_eq!(numbers(node), before);
            let status = node.ask(r#"{"request":"status"}"#);
            assert_eq!(status["ok"]["last_pass"]["changes"], json!(0), "{status}");
            assert_eq!(status["ok"]["healthy"], json!(true), "{status}");
        }
    }
}

#[test]
fn a_stream_of_iperf3_does_not_notice_that_agents_are_killed() {
    let Some(mut lab) = lab("sc", "") else { return };
    if Command::new("iperf3").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skip: lab-tools: no iperf3");
        return;
    }
    let start = |pod: &crate::support::Namespace, arguments: &[&str]| {
        pod.inside(|| Command::new("iperf3").args(arguments).stdout(Stdio::piped()).spawn().unwrap())
    };
    let mut server = start(&lab.b, &["--server", "--one-off", "--forceflush"]);
    let mut line = [0; 32];
    // It has said that it listens.
    assert_ne!(server.stdout.as_mut().unwrap().read(&mut line).unwrap(), 0);
    let client = start(&lab.a, &["--client", "10.244.2.6", "--time", "5", "--interval", "0.5", "--json"]);
    pause(Duration::from_millis(700));
    lab.nodes.iter_mut().for_each(Node::kill);
    pause(Duration::from_millis(700));
    lab.nodes.iter_mut().for_each(Node::spawn);
    let report = client.wait_with_output().unwrap();
    // It ends with its only test, unless there was none.
    let _ = server.kill();
    server.wait().unwrap();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["error"], Value::Null, "{report}");
    let intervals: Vec<f64> = report["intervals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|interval| interval["sum"]["bits_per_second"].as_f64().unwrap() / 1e9)
        .collect();
    println!("Gbit/s in each half second: {intervals:.1?}; {}", report["end"]["sum_sent"]["retransmits"]);
    assert!(intervals.len() >= 9 && intervals.iter().all(|rate| *rate > 0.0), "{intervals:?}");
    for node in &mut lab.nodes {
        node.wait_for("maps are as the objects say");
        let status = node.ask(r#"{"request":"status"}"#);
        assert_eq!(status["ok"]["last_pass"]["changes"], json!(0), "{status}");
    }
}
