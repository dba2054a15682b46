//! Random changes of clusters: what is worked out from a change is what is resolved from all objects.

use std::fmt::Write as _;

use super::*;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

const SPACES: [&str; 3] = ["x", "y", "z"];
const APPS: [&str; 3] = ["a", "b", "c"];

fn node(random: &mut Random) -> String {
    let n = random.below(4);
    let mut text = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n{n}, labels: {{");
    if random.one_in(2) {
        write!(text, "topology.kubernetes.io/zone: z{}", random.below(2)).unwrap();
    }
    text.push_str("}}\n");
    if !random.one_in(3) {
        writeln!(text, "spec: {{podCIDRs: [10.{n}.0.0/28]}}").unwrap();
    }
    if !random.one_in(3) {
        let last = n + if random.one_in(6) { 1 } else { 0 };
        writeln!(text, "status: {{addresses: [{{type: InternalIP, address: 192.168.7.{last}}}]}}").unwrap();
    }
    text
}

fn pod(random: &mut Random) -> String {
    let (space, app) = (random.pick(&SPACES), random.pick(&APPS));
    let mut text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{}, namespace: {space}, labels: {{app: {app}}}",
        random.below(6)
    );
    if random.one_in(6) {
        let kind = random.pick(&["ReplicaSet", "StatefulSet", "Other"]);
        write!(text, ", ownerReferences: [{{apiVersion: v1, kind: {kind}, name: w{}, uid: u}}]", random.below(2))
            .unwrap();
    }
    text.push_str("}\nspec: {");
    if !random.one_in(5) {
        write!(text, "nodeName: n{}, ", random.below(4)).unwrap();
    }
    if random.one_in(8) {
        text.push_str("hostNetwork: true, ");
    }
    writeln!(text, "containers: [{{name: c, ports: [{{name: web, containerPort: {}}}]}}]}}", 80 + random.below(2))
        .unwrap();
    match random.below(8) {
        0 => text.push_str("status: {phase: Succeeded}\n"),
        1 | 2 => {
            writeln!(text, "status: {{podIPs: [{{ip: 10.{}.0.{}}}]}}", random.below(4), 2 + random.below(6)).unwrap()
        }
        _ => {}
    }
    text
}

fn document(random: &mut Random) -> String {
    let space = random.pick(&SPACES);
    match random.below(20) {
        0 => node(random),
        1 => format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {space}, labels: {{team: t{}}}}}\n",
            random.below(3)
        ),
        2 if random.one_in(6) => format!(
            "apiVersion: apps/v1\nkind: {}\nmetadata: {{name: w{}, namespace: {space}}}\nspec: {{selector: {{matchLabels: \
             {{app: a}}}}, template: {{metadata: {{labels: {{app: a}}}}, spec: {{containers: [{{name: c}}]}}}}}}\n",
            random.pick(&["ReplicaSet", "DaemonSet"]),
            random.below(2)
        ),
        3 | 4 => {
            let selector =
                if random.one_in(3) { String::new() } else { format!("selector: {{app: {}}}, ", random.pick(&APPS)) };
            let own =
                if random.one_in(3) { format!("clusterIP: 10.96.0.{}, ", 2 + random.below(5)) } else { String::new() };
            let target = random.pick(&["web", "80"]);
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{}, namespace: {space}}}\nspec: {{{selector}{own}ports: \
                 [{{port: 80, targetPort: {target}}}]}}\n",
                random.below(3)
            )
        }
        5 => {
            let name = random.pick(&["s0-ipv4-0", "e0", "e1"]);
            format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: {space}, labels: \
                 {{kubernetes.io/service-name: s{}}}}}\naddressType: IPv4\nendpoints: [{{addresses: [203.0.113.{}]}}]\nports: []\n",
                random.below(3),
                random.below(9)
            )
        }
        6 => format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: q{}, namespace: {}}}\nspec: {{podSelector: {{}}}}\n",
            random.below(3),
            random.pick(&["x", "y", "far"])
        ),
        7 => format!(
            "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {{name: g{}}}\nspec: {{externalCIDRs: [203.0.113.{}/32]}}\n",
            random.below(2),
            random.below(9)
        ),
        8 => format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: i{}, namespace: {}}}\n",
            random.below(2),
            random.pick(&["x", "far"])
        ),
        _ => pod(random),
    }
}

fn objects(random: &mut Random, count: u64) -> Vec<Object> {
    let mut seen = BTreeSet::new();
    let mut all: Vec<Object> = Vec::new();
    for index in 0..count {
        let read = read_objects(&[(format!("f{index}.yaml"), document(random))]).unwrap();
        all.extend(read.into_iter().filter(|object| seen.insert(object.key())));
    }
    all
}

