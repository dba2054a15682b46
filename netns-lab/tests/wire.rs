//! Captures and what is read from them, on devices of two namespaces; as root.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]
#![expect(clippy::wildcard_enum_match_arm, reason = "blocks of a file that nobody writes")]

use std::net::UdpSocket;
use std::sync::Mutex;

use agent_core::{Model, Settings};
use netns_lab::capture::{self, Capture, Checksum, Way};
use netns_lab::clients;
use netns_lab::node;
use netns_lab::place::Place;
use netns_lab::registry::Run;
use netns_lab::report::Report;
use netns_lab::topology::{Segment, Topology};
use netns_lab::wire;
use netns_lab::wire::packet::{Packet, verify};
use netns_lab::world::World;

/// Two places with a cable between them, or `None` where that is not allowed.
fn cable() -> Option<(Place, Place)> {
    if let Some(line) = datapath_kernel::skip_line() {
        println!("{line}");
        return None;
    }
    let (left, right) = (Place::new("left").unwrap(), Place::new("right").unwrap());
    left.ip(&format!("link add eth0 type veth peer name eth0 netns {}", right.path())).unwrap();
    for (place, address) in [(&left, "192.0.2.1/24"), (&right, "192.0.2.2/24")] {
        // Nobody says anything on its own.
        place.set("ipv6/conf/all/disable_ipv6", "1").unwrap();
        place.ip(&format!("addr add {address} dev eth0")).unwrap();
        place.ip("link set eth0 up").unwrap();
    }
    Some((left, right))
}

fn sockets(left: &Place, right: &Place) -> (UdpSocket, UdpSocket) {
    let bind = |place: &Place, address: &str| {
        let _inside = place.enter().unwrap();
        UdpSocket::bind(address).unwrap()
    };
    (bind(left, "192.0.2.1:4000"), bind(right, "192.0.2.2:5000"))
}

