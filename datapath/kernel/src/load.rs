//! An object in the kernel: its maps created, its programs verified.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use datapath_maps::{MapKind, MapSpec, UpdateMode, map_flags};

use crate::error::KernelError;
use crate::insn::Insn;
use crate::instrument::instrument;
use crate::link::{LinkedProgram, MapDefinition, ObjectFile};
use crate::map::KernelMap;
use crate::probe::Probe;
use crate::program::{BtfInfo, Program, ProgramKind, ProgramSource, VerifierStats, load_btf};
use crate::ring::RingReader;
use crate::store::KernelMaps;
use crate::sys;

/// How to load.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions<'a> {
    /// Most entries of hashes and tries, for tests.
    pub max_entries: Option<u32>,
    /// Load the instrumented copy (see [`Probe`]) instead of the programs as they are.
    pub instrument: bool,
    /// Globals of `.rodata` to set, by name.
    pub globals: &'a [(&'a str, &'a [u8])],
    /// Only these programs; `None`: all.
    pub only: Option<&'a [&'a str]>,
}

/// Maps that outlive the process.
#[derive(Clone, Copy, Debug)]
pub struct Pins<'a> {
    /// Folder of a bpf file system; every map but the settings is there under its name.
    pub folder: &'a Path,
    /// Entries of maps that differ from the object's, by name.
    pub sizes: &'a [(&'a str, u32)],
}

impl Pins<'_> {
    /// The pinned map, or a new one, pinned.
    fn open_or_create(&self, mut spec: MapSpec) -> Result<KernelMap, KernelError> {
        if let Some((_, size)) = self.sizes.iter().find(|(name, _)| *name == spec.name) {
            spec.max_entries = *size;
        }
        let path = self.folder.join(&spec.name);
        match KernelMap::open_pinned(spec.clone(), &path) {
            Err(error) if error.errno() == Some(sys::ENOENT) => {
                let map = KernelMap::create(spec)?;
                map.pin(&path)?;
                Ok(map)
            }
            other => other,
        }
    }
}

/// An object in the kernel. Dropping it frees maps and programs that nothing else refers to.
#[derive(Debug)]
pub struct Loaded {
    maps: KernelMaps,
    programs: BTreeMap<String, Program>,
    probe: Option<Probe>,
    has_btf: bool,
}

/// Name of a program, and what the verifier said about it.
pub type Verified = (String, Result<VerifierStats, KernelError>);

/// What an object becomes before its programs are loaded.
struct Parts {
    maps: KernelMaps,
    linked: Vec<LinkedProgram>,
    license: CString,
    btf: Option<OwnedFd>,
}

impl Parts {
    fn make(bytes: &[u8], options: &LoadOptions<'_>, pins: Option<&Pins<'_>>) -> Result<Self, KernelError> {
        let object = ObjectFile::parse(bytes, options.globals)?;
        let mut maps = KernelMaps::default();
        for MapDefinition { mut spec, data } in object.maps()? {
            cap(&mut spec, options.max_entries);
            let read_only = spec.flags & map_flags::RDONLY_PROG != 0;
            let map = match pins {
                // Initial values belong to the programs that are loaded now.
                Some(pins) if data.is_none() => pins.open_or_create(spec)?,
                Some(_) | None => KernelMap::create(spec)?,
            };
            if let Some(data) = data {
                map.set(&0u32.to_ne_bytes(), &data, UpdateMode::Any)?;
                if read_only {
                    map.freeze()?;
                }
            }
            maps.add(map)?;
        }
        let mut linked = object.link(&maps)?;
        if let Some(only) = options.only {
            linked.retain(|program| only.contains(&program.name.as_str()));
        }
        Ok(Self {
            linked,
            license: object.license(),
            // The copy's appended subprograms have no types, and the kernel wants all or none.
            btf: if options.instrument { None } else { btf(&object)? },
            maps,
        })
    }
}

