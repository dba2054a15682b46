//! The running kernel's test-run as an engine: the referee of the others.
//!
//! Programs are the instrumented copy of the object (see `datapath-kernel`), so that clock, tunnel metadata and faults
//! are the test's and redirects are seen. Devices of the wanted index are made, as needed, in a private network
//! namespace that this thread stays in while it has such an engine.
//!
//! The verifier takes a second for the whole object. So what an engine with small tables had loaded is kept when the
//! engine goes, and the next one on this thread with the same settings gets it, its maps emptied first: hundreds of
//! scenarios need a dozen loads.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::{Rc, Weak};

use datapath_abi::{Config, MapId, config};
use datapath_kernel::{
    Inside, KernelError, LoadOptions, Loaded, Pinned, ProbeInput, RedirectKind, RingReader, SkbContext, TestNet,
    TunnelKeyIn, TunnelKeyOut,
};
use datapath_maps::{Entry, MapError, MapStore, UpdateMode};
use simulator_vm::{Engine, Env, ProgramId, Redirect, Run, RunError, Skb, TunnelKey};
use zerocopy::IntoBytes;

use super::{Kind, Limits, OpenError, ticks};

/// Name in reports.
const NAME: &str = "kernel";
/// `EEXIST`.
const EEXIST: i32 = 17;
/// Objects that stay loaded at most when nobody uses them.
const KEPT: usize = 32;
/// Shortest and longest frame of a test run; shorter ones are refused before the program sees them.
const FRAME: (usize, usize) = (14, 3712);

/// The thread's stay in its private namespace, shared by its engines.
struct Stay {
    devices: RefCell<BTreeSet<u32>>,
    net: TestNet,
    // Fields are dropped in order: out of the namespace before it is closed.
    _inside: Inside,
    _pinned: Pinned,
}

thread_local! {
    static STAY: RefCell<Weak<Stay>> = const { RefCell::new(Weak::new()) };
}

fn stay() -> Result<Rc<Stay>, KernelError> {
    if let Some(stay) = STAY.with_borrow(Weak::upgrade) {
        return Ok(stay);
    }
    let net = TestNet::new()?;
    let stay = Rc::new(Stay {
        devices: RefCell::new(BTreeSet::from([1])),
        _inside: net.enter()?,
        _pinned: datapath_kernel::pin_to_cpu(0)?,
        net,
    });
    STAY.set(Rc::downgrade(&stay));
    Ok(stay)
}

/// See the module.
pub struct Kernel {
    store: Store,
    stay: Rc<Stay>,
}

/// The kernel's maps; `calls` takes program numbers of this engine and gets program descriptors.
struct Store(Rc<Object>);

/// The object, loaded. One engine at a time uses it.
struct Object {
    loaded: RefCell<Loaded>,
    /// The only reader of the events.
    ring: RefCell<RingReader>,
    /// Programs by number.
    programs: Vec<String>,
}

thread_local! {
    /// Loaded objects of small tables by their settings, whether in use or not; the newest last.
    static LOADED: RefCell<VecDeque<(Vec<u8>, Rc<Object>)>> = const { RefCell::new(VecDeque::new()) };
}

impl Object {
    fn load(settings: &Config, limits: &Limits) -> Result<Rc<Self>, KernelError> {
        let globals = [(config::SYMBOL, settings.as_bytes())];
        let options = LoadOptions {
            max_entries: limits.max_entries,
            instrument: true,
            globals: &globals,
            ..LoadOptions::default()
        };
        let loaded = Loaded::open(datapath_bytecode::OBJECT, &options)?;
        let ring = RefCell::new(loaded.ring(MapId::Events.name())?);
        let programs = loaded.programs().map(|program| program.name().to_owned()).collect();
        Ok(Rc::new(Self { loaded: RefCell::new(loaded), ring, programs }))
    }

    /// One that is loaded and that nobody uses; its maps are as its last user left them.
    fn idle(settings: &Config) -> Option<Rc<Self>> {
        LOADED.with_borrow(|all| {
            let fits = |(of, object): &&(Vec<u8>, Rc<Self>)| {
                of.as_slice() == settings.as_bytes() && Rc::strong_count(object) == 1
            };
            all.iter().find(fits).map(|(_, object)| Rc::clone(object))
        })
    }

