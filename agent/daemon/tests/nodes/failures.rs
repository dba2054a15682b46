//! What goes wrong is said, and what was there stays: full maps, full disks, wrong folders, files cut off, floods.

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{DENY, Lab, NODE, Node, echo, lab, pod, run, skipped};

const STATUS: &str = r#"{"request":"status"}"#;

fn status(node: &Node) -> Value {
    node.ask(STATUS)["ok"].clone()
}

/// Everything may come to port 80 of `x/b`, nothing else.
fn only_port_80() -> String {
    DENY.replace("[Ingress]}", "[Ingress], ingress: [{ports: [{port: 80}]}]}")
}

/// Starts an agent that must not start: exit code and what it says.
fn refused(node: &Node) -> (Option<i32>, String) {
    let output = node.command().stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn more_policy_than_there_is_room_for_is_said_and_the_old_one_stays() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-fa", "");
    node.write("policy.yaml", &only_port_80());
    node.wait_for("maps are as the objects say");
    let (open, closed) = (b.listen("10.244.1.6:80"), b.listen("10.244.1.6:82"));
    let mut many = DENY.replace("name: deny", "name: many").replace("[Ingress]}", "[Ingress], ingress: [{from: [");
    for n in 0..17_000_u32 {
        let [_, high, middle, low] = n.to_be_bytes();
        write!(many, "{{ipBlock: {{cidr: 11.{high}.{middle}.{low}/32}}}}, ").unwrap();
    }
    many += "{podSelector: {}}]}]}\n";
    node.write("many.yaml", &many);
    println!("{}", node.wait_for("not as the objects say").trim());
    let shown = status(&node);
    let error = shown["reconcile_error"].as_str().unwrap();
    assert!(error.contains("policy entries and has room for 16384; NetworkPolicy x/many ("), "{error}");
    assert_eq!(shown["healthy"], json!(false));
    echo(&mut a.reach(&open));
    a.fails_to_reach(&closed);
    node.delete("many.yaml");
    node.wait_for("maps are as the objects say");
    let shown = status(&node);
    assert_eq!((&shown["healthy"], &shown["reconcile_error"]), (&json!(true), &Value::Null));
    a.fails_to_reach(&closed);
}

#[test]
fn a_folder_for_pins_that_is_none_is_said() {
    if skipped() {
        return;
    }
    let node = Node::new(&format!("weir-fb-{}", std::process::id()));
    node.write("cluster.yaml", NODE);
    let elsewhere = node.folder.path().join("bpf");
    // No bpf file system; one that takes no names with dots.
    for (bpffs, why) in [
        (elsewhere.display().to_string(), "is not in a bpf file system: `mount -t bpf bpf DIRECTORY`"),
        ("/sys/fs/bpf/weir.fb".to_owned(), "make /sys/fs/bpf/weir.fb/links: Operation not permitted"),
    ] {
        let path = node.folder.path().join("weir.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("bpffs"));
        std::fs::write(&path, lines.collect::<Vec<_>>().join("\n") + &format!("\nbpffs = '{bpffs}'\n")).unwrap();
        let (code, text) = refused(&node);
        assert!(code == Some(1) && text.contains(why), "{code:?} {text}");
    }
    assert!(!node.shows("ip", &["-br", "link"]).contains("weir_"));
}

#[test]
fn a_state_file_that_is_damaged_stops_a_start_and_nothing_else() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-fc", "");
    let file = node.folder.path().join("state/state.json");
    let server = b.listen("10.244.1.6:80");
    let mut connection = a.reach(&server);
    node.kill();
    let whole = std::fs::read(&file).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"", b"\0\0\0\0\0\0\0\0", b"{\"endpoints\":{},\"more\":1}"] {
        std::fs::write(&file, damaged).unwrap();
        let (code, text) = refused(&node);
        assert!(code == Some(1) && text.contains("state.json: ") && text.contains("--cleanup"), "{code:?} {text}");
        echo(&mut connection);
    }
    // What a writer that was killed left behind is not read.
    std::fs::write(&file, &whole).unwrap();
    std::fs::write(file.with_extension("json.new"), &whole[..10]).unwrap();
    node.start();
    echo(&mut connection);
    assert_eq!(status(&node)["endpoints"], json!([2, 2]));
}

/// A small file system, unmounted on drop.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &["--lazy", &self.0.display().to_string()]);
    }
}

