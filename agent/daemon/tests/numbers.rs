//! What an agent costs and how fast it is, measured and held under generous limits. Alone in its process: tests beside it
//! would be measured too. Needs root; otherwise prints the skip line.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "nodes/support.rs"]
mod support;

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use support::{DENY, Ends, Lab, NODE, Namespace, Node, lab, pause, skipped};

/// One at a time.
static ALONE: Mutex<()> = Mutex::new(());

const PODS: u32 = 50;

/// Nanoseconds that the agent's thread has run.
fn run_time(node: &Node) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/schedstat", node.id())).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Memory of the agent's process.
fn kib(node: &Node, name: &str) -> u64 {
    let memory = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
    let line = memory.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn an_agent_with_fifty_pods_is_small_and_rests() {
    if skipped() {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let prefix = format!("weir-na-{}", std::process::id());
    let mut node = Node::new(&prefix);
    let mut text = NODE.to_owned();
    for n in 0..PODS {
        text += &support::pod(&format!("p{n}"), u8::try_from(n + 5).unwrap());
    }
    node.write("cluster.yaml", &text);
    node.start();
    let pods: Vec<Namespace> = (0..PODS).map(|n| Namespace::new(format!("{prefix}-{n}"))).collect();
    let began = Instant::now();
    for (n, pod) in pods.iter().enumerate() {
        node.add(&format!("x/p{n}"), pod);
    }
    println!("{PODS} pods connected in {:?}", began.elapsed());
    let status = node.ask(r#"{"request":"status"}"#);
    assert_eq!(status["ok"]["endpoints"], json!([PODS, PODS]), "{status}");
    // What the kernel has to say about the last devices has been heard.
    pause(Duration::from_secs(2));
    let (began, before) = (Instant::now(), run_time(&node));
    pause(Duration::from_secs(4));
    let used = Duration::from_nanos(run_time(&node) - before);
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    let (resident, peak) = (kib(&node, "VmRSS:"), kib(&node, "VmHWM:"));
    println!("{PODS} pods: {resident} KiB resident, at most {peak}; {share:.3} % of a core at rest");
    assert!(resident < 40 << 10, "{resident} KiB");
    assert!(share < 0.5, "{share} %");
}

/// From the moment that the file is read to the moment that maps are written; the agent waits 5 ms more for files to be quiet.
#[test]
fn a_change_among_ten_thousand_pods_takes_milliseconds() {
    if skipped() {
        return;
    }
    const ROUNDS: usize = 15;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Lab { mut node, a: _a, b: _b } = lab("weir-nc", "");
    node.stop();
    for space in 0..250 {
        let mut text = String::new();
        for (app, replica) in (0..10).flat_map(|app| (0..4).map(move |replica| (app, replica))) {
            let (second, fourth) = (space, app * 4 + replica + 2);
            write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a{app}-{replica}, namespace: s{space}, labels: {{app: a{app}}}}}\n\
                 spec: {{nodeName: other, containers: [{{name: c}}]}}\nstatus: {{podIPs: [{{ip: 10.245.{second}.{fourth}}}]}}\n"
            )
            .unwrap();
        }
        node.write(&format!("s{space}.yaml"), &text);
    }
    let other = "apiVersion: v1\nkind: Node\nmetadata: {name: other}\nspec: {podCIDRs: [10.245.0.0/16]}\n\
                 status: {addresses: [{type: InternalIP, address: 192.0.2.9}]}\n";
    node.write("other.yaml", other);
    // Files that have just been written are read again.
    pause(Duration::from_secs(3));
    node.start();
    let micros = |node: &Node| node.ask(r#"{"request":"status"}"#)["ok"]["last_pass"]["micros"].as_u64().unwrap();
    let (mut policies, mut pods) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        node.write("deny.yaml", DENY);
        node.wait_for("maps are as the objects say");
        policies.push(micros(&node));
        node.delete("deny.yaml");
        node.wait_for("maps are as the objects say");
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: fresh, namespace: s7, labels: {{app: fresh{round}}}}}\n\
             spec: {{nodeName: other, containers: [{{name: c}}]}}\nstatus: {{podIPs: [{{ip: 10.245.255.9}}]}}\n"
        );
        node.write("fresh.yaml", &pod);
        node.wait_for("maps are as the objects say");
        pods.push(micros(&node));
    }
    for (name, mut times) in [("a policy", policies), ("a pod with an identity of its own", pods)] {
        times.sort_unstable();
        let (median, least, most) = (times[ROUNDS / 2], times[0], times[ROUNDS - 1]);
        let line = format!("{name} among 10,000 pods: median {median} us ({least} to {most}) of {ROUNDS}");
        println!("{line}");
        assert!(median < 100_000, "{line}");
    }
    let resident = kib(&node, "VmRSS:");
    println!("10,000 pods: {resident} KiB resident");
    assert!(resident < 300 << 10, "{resident} KiB");
}

#[test]
fn a_policy_is_in_force_within_fifty_milliseconds() {
    if skipped() {
        return;
    }
    const ROUNDS: usize = 25;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Lab { mut node, a, b } = lab("weir-nb", "");
    let sender = a.inside(|| UdpSocket::bind("10.244.1.5:0").unwrap());
    let receiver = b.inside(|| UdpSocket::bind("10.244.1.6:90").unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (end, arrivals) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let (mut denied, mut allowed) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let _ends = Ends(&end);
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                sender.send_to(b"?", "10.244.1.6:90").unwrap();
                pause(Duration::from_micros(500));
            }
        });
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                if receiver.recv_from(&mut [0; 8]).is_ok() {
                    arrivals.lock().unwrap().push(Instant::now());
                }
            }
        });
        for _ in 0..ROUNDS {
            pause(Duration::from_millis(30));
            arrivals.lock().unwrap().clear();
            let began = Instant::now();
            node.write("deny.yaml", DENY);
            node.wait_for("maps are as the objects say");
            pause(Duration::from_millis(30));
            // The last that got through.
            let last = arrivals.lock().unwrap().last().copied().unwrap_or(began);
            denied.push(last.saturating_duration_since(began));
            arrivals.lock().unwrap().clear();
            pause(Duration::from_millis(20));
            let through = arrivals.lock().unwrap().len();
            assert_eq!(through, 0, "packets got through after the policy");
            let began = Instant::now();
            node.delete("deny.yaml");
            node.wait_for("maps are as the objects say");
            pause(Duration::from_millis(30));
            let first = arrivals.lock().unwrap().first().copied().unwrap();
            allowed.push(first.duration_since(began));
        }
    });
    for (name, mut times) in [("allow to deny", denied), ("deny to allow", allowed)] {
        times.sort();
        let (median, least, most) = (times[ROUNDS / 2], times[0], times[ROUNDS - 1]);
        let mut line = String::new();
        write!(line, "{name}: median {median:.1?} ({least:.1?} to {most:.1?}) of {ROUNDS}").unwrap();
        println!("{line}");
        assert!(median < Duration::from_millis(50), "{line}");
    }
}