    fn keep(settings: &Config, object: &Rc<Self>) {
        LOADED.with_borrow_mut(|all| {
            all.push_back((settings.as_bytes().to_vec(), Rc::clone(object)));
            if all.len() > KEPT {
                all.pop_front();
            }
        });
    }
}

impl MapStore for Store {
    fn lookup(&self, map: MapId, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        self.0.loaded.borrow().maps().lookup(map, key)
    }

    fn update(&mut self, map: MapId, key: &[u8], value: &[u8], mode: UpdateMode) -> Result<(), MapError> {
        if map != MapId::Calls {
            return self.0.loaded.borrow_mut().maps_mut().update(map, key, value, mode);
        }
        let refused = MapError::Refused { map, step: "update", errno: 22 };
        let (Ok(slot), Ok(number)) = (key.try_into(), value.try_into()) else {
            return Err(refused);
        };
        let number = usize::try_from(u32::from_ne_bytes(number)).ok();
        let Some(program) = number.and_then(|number| self.0.programs.get(number)) else {
            return Err(refused);
        };
        self.0.loaded.borrow().set_call(map.name(), u32::from_ne_bytes(slot), program).map_err(|_| refused)
    }

    fn delete(&mut self, map: MapId, key: &[u8]) -> Result<bool, MapError> {
        self.0.loaded.borrow_mut().maps_mut().delete(map, key)
    }

    fn entries(&self, map: MapId) -> Result<Vec<Entry>, MapError> {
        self.0.loaded.borrow().maps().entries(map)
    }
}

impl Kernel {
    /// The instrumented object over empty maps (`calls` too).
    ///
    /// # Errors
    /// [`OpenError::Privilege`] where this process may not, [`OpenError::Kernel`] when the kernel refuses.
    pub fn open(settings: &Config, limits: &Limits) -> Result<Self, OpenError> {
        if let Some(reason) = datapath_kernel::missing_privilege() {
            return Err(OpenError::Privilege { reason });
        }
        let stay = stay()?;
        if let Some(object) = Object::idle(settings).filter(|_| *limits == Limits::SMALL) {
            let mut engine = Self { store: Store(object), stay };
            super::empty(Kind::Kernel, &mut engine)?;
            return Ok(engine);
        }
        let object = Object::load(settings, limits)?;
        if *limits == Limits::SMALL {
            Object::keep(settings, &object);
        }
        Ok(Self { store: Store(object), stay })
    }

