//! Programs on devices of a private network namespace. Needs root; otherwise prints the skip line.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

use datapath_kernel::insn::Insn;
use datapath_kernel::{
    Jiffies, KernelMap, Program, ProgramKind, ProgramSource, TcxLink, TcxPoint, TestNet, probe_tcx, skip_line,
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
    }
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