/// One random change; what has changed, or nothing if it is refused.
fn change(model: &mut Model, random: &mut Random) -> Result<(), InputErrors> {
    match random.below(4) {
        0 => {
            let keys: Vec<ObjectKey> = model.objects().iter().map(Object::key).collect();
            let gone: Vec<ObjectKey> = keys.into_iter().filter(|_| random.one_in(12)).collect();
            model.delete(&gone).map(|_| ())
        }
        1 => {
            // Another file: some objects go, some come in between.
            let come = 1 + random.below(3);
            let new = objects(random, come);
            let mut all: Vec<Arc<Object>> = model.objects().shared().filter(|_| !random.one_in(15)).collect();
            all.retain(|object| new.iter().all(|new| new.key() != object.key()));
            let at = usize::try_from(random.below(all.len() as u64 + 1)).unwrap();
            all.splice(at..at, new.into_iter().map(Arc::new));
            model.replace(all)
        }
        _ => {
            let come = 1 + random.below(3);
            model.apply(objects(random, come))
        }
    }
}

#[test]
fn a_change_ends_where_all_objects_lead() {
    let (mut known, mut anew, mut refused) = (0, 0, 0);
    for seed in 1..=150 {
        let mut random = Random(seed);
        let settings = Settings { ipv4: true, ipv6: random.one_in(2) };
        let mut model = Model::empty(settings).unwrap();
        let nodes = (0..4).map(|n| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{n}}}\n"));
        // In some, there are no objects for nodes: they are made up.
        if seed % 5 > 0 {
            model.apply(read_objects(&[("nodes.yaml".to_owned(), nodes.collect())]).unwrap()).unwrap();
        }
        let start = objects(&mut random, 40);
        for object in start {
            // Some of them do not fit.
            let _ = model.apply([object]);
        }
        for step in 0..40 {
            let before = model.clone();
            if change(&mut model, &mut random).is_err() {
                refused += 1;
                assert!(
                    Arc::ptr_eq(&before.resolved, &model.resolved),
                    "seed {seed} step {step}: changed all the same"
                );
                continue;
            }
            let placements = before.resolved.books.placements.clone();
            let fresh = Model::build(settings, model.objects.clone(), placements, Report::default());
            let fresh = fresh.unwrap_or_else(|errors| panic!("seed {seed} step {step}: accepted in spite of {errors}"));
            let at = format!("seed {seed} step {step}");
            let (is, wanted) = (&*model.resolved, &*fresh.resolved);
            assert_eq!(is.pods, wanted.pods, "{at}");
            assert_eq!(is.nodes, wanted.nodes, "{at}");
            assert_eq!(is.namespaces, wanted.namespaces, "{at}");
            assert_eq!(is.services, wanted.services, "{at}");
            assert_eq!(is.slices, wanted.slices, "{at}");
            assert_eq!(is.holders, wanted.holders, "{at}");
            assert_eq!(is.books, wanted.books, "{at}");
            assert_eq!(is, wanted, "{at}");
            if before.objects.len() > 20 {
                let shared = model.resolved.namespaces.is_same(&before.resolved.namespaces);
                *(if shared { &mut known } else { &mut anew }) += 1;
            }
        }
    }
    println!("{known} changes worked out, {anew} resolved anew, {refused} refused");
    assert!(known > 1_000 && anew > 500 && refused > 100, "{known} {anew} {refused}");
}

#[test]
fn objects_that_come_in_between_never_run_out_of_room() {
    let policy = |n: usize| {
        let text = format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s{n}, namespace: x}}\n");
        read_objects(&[("f.yaml".to_owned(), text)]).unwrap().remove(0)
    };
    let mut all = vec![policy(0), policy(1)];
    let mut model = Model::from_objects(all.clone(), Settings::default()).unwrap();
    for n in 2..100 {
        // Always right behind the first: half of the room goes each time.
        all.insert(1, policy(n));
        model.replace(all.clone()).unwrap();
        assert!(model.objects().iter().eq(&all), "{n}");
    }
}

#[test]
fn two_objects_of_one_name_are_an_error() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: x}\n";
    let read = || read_objects(&[("f.yaml".to_owned(), text.to_owned())]).unwrap().remove(0);
    let error = Model::from_objects(vec![read(), read()], Settings::default()).unwrap_err().to_string();
    assert_eq!(error, "f.yaml:1: metadata.name: Secret `x/s` is already taken at f.yaml:1");
    let mut model = Model::from_objects(vec![read()], Settings::default()).unwrap();
    assert_eq!(model.replace(vec![read(), read()]).unwrap_err().to_string(), error);
}