    fn device(&self, index: u32) -> Result<(), KernelError> {
        if index != 0 && self.stay.devices.borrow_mut().insert(index) {
            let [_, _, high, low] = index.to_be_bytes();
            match self.stay.net.add_device(index, [0x02, 0, 0, 0, high, low]) {
                // A kernel may give every namespace some devices of its own: any device of this index will do.
                Ok(()) | Err(KernelError::System { errno: EEXIST, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn unable(reason: &str) -> RunError {
        RunError::Engine { engine: NAME, reason: reason.to_owned() }
    }
}

/// Whether the kernel's test-run can carry this frame; the shortest length it takes otherwise.
pub(crate) fn shortest(frame: &[u8]) -> usize {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        Some(_) | None => FRAME.0,
    }
}

/// Why the kernel's test-run cannot do this run as the simulator does; `None` if it can.
pub(crate) fn unsupported(skb: &Skb, env: &Env) -> Option<&'static str> {
    let faults = &env.faults;
    if faults.ring_full || faults.packet_memory || faults.packet_write || faults.tail_call {
        return Some("this fault cannot be made to happen in a test run");
    }
    if skb.linear_len != 0 {
        return Some("frames of a test run are linear");
    }
    None
}

/// The kernel's `struct bpf_tunnel_key`.
fn tunnel_in(key: &TunnelKey) -> TunnelKeyIn {
    let mut bytes = [0; 44];
    bytes[0..4].copy_from_slice(&key.id.to_ne_bytes());
    match key.remote {
        IpAddr::V4(address) => bytes[4..8].copy_from_slice(&u32::from(address).to_ne_bytes()),
        IpAddr::V6(address) => {
            bytes[4..20].copy_from_slice(&address.octets());
            bytes[24..28].copy_from_slice(&key.label.to_ne_bytes());
        }
    }
    bytes[20] = key.tos;
    bytes[21] = key.ttl;
    TunnelKeyIn { bytes, ipv6: key.remote.is_ipv6() }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn tunnel_out(key: &TunnelKeyOut) -> TunnelKey {
    let address = |at: usize| -> IpAddr {
        if key.flags & 1 == 0 {
            return Ipv4Addr::from(word(&key.bytes, at)).into();
        }
        let octets: Option<[u8; 16]> = key.bytes.get(at..).and_then(|bytes| bytes.first_chunk()).copied();
        Ipv6Addr::from(octets.unwrap_or_default()).into()
    };
    let local = address(28);
    TunnelKey {
        id: word(&key.bytes, 0),
        remote: address(4),
        local: (!local.is_unspecified()).then_some(local),
        tos: key.bytes[20],
        ttl: key.bytes[21],
        label: word(&key.bytes, 24),
        flags: key.flags,
    }
}

impl Engine for Kernel {
    fn name(&self) -> &'static str {
        NAME
    }

    fn program(&self, name: &str) -> Option<ProgramId> {
        let index = self.store.0.programs.iter().position(|program| program == name)?;
        u32::try_from(index).ok().map(ProgramId)
    }

    fn run(&mut self, program: ProgramId, skb: &mut Skb, env: &Env) -> Result<Run, RunError> {
        if let Some(reason) = unsupported(skb, env) {
            return Err(Self::unable(reason));
        }
        let min = shortest(&skb.data);
        if !(min..=FRAME.1).contains(&skb.data.len()) {
            return Err(RunError::FrameSize { len: skb.data.len(), min, max: FRAME.1 });
        }
        let failed = |error: KernelError| RunError::Engine { engine: NAME, reason: error.to_string() };
        self.device(skb.ifindex).map_err(failed)?;
        self.device(skb.ingress_ifindex).map_err(failed)?;
        let name = usize::try_from(program.0).ok().and_then(|number| self.store.0.programs.get(number));
        let name = name.ok_or_else(|| RunError::NoProgram { name: format!("#{}", program.0) })?;
        let loaded = self.store.0.loaded.borrow();
        let program = loaded.program(name).map_err(failed)?;
        let probe = loaded.probe().ok_or_else(|| Self::unable("the object is not instrumented"))?;
        probe.set(&ProbeInput {
            clock_ns: env.now_ns,
            jiffies: ticks(env.now_ns, env.ticks_per_second),
            tunnel_key: skb.tunnel_key.as_ref().filter(|_| !env.faults.get_tunnel_key).map(tunnel_in),
            fail_map_update: env.faults.map_update,
            fail_set_tunnel_key: env.faults.set_tunnel_key,
            ..ProbeInput::default()
        });
        let mut context = SkbContext {
            mark: skb.mark,
            priority: skb.priority,
            ingress_ifindex: skb.ingress_ifindex,
            ifindex: skb.ifindex,
            cb: skb.cb,
        };
        let code = program.test_run(&mut skb.data, &mut context).map_err(failed)?;
        skb.mark = context.mark;
        skb.priority = context.priority;
        skb.cb = context.cb;
        let output = probe.output();
        let redirect = output.redirect.map(|call| match call.kind {
            RedirectKind::Device => Redirect::Device { ifindex: call.ifindex, flags: call.flags },
            RedirectKind::Peer => Redirect::Peer { ifindex: call.ifindex, flags: call.flags },
            RedirectKind::Neigh => Redirect::Neigh { ifindex: call.ifindex, next_hop: None, flags: call.flags },
        });
        Ok(Run { code, redirect, tunnel_key: output.tunnel_key.as_ref().map(tunnel_out), ..Run::default() })
    }

    fn maps(&self) -> &dyn MapStore {
        &self.store
    }

    fn maps_mut(&mut self) -> &mut dyn MapStore {
        &mut self.store
    }

    fn events(&mut self) -> Vec<Vec<u8>> {
        self.store.0.ring.borrow_mut().drain()
    }
}