fn load_one(
    linked: &LinkedProgram,
    license: &CStr,
    btf: Option<&OwnedFd>,
    probe: Option<RawFd>,
) -> Result<Program, KernelError> {
    let copy = probe.map(|probe| instrument(&linked.insns, probe));
    Program::load(&ProgramSource {
        name: &linked.name,
        kind: ProgramKind::Classifier,
        insns: copy.as_deref().unwrap_or(&linked.insns),
        license,
        btf: btf.map(|btf| BtfInfo {
            btf: btf.as_fd(),
            func_info: (&linked.func_info.0, linked.func_info.1),
            line_info: (&linked.line_info.0, linked.line_info.1),
        }),
    })
}

fn descriptor(probe: &Probe) -> RawFd {
    probe.map().as_fd().as_raw_fd()
}

/// Processors that load programs at once: the two longest of them take most of the time.
const LOADERS: usize = 4;

/// Loads programs on several processors: nearly all the time is the verifier's, which takes no lock for a privileged
/// caller. The longest programs come first. The error is that of the first program that has one.
fn load_all(
    linked: &[LinkedProgram],
    license: &CStr,
    btf: Option<&OwnedFd>,
    probe: Option<RawFd>,
) -> Result<Vec<Program>, KernelError> {
    let mut order: Vec<&LinkedProgram> = linked.iter().collect();
    order.sort_by_key(|program| std::cmp::Reverse(program.insns.len()));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((at, program)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            order.get(at).map(|program| (at, *program))
        } {
            done.push((at, load_one(program, license, btf, probe)));
        }
        done
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(LOADERS).min(order.len());
    let mut all = std::thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            let lost = |_| KernelError::System { step: "thread that loads programs", errno: sys::EINVAL };
            all.extend(other.join().map_err(lost)?);
        }
        Ok::<_, KernelError>(all)
    })?;
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, loaded)| loaded).collect()
}

impl Loaded {
    /// Creates the maps and loads every program as a classifier.
    ///
    /// # Errors
    /// Anything from reading the file to the verifier's refusal of one program.
    pub fn open(bytes: &[u8], options: &LoadOptions<'_>) -> Result<Self, KernelError> {
        let parts = Parts::make(bytes, options, None)?;
        Self::load(parts.maps, &parts.linked, &parts.license, parts.btf, options.instrument)
    }

    /// As [`Self::open`], on maps that are pinned in a folder: those that are there are used as they are, so that flows
    /// and policy outlive the process; others are created and pinned.
    ///
    /// # Errors
    /// As [`Self::open`]; [`KernelError::Pinned`] for a pinned map that is not what the object needs.
    pub fn open_pinned(bytes: &[u8], options: &LoadOptions<'_>, pins: &Pins<'_>) -> Result<Self, KernelError> {
        let parts = Parts::make(bytes, options, Some(pins))?;
        Self::load(parts.maps, &parts.linked, &parts.license, parts.btf, options.instrument)
    }

    /// Loads every program and drops it again: what the verifier says about each, sorted by name.
    ///
    /// # Errors
    /// Anything before the first program is loaded.
    pub fn verify(bytes: &[u8], options: &LoadOptions<'_>) -> Result<Vec<Verified>, KernelError> {
        let parts = Parts::make(bytes, options, None)?;
        let probe = options.instrument.then(Probe::create).transpose()?;
        Ok(parts
            .linked
            .iter()
            .map(|linked| {
                let loaded = load_one(linked, &parts.license, parts.btf.as_ref(), probe.as_ref().map(descriptor));
                (linked.name.clone(), loaded.map(|program| program.stats().clone()))
            })
            .collect())
    }

