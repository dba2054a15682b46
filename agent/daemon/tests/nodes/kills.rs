//! First starts that are killed at any moment, and healed by the next.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::support::{Ends, NODE, Namespace, Node, echo, pause, pod, run, skipped};

/// Nodes at once: a start waits for the disk as well.
const AT_ONCE: u32 = 4;

/// Starts, connects both pods as soon as the agent answers, and kills it after this time; whether everything was there.
fn start_and_kill(node: &mut Node, [a, b]: [&Namespace; 2], moment: Duration) -> bool {
    node.spawn();
    let (node, end): (&Node, _) = (node, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let ends = Ends(&end);
        let adding = scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let added = node.try_to_add("x/a", a).and_then(|()| node.try_to_add("x/b", b));
                if added.is_ok() && node.answers() {
                    return true;
                }
                pause(Duration::from_millis(2));
            }
            false
        });
        pause(moment);
        run("kill", &["-KILL", &node.id().to_string()]);
        drop(ends);
        adding.join().unwrap()
    })
}

/// Moments are chosen by a seed: `WEIR_SEED`, as many as `WEIR_KILLS` says.
#[test]
fn a_first_start_that_is_killed_at_any_moment_is_healed_by_the_next() {
    if skipped() {
        return;
    }
    let number = |name: &str, otherwise: u32| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let (seed, kills) = (number("WEIR_SEED", std::process::id()), number("WEIR_KILLS", 8));
    println!("WEIR_SEED={seed} WEIR_KILLS={kills}");
    let next = AtomicU32::new(0);
    let worker = |worker: u32| {
        let prefix = format!("weir-k{worker}-{}", std::process::id());
        let [a, b] = ["a", "b"].map(|pod| Namespace::new(format!("{prefix}-{pod}")));
        let fresh = || {
            let node = Node::new(&prefix);
            node.write("cluster.yaml", &[NODE, &pod("a", 5), &pod("b", 6)].concat());
            node
        };
        // How long a start takes here and now, beside the others: most of it is the first pass.
        let mut length = Duration::from_secs(2);
        while let Some(round) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|round| *round < kills) {
            let mut hash = u64::from(seed) << 32 | u64::from(round);
            for _ in 0..3 {
                hash = (hash ^ hash >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            }
            // Up to a fifth longer than a start takes.
            let moment = length.mul_f64(f64::from(u32::try_from(hash >> 32).unwrap()) / f64::from(u32::MAX) * 1.2);
            let mut node = fresh();
            let complete = start_and_kill(&mut node, [&a, &b], moment);
            println!("round {round}: killed after {moment:?} of {length:?}, complete: {complete}");
            node.kill();
            node.start();
            node.add("x/a", &a);
            node.add("x/b", &b);
            echo(&mut a.reach(&b.listen("10.244.1.6:80")));
            let status = node.ask(r#"{"request":"status"}"#);
            length = Duration::from_micros(status["ok"]["last_pass"]["micros"].as_u64().unwrap());
            let (healthy, endpoints) = (&status["ok"]["healthy"], &status["ok"]["endpoints"]);
            assert_eq!((healthy, endpoints), (&json!(true), &json!([2, 2])), "round {round}: {status}");
        }
    };
    std::thread::scope(|scope| {
        for number in 0..AT_ONCE {
            scope.spawn(move || worker(number));
        }
    });
}