#[test]
fn a_capture_has_every_frame_since_its_start_and_knows_who_writes_the_checksum() {
    let Some((left, right)) = cable() else { return };
    let (client, server) = sockets(&left, &right);
    let (mut out, into) = (Capture::start(&left, "eth0").unwrap(), Capture::start(&right, "eth0").unwrap());
    for number in 0..100u8 {
        client.send_to(&[number; 33], "192.0.2.2:5000").unwrap();
    }
    let mut buffer = [0; 64];
    for _ in 0..100 {
        assert_eq!(server.recv(&mut buffer).unwrap(), 33);
    }
    assert!(out.frames().unwrap().len() >= 102, "question and answer of ARP, 100 datagrams");
    let recordings = [out.stop().unwrap(), into.stop().unwrap()];
    for (recording, way) in recordings.iter().zip([Way::Out, Way::In]) {
        let frames = recording.complete().unwrap();
        assert!(frames.is_sorted_by_key(|frame| frame.at_ns));
        let mut numbers = Vec::new();
        for frame in frames {
            let Some((from, to, payload)) = Packet::read(&frame.bytes).unwrap().udp() else { continue };
            assert_eq!((from, to, payload.len(), frame.way), (4000, 5000, 33, way));
            // A veth takes packets without a checksum and leaves them so.
            assert_eq!(frame.checksum, Checksum::Open { start: 34, offset: 6 });
            assert!(Packet::read(&frame.bytes).unwrap().verify().is_err());
            assert_eq!(verify(frame).unwrap().transports, 1);
            numbers.push(payload[0]);
        }
        assert_eq!(numbers, (0..100).collect::<Vec<u8>>());
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    capture::save(file.path(), &recordings).unwrap();
    let (mut names, mut packets, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    let mut reader = pcap_file::pcapng::PcapNgReader::new(file.reopen().unwrap()).unwrap();
    while let Some(block) = reader.next_block() {
        use pcap_file::pcapng::Block;
        use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption as Interface;
        use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption as Statistics;
        match block.unwrap() {
            Block::InterfaceDescription(block) => names.extend(block.options.into_iter().filter_map(|option| {
                if let Interface::IfName(name) = option { Some(name.into_owned()) } else { None }
            })),
            Block::EnhancedPacket(block) => {
                packets.push((block.interface_id, block.timestamp, block.data.into_owned()))
            }
            Block::InterfaceStatistics(block) => lost.push(block.options == [Statistics::IsbOsDrop(0)]),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(names, ["left:eth0", "right:eth0"]);
    assert_eq!(lost, [true, true]);
    assert!(packets.is_sorted_by_key(|(_, time, _)| *time));
    for (id, recording) in (0..).zip(&recordings) {
        let written = packets.iter().filter(|(device, _, _)| *device == id).map(|(_, _, data)| data);
        assert!(written.eq(recording.frames.iter().map(|frame| &frame.bytes)));
    }
}

#[test]
fn a_capture_that_lost_frames_says_so() {
    let Some((left, right)) = cable() else { return };
    for place in [&left, &right] {
        place.ip("link set eth0 mtu 65000").unwrap();
    }
    let (client, _server) = sockets(&left, &right);
    let capture = Capture::start(&left, "eth0").unwrap();
    // About four times what the queue takes.
    let sent = 8_000;
    for _ in 0..sent {
        client.send_to(&[0; 60_000], "192.0.2.2:5000").unwrap();
    }
    let recording = capture.stop().unwrap();
    assert!(recording.lost > 0 && !recording.frames.is_empty());
    let counted = u64::try_from(recording.frames.len()).unwrap() + recording.lost;
    assert!((sent..sent + 10).contains(&counted), "{counted}");
    assert!(recording.complete().is_err());
}

type Look = fn(&mut World, &mut Report) -> anyhow::Result<()>;

/// One world at a time: each has agents whose programs the verifier goes through.
static ONE: Mutex<()> = Mutex::new(());

/// A world of this cluster with a segment for each of these nodes (none: one for all); `None` where that is not allowed.
fn world(cluster: &str, segments: &[&str]) -> Option<World> {
    if let Some(line) = datapath_kernel::skip_line() {
        println!("{line}");
        return None;
    }
    node::use_program(std::path::Path::new(env!("CARGO_BIN_EXE_netns-lab")));
    let model = Model::parse(&[("lab.yaml".to_owned(), cluster.to_owned())], Settings::default()).unwrap();
    let segments = segments.iter().map(|nodes| Segment { mtu: 1500, nodes: vec![(*nodes).to_owned()] }).collect();
    let topology = Topology { segments, ..Topology::default() };
    Some(World::build(Run::begin(None).unwrap(), &model, cluster, topology).unwrap())
}

/// What does not hold, by name.
fn failures(world: &mut World, look: Look) -> Vec<String> {
    let mut report = Report::default();
    // What a broken network does not let through may end a check early.
    let ended = look(world, &mut report);
    print!("{}", report.text());
    for (what, _) in report.checks().iter().filter(|(what, _)| what.starts_with("skip: ")) {
        println!("{what}");
    }
    assert!(ended.is_err() || !report.checks().is_empty(), "nothing was looked at");
    let failed = report.checks().iter().filter(|(_, wrong)| wrong.is_some()).map(|(what, _)| what.clone());
    failed.chain(ended.err().map(|error| format!("{error:#}"))).collect()
}

#[test]
fn the_wire_is_as_it_should_be_until_it_is_broken() {
    let _one = ONE.lock();
    let Some(mut world) = world(wire::cluster::CLUSTER, &[]) else { return };
    let looks: [Look; 6] = [
        wire::look,
        wire::sizes::look,
        wire::neighbours::look,
        wire::simulated::look,
        wire::offloads::look,
        clients::look,
    ];
    for look in looks {
        assert_eq!(failures(&mut world, look), Vec::<String>::new());
    }

    // A pod that believes in 1500 bytes sends what becomes too long between nodes.
    let near = wire::cluster::pod(&world, wire::cluster::NEAR, false).unwrap();
    let device = wire::cluster::endpoint(&world, &near).unwrap().device;
    world.node("left").unwrap().ip_all(&format!("link set {device} mtu 1500\nlink set weir_vxlan mtu 1500")).unwrap();
    world.pod(wire::cluster::NEAR).unwrap().ip("link set eth0 mtu 1500").unwrap();
    let failed = failures(&mut world, wire::sizes::look);
    assert!(failed.iter().any(|what| what.contains("no payload up to 1472 bytes is cut")), "{failed:?}");
}

#[test]
fn senders_learn_what_their_path_takes() {
    let _one = ONE.lock();
    let Some(mut world) = world(wire::path_mtu::CLUSTER, &["left", "right"]) else { return };
    assert_eq!(failures(&mut world, wire::path_mtu::look), Vec::<String>::new());
}

/// A limit, and no aim: with the agents' setting `mtu` nothing is lost, which the lab `path-mtu-ipv6` shows.
#[test]
fn tunnels_over_ipv6_lose_what_a_way_does_not_take_that_agents_do_not_know_of() {
    let _one = ONE.lock();
    let Some(mut world) = world(wire::path_mtu::CLUSTER6, &["left", "right"]) else { return };
    assert_eq!(failures(&mut world, wire::path_mtu::look6), Vec::<String>::new());
}