    /// Loads programs made in memory, which already refer to these maps by descriptor.
    ///
    /// # Errors
    /// The verifier's refusal of one of them.
    pub fn assemble(
        maps: KernelMaps,
        programs: &[(&str, &[Insn])],
        license: &CStr,
        instrument: bool,
    ) -> Result<Self, KernelError> {
        let linked: Vec<LinkedProgram> = programs
            .iter()
            .map(|(name, insns)| LinkedProgram {
                name: (*name).to_owned(),
                insns: insns.to_vec(),
                func_info: (Vec::new(), 0),
                line_info: (Vec::new(), 0),
            })
            .collect();
        Self::load(maps, &linked, license, None, instrument)
    }

    fn load(
        maps: KernelMaps,
        linked: &[LinkedProgram],
        license: &CStr,
        btf: Option<OwnedFd>,
        instrumented: bool,
    ) -> Result<Self, KernelError> {
        let probe = instrumented.then(Probe::create).transpose()?;
        let programs = load_all(linked, license, btf.as_ref(), probe.as_ref().map(descriptor))?;
        let programs = programs.into_iter().map(|program| (program.name().to_owned(), program)).collect();
        Ok(Self { maps, programs, probe, has_btf: btf.is_some() })
    }

    /// Its maps.
    #[must_use]
    pub fn maps(&self) -> &KernelMaps {
        &self.maps
    }

    /// Its maps.
    #[must_use]
    pub fn maps_mut(&mut self) -> &mut KernelMaps {
        &mut self.maps
    }

    /// A program by name.
    ///
    /// # Errors
    /// [`KernelError::NoProgram`].
    pub fn program(&self, name: &str) -> Result<&Program, KernelError> {
        self.programs.get(name).ok_or_else(|| KernelError::NoProgram { program: name.to_owned() })
    }

    /// Its programs, sorted by name.
    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        self.programs.values()
    }

    /// The probe of an instrumented copy.
    #[must_use]
    pub fn probe(&self) -> Option<&Probe> {
        self.probe.as_ref()
    }

    /// Whether the programs have function and line information in the kernel.
    #[must_use]
    pub fn has_btf(&self) -> bool {
        self.has_btf
    }

    /// Puts a program into a slot of a program array.
    ///
    /// # Errors
    /// [`KernelError::NoMap`], [`KernelError::NoProgram`], or what the kernel says.
    pub fn set_call(&self, map: &str, slot: u32, program: &str) -> Result<(), KernelError> {
        let array = self.array(map)?;
        let fd = self.program(program)?.as_fd().as_raw_fd();
        array.set(&slot.to_ne_bytes(), &fd.to_ne_bytes(), UpdateMode::Any)
    }

    /// A reader of a ring buffer. Only one may exist per map.
    ///
    /// # Errors
    /// [`KernelError::NoMap`], or as [`RingReader::new`].
    pub fn ring(&self, map: &str) -> Result<RingReader, KernelError> {
        RingReader::new(self.array(map)?)
    }

    fn array(&self, map: &str) -> Result<&KernelMap, KernelError> {
        self.maps.get(map).ok_or_else(|| KernelError::NoMap { map: map.to_owned() })
    }
}

fn cap(spec: &mut MapSpec, most: Option<u32>) {
    let limited = matches!(spec.kind, MapKind::Hash | MapKind::LruHash | MapKind::PerCpuHash | MapKind::LpmTrie);
    if let (Some(most), true) = (most, limited) {
        spec.max_entries = spec.max_entries.min(most);
    }
}

/// The object's BTF in the kernel. A kernel that refuses even the plainest form gets none: programs run without.
fn btf(object: &ObjectFile) -> Result<Option<OwnedFd>, KernelError> {
    for modern in [true, false] {
        let Some(bytes) = object.btf(modern)? else {
            return Ok(None);
        };
        match load_btf(&bytes) {
            Ok(fd) => return Ok(Some(fd)),
            Err(sys::EINVAL) => {}
            Err(errno) => {
                return Err(KernelError::System { step: "load BTF", errno });
            }
        }
    }
    Ok(None)
}