#[test]
fn a_full_disk_is_said_and_what_was_there_stays() {
    if skipped() {
        return;
    }
    let prefix = format!("weir-fd-{}", std::process::id());
    let [a, b] = ["a", "b"].map(|pod| crate::support::Namespace::new(format!("{prefix}-{pod}")));
    let mut node = Node::new(&prefix);
    let folder = node.folder.path().join("state");
    std::fs::create_dir(&folder).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", &folder.display().to_string()]);
    let small = Small(folder.clone());
    node.write("cluster.yaml", &[NODE, &pod("a", 5), &pod("b", 6)].concat());
    node.start();
    node.add("x/a", &a);
    let filler = folder.join("filler");
    assert!(std::fs::write(&filler, [0; 128 << 10]).is_err());
    let path = b.path.display();
    let answer = node.ask(&format!(r#"{{"request":"endpoint-add","pod":"x/b","netns":"{path}"}}"#));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("state.json.new: No space left on device"), "{answer}");
    assert_eq!(answer["error"]["input"], json!(false));
    assert_eq!(node.ask(r#"{"request":"endpoint-list"}"#)["ok"].as_array().unwrap().len(), 1);
    assert!(!node.shows("ip", &["-br", "link"]).contains("weir_2"));
    echo(&mut node.namespace.reach(&a.listen("10.244.1.5:80")));
    std::fs::remove_file(filler).unwrap();
    node.add("x/b", &b);
    echo(&mut a.reach(&b.listen("10.244.1.6:80")));
    node.stop();
    node.cleanup();
    drop(small);
}

#[test]
fn a_second_agent_and_a_path_that_is_no_socket_are_refused() {
    if skipped() {
        return;
    }
    let mut node = Node::new(&format!("weir-fe-{}", std::process::id()));
    node.write("cluster.yaml", NODE);
    node.start();
    let (code, text) = refused(&node);
    assert!(code == Some(2) && text.contains("an agent is running: it holds"), "{code:?} {text}");
    assert_eq!(status(&node)["healthy"], json!(true));
    let socket = node.folder.path().join("socket");
    node.kill();
    // A socket that nobody listens on is what such an end leaves behind.
    assert!(socket.exists());
    node.start();
    node.stop();
    std::fs::write(&socket, "somebody's").unwrap();
    let (code, text) = refused(&node);
    assert!(code == Some(1) && text.contains("socket: is there and no socket"), "{code:?} {text}");
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "somebody's");
    std::fs::remove_file(&socket).unwrap();
}

#[test]
fn a_folder_of_ten_thousand_objects_is_read() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-ff", "");
    let other = NODE
        .replace("n1", "n2")
        .replace("10.244.1.0/24, 'fd00:10:244:1::/64'", "10.245.0.0/16, 'fd00:10:245::/64'")
        .replace("192.0.2.1", "192.0.2.2");
    node.write("other.yaml", &other);
    let objects = node.folder.path().join("objects");
    for file in 0..1000_u32 {
        let mut text = String::new();
        for n in file * 10..file * 10 + 10 {
            let [_, _, high, low] = (n + 10).to_be_bytes();
            write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}, namespace: y, labels: {{app: l{}}}}}\n\
                 spec: {{nodeName: n2, containers: [{{name: c, image: i}}]}}\n\
                 status: {{podIPs: [{{ip: 10.245.{high}.{low}}}, {{ip: 'fd00:10:245::{:x}'}}]}}\n",
                n % 100,
                n + 10
            )
            .unwrap();
        }
        std::fs::write(objects.join(format!("p{file}.yaml")), text).unwrap();
    }
    let seen = loop {
        node.wait_for("maps are as the objects say");
        let shown = status(&node);
        if shown["source"]["objects"] == json!(10_004) {
            break shown;
        }
    };
    println!("10,000 objects in 1000 files, last pass: {}", seen["last_pass"]);
    assert_eq!(seen["healthy"], json!(true), "{seen}");
    let owners = node.ask(r#"{"request":"ipcache-list"}"#);
    assert!(owners["ok"].as_array().unwrap().len() > 20_000);
    node.write("deny.yaml", DENY);
    // Passes are said behind each other: this one is over when the pod is isolated.
    while node.ask(r#"{"request":"endpoint-get","endpoint":"x/b"}"#)["ok"]["ingress_policies"] == json!([]) {
        node.wait_for("maps are as the objects say");
    }
    println!("with one policy more: {}", status(&node)["last_pass"]);
    a.fails_to_reach(&b.listen("10.244.1.6:80"));
}

#[test]
fn a_flood_of_events_is_counted_and_does_not_stop_the_agent() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-fg", "");
    node.write("deny.yaml", DENY);
    node.wait_for("maps are as the objects say");
    let _closed = b.listen("10.244.1.6:80");
    let socket = a.inside(|| UdpSocket::bind("10.244.1.5:0").unwrap());
    let id = node.id().to_string();
    run("kill", &["-STOP", &id]);
    for _ in 0..30_000 {
        socket.send_to(b"flood", "10.244.1.6:90").unwrap();
    }
    run("kill", &["-CONT", &id]);
    let shown = status(&node);
    assert!(shown["events_lost"].as_u64().unwrap() > 1000, "{shown}");
    let counters = node.ask(r#"{"request":"metrics"}"#);
    let counter = |reason: &str| {
        let counters = counters["ok"].as_array().unwrap().iter();
        counters.filter(|one| one["reason"] == reason).map(|one| one["packets"].as_u64().unwrap()).sum::<u64>()
    };
    assert!(counter("PolicyNoMatch") >= 30_000, "{counters}");
    assert_eq!(counter("EventLost"), shown["events_lost"].as_u64().unwrap());
    // Afterwards events come as before.
    let mut monitor = node.client();
    monitor.send(r#"{"request":"monitor","kinds":["drop"],"reasons":["PolicyNoMatch"],"ports":[91]}"#);
    assert_eq!(monitor.line(), json!({ "ok": null }));
    socket.send_to(b"one", "10.244.1.6:91").unwrap();
    assert_eq!(monitor.line()["event"]["destination"]["port"], json!(91));
    node.delete("deny.yaml");
    node.wait_for("maps are as the objects say");
}
