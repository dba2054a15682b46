//! Programs on devices of a private network namespace. Needs root; otherwise prints the skip line.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

use datapath_kernel::insn::Insn;
use datapath_kernel::{
    Clsact, Jiffies, KernelMap, Program, ProgramKind, ProgramSource, TcxLink, TcxPoint, TestNet, probe_clsact,
    probe_tcx, skip_line,
};
use datapath_maps::{MapKind, MapSpec};

fn skipped() -> bool {
    let line = skip_line();
    if let Some(line) = &line {
        println!("{line}");
    }
    line.is_some()
}

fn program(code: i32) -> Program {
    let insns = [Insn::mov(0, code), Insn::exit()];
    let source =
        ProgramSource { name: "verdict", kind: ProgramKind::Classifier, insns: &insns, license: c"GPL", btf: None };
    Program::load(&source).unwrap()
}

#[test]
fn this_kernel_attaches_programs() {
    if !skipped() {
        probe_tcx().unwrap();
        probe_clsact().unwrap();
    }
}

/// `tc` in this thread's network namespace.
fn tc(arguments: &str) -> String {
    let output = std::process::Command::new("tc").args(arguments.split_whitespace()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tc {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_filter_is_replaced_and_goes_with_its_clsact() {
    if skipped() {
        return;
    }
    let net = TestNet::with_devices(&[7, 8]).unwrap();
    let _inside = net.enter().unwrap();
    let clsact = Clsact::open().unwrap();
    assert!(clsact.on(7, TcxPoint::Ingress).unwrap().is_none() && clsact.filters().unwrap().is_empty());
    clsact.attach(&program(-1), "first", 7, TcxPoint::Ingress).unwrap();
    clsact.attach(&program(-1), "other", 8, TcxPoint::Egress).unwrap();
    let before = clsact.on(7, TcxPoint::Ingress).unwrap().unwrap();
    assert_eq!((before.name.as_str(), before.ifindex), ("first", 7));
    clsact.attach(&program(2), "second", 7, TcxPoint::Ingress).unwrap();
    let after = clsact.on(7, TcxPoint::Ingress).unwrap().unwrap();
    assert!(after.name == "second" && after.program != before.program, "{after:?}");
    let shown = tc("filter show dev dev7 ingress");
    assert!(shown.contains("weir:second direct-action") && !shown.contains("first"), "{shown}");
    assert_eq!(clsact.filters().unwrap().len(), 2);
    clsact.attach(&program(2), "third", 7, TcxPoint::Egress).unwrap();
    clsact.detach(7, TcxPoint::Ingress).unwrap();
    assert!(tc("qdisc show dev dev7").contains("clsact"));
    clsact.detach(7, TcxPoint::Egress).unwrap();
    clsact.detach(7, TcxPoint::Egress).unwrap();
    assert!(!tc("qdisc show dev dev7").contains("clsact"));
    assert_eq!(clsact.filters().unwrap().len(), 1);
}

#[test]
fn filters_of_others_stay_and_are_not_taken_for_ours() {
    if skipped() {
        return;
    }
    let net = TestNet::with_devices(&[7]).unwrap();
    let _inside = net.enter().unwrap();
    tc("qdisc add dev dev7 clsact");
    tc("filter add dev dev7 ingress protocol all prio 10 u32 match u32 0 0 flowid 1:1");
    let clsact = Clsact::open().unwrap();
    assert!(clsact.filters().unwrap().is_empty());
    clsact.attach(&program(-1), "ours", 7, TcxPoint::Ingress).unwrap();
    clsact.detach(7, TcxPoint::Ingress).unwrap();
    let shown = tc("filter show dev dev7 ingress");
    assert!(shown.contains("u32") && !shown.contains("bpf"), "{shown}");
    // Where the first priority is somebody else's, that is said.
    tc("filter add dev dev7 egress protocol all prio 1 u32 match u32 0 0 flowid 1:1");
    let refused = clsact.attach(&program(-1), "ours", 7, TcxPoint::Egress).unwrap_err();
    assert!(refused.to_string().starts_with("attach program: "), "{refused}");
    assert_eq!(clsact.attach(&program(-1), "ours", 99, TcxPoint::Egress).unwrap_err().errno(), Some(19));
}

#[test]
fn a_link_keeps_its_device_when_its_program_is_replaced() {
    if skipped() {
        return;
    }
    let net = TestNet::with_devices(&[7]).unwrap();
    let inside = net.enter().unwrap();
    let link = TcxLink::attach(&program(-1), 7, TcxPoint::Egress).unwrap();
    let before = link.state().unwrap();
    assert_eq!((before.ifindex, before.point), (7, 47));
    link.update(&program(2)).unwrap();
    let after = link.state().unwrap();
    assert_ne!(before.program, after.program);
    assert_eq!((after.ifindex, after.point), (7, 47));
    drop(inside);
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    if skipped() {
        return;
    }
    let net = TestNet::new().unwrap();
    let _inside = net.enter().unwrap();
    assert_eq!(TcxLink::attach(&program(-1), 99, TcxPoint::Ingress).unwrap_err().errno(), Some(19));
}

#[test]
fn the_clock_of_flows_ticks_at_a_rate_that_kernels_have() {
    if skipped() {
        return;
    }
    let clock = Jiffies::new().unwrap();
    let rate = clock.per_second().unwrap();
    assert!([100, 250, 300, 1000].contains(&rate), "{rate}");
    assert!(clock.now().unwrap() >= clock.now().unwrap() - 1);
}

#[test]
fn what_is_not_kept_goes_and_the_rest_stays() {
    if skipped() {
        return;
    }
    let spec =
        MapSpec { name: "t".into(), kind: MapKind::LruHash, key_size: 4, value_size: 4, max_entries: 20_000, flags: 0 };
    let map = KernelMap::create(spec).unwrap();
    let entries: Vec<_> = (0..9000_u32).map(|n| (n.to_ne_bytes().to_vec(), vec![0; 4])).collect();
    map.set_many(&entries).unwrap();
    let even = |key: &[u8]| key.first().is_some_and(|low| low % 2 == 0);
    let (all, gone) = map.retain(&mut |key, _| even(key)).unwrap();
    assert_eq!((all, gone), (9000, 4500));
    assert!(map.entries().unwrap().iter().all(|(key, _)| even(key)));
}
