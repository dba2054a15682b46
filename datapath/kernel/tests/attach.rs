//! Programs on devices of a private network namespace. Needs root; otherwise prints the skip line.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

use datapath_kernel::insn::Insn;
use datapath_kernel::{Program, ProgramKind, ProgramSource, TcxLink, TcxPoint, TestNet, probe_tcx, skip_line};

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
