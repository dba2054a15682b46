//! The object in the kernel: maps and links pinned in one folder, programs on devices.
//!
//! The folder holds every map under its name and every link as `links/HOOK_IFINDEX`; programs that are attached by clsact
//! have no link, their filters are found on the devices. Programs have no names of their own: links or filters, and the
//! `calls` map, hold them. So traffic and policy go on while there is no agent, and a new agent takes over
//! maps as they are and replaces programs one by one, each atomically. Settings are constants of the programs: other
//! settings are other programs on the same maps.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use datapath_abi::config::SYMBOL;
use datapath_abi::{CallSlot, Config, Hook, MapId};
use datapath_kernel::{
    Clsact, KernelError, KernelMaps, LoadOptions, Loaded, Pins, RingReader, TcxLink, TcxPoint, probe_clsact, probe_tcx,
};
use rustix::mount::MountFlags;
use serde::Deserialize;
use zerocopy::IntoBytes as _;

/// `BPF_FS_MAGIC`
const BPF_FS: i64 = 0xcafe_4a11;
/// Where bpf file systems are by convention.
const STANDARD: &str = "/sys/fs/bpf";

/// The datapath cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The folder cannot be used.
    #[error("{step} {path}: {source}")]
    Folder {
        /// What was tried.
        step: &'static str,
        /// The folder.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The folder is not where it should be.
    #[error("{path} is not in a bpf file system: `mount -t bpf bpf DIRECTORY`, and name a folder in it in `bpffs`")]
    NotBpf {
        /// The folder.
        path: String,
    },
    /// A pinned map was made by another build or with other settings.
    #[error("{0}; `weir-agent --cleanup` removes it, with all flows")]
    Pinned(KernelError),
    /// Programs cannot be attached here.
    #[error("this kernel attaches programs neither by TCX (Linux 6.6): {tcx}; nor by clsact: {clsact}")]
    NoAttach {
        /// What the kernel says to the one.
        tcx: String,
        /// And to the other.
        clsact: String,
    },
    /// What the kernel says.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// How programs are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attach {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// Links (Linux 6.6).
    Tcx,
    /// Filters.
    Clsact,
}

/// A way that this kernel was seen to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Links.
    Tcx,
    /// Filters.
    Clsact,
}

impl Method {
    /// As settings have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

impl Attach {
    /// Tries, on a device of no importance, how programs can be attached here.
    ///
    /// # Errors
    /// [`DatapathError::NoAttach`], or why the way that was asked for is none.
    pub fn probe(self) -> Result<Method, DatapathError> {
        match self {
            Self::Tcx => probe_tcx().map(|()| Method::Tcx).map_err(DatapathError::Kernel),
            Self::Clsact => probe_clsact().map(|()| Method::Clsact).map_err(DatapathError::Kernel),
            Self::Auto => probe_tcx().map(|()| Method::Tcx).or_else(|tcx| match probe_clsact() {
                Ok(()) => Ok(Method::Clsact),
                Err(clsact) => Err(DatapathError::NoAttach { tcx: tcx.to_string(), clsact: clsact.to_string() }),
            }),
        }
    }
}

/// The folder of pins, and the programs on devices.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    method: Method,
}

/// Where a hook is on its device.
fn point(hook: Hook) -> TcxPoint {
    match hook {
        Hook::FromContainer | Hook::FromOverlay | Hook::FromNetdev => TcxPoint::Ingress,
        Hook::ToContainer | Hook::ToNetdev | Hook::FromHost => TcxPoint::Egress,
    }
}

impl Folder {
    /// The folder at this path, without looking whether it is there.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), method: Method::Tcx }
    }

    /// Makes the folder in a bpf file system, which is mounted if the path is in the standard place.
    ///
    /// # Errors
    /// [`DatapathError::Folder`], [`DatapathError::NotBpf`].
    pub fn make(path: &Path, method: Method) -> Result<Self, DatapathError> {
        let failed = |step, path: &Path, source: io::Error| DatapathError::Folder {
            step,
            path: path.display().to_string(),
            source,
        };
        if path.starts_with(STANDARD) && !is_bpf(Path::new(STANDARD)) {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
            rustix::mount::mount("bpf", STANDARD, "bpf", flags, None)
                .map_err(|errno| failed("mount a bpf file system at", Path::new(STANDARD), errno.into()))?;
        }
        let nearest = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        if !is_bpf(nearest) {
            return Err(DatapathError::NotBpf { path: path.display().to_string() });
        }
        let links = path.join("links");
        std::fs::create_dir_all(&links).map_err(|source| failed("make", &links, source))?;
        Ok(Self { path: path.to_owned(), method })
    }

    /// How programs are attached.
    pub const fn method(&self) -> Method {
        self.method
    }

    fn link(&self, hook: Hook, ifindex: u32) -> PathBuf {
        self.path.join("links").join(format!("{}_{ifindex}", hook.name()))
    }

    /// The links: hook, device, file.
    fn links(&self) -> Vec<(Hook, u32, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(self.path.join("links")) else {
            return Vec::new();
        };
        let parse = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            let (hook, ifindex) = name.rsplit_once('_')?;
            Some((Hook::from_name(hook)?, ifindex.parse().ok()?, path))
        };
        let mut links: Vec<_> = entries.flatten().filter_map(|entry| parse(entry.path())).collect();
        links.sort_by_key(|(hook, ifindex, _)| (*ifindex, *hook as u8));
        links
    }

    /// Filters of clsact that are programs of hooks.
    fn filters() -> Result<Vec<(Hook, u32)>, DatapathError> {
        let found = Clsact::open()?.filters()?;
        Ok(found.iter().filter_map(|filter| Some((Hook::from_name(&filter.name)?, filter.ifindex))).collect())
    }

    /// Programs on devices, sorted: number of the device and hook.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attached(&self) -> Result<Vec<(u32, Hook)>, DatapathError> {
        let alive = |path: &Path, ifindex: u32| {
            TcxLink::open_pinned(path).and_then(|link| link.state()).is_ok_and(|state| state.ifindex == ifindex)
        };
        let mut all: Vec<(u32, Hook)> = match self.method {
            Method::Tcx => {
                let links = self.links().into_iter();
                links.filter(|(_, ifindex, path)| alive(path, *ifindex)).map(|(hook, index, _)| (index, hook)).collect()
            }
            Method::Clsact => Self::filters()?.into_iter().map(|(hook, ifindex)| (ifindex, hook)).collect(),
        };
        all.sort_by_key(|(ifindex, hook)| (*ifindex, *hook as u8));
        Ok(all)
    }

    /// Takes programs off all devices but these, and those off these that are attached in another way: they were, before
    /// the way was changed.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn keep(&self, devices: &BTreeSet<u32>) -> Result<(), DatapathError> {
        for (hook, ifindex, path) in self.links() {
            let stays = self.method == Method::Tcx && devices.contains(&ifindex);
            if !stays && std::fs::remove_file(&path).is_ok() {
                tracing::debug!(hook = hook.name(), ifindex, "detached");
            }
        }
        for (hook, ifindex) in Self::filters()? {
            let stays = self.method == Method::Clsact && devices.contains(&ifindex);
            if !stays {
                Clsact::open()?.detach(ifindex, point(hook))?;
                tracing::debug!(hook = hook.name(), ifindex, "detached");
            }
        }
        Ok(())
    }

    /// Removes every pin and the folder: programs come off their devices, maps go.
    ///
    /// # Errors
    /// What cannot be removed.
    pub fn remove(&self) -> Result<(), DatapathError> {
        self.keep(&BTreeSet::new())?;
        let failed =
            |path: &Path, source| DatapathError::Folder { step: "remove", path: path.display().to_string(), source };
        for path in [self.path.join("links"), self.path.clone()] {
            let Ok(entries) = std::fs::read_dir(&path) else {
                continue;
            };
            for entry in entries.flatten() {
                std::fs::remove_file(entry.path()).map_err(|source| failed(&entry.path(), source))?;
            }
            std::fs::remove_dir(&path).map_err(|source| failed(&path, source))?;
        }
        Ok(())
    }
}

fn is_bpf(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == BPF_FS)
}

/// Maps and programs in the kernel.
#[derive(Debug)]
pub struct Datapath {
    loaded: Loaded,
    folder: Folder,
    config: Config,
}

impl Datapath {
    /// Loads the programs with these settings, on the pinned maps.
    ///
    /// # Errors
    /// See [`DatapathError`].
    pub fn load(folder: &Folder, config: Config, flows: u32) -> Result<Self, DatapathError> {
        let globals: [(&str, &[u8]); 1] = [(SYMBOL, config.as_bytes())];
        let options = LoadOptions { globals: &globals, ..LoadOptions::default() };
        let sizes = [(MapId::Ct4.name(), flows), (MapId::Ct6.name(), flows)];
        let pins = Pins { folder: &folder.path, sizes: &sizes };
        let loaded = Loaded::open_pinned(datapath_bytecode::OBJECT, &options, &pins).map_err(|error| {
            let pinned = matches!(error, KernelError::Pinned { .. });
            if pinned { DatapathError::Pinned(error) } else { DatapathError::Kernel(error) }
        })?;
        for (slot, program) in CallSlot::ALL {
            loaded.set_call(MapId::Calls.name(), *slot as u32, program)?;
        }
        Ok(Self { loaded, folder: folder.clone(), config })
    }

    /// The settings of its programs.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Puts the program of a hook on a device, in place of an earlier one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(&self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        let program = self.loaded.program(hook.name())?;
        match self.folder.method {
            Method::Tcx => {
                TcxLink::ensure(program, ifindex, point(hook), &self.folder.link(hook, ifindex))?;
            }
            Method::Clsact => Clsact::open()?.attach(program, hook.name(), ifindex, point(hook))?,
        }
        Ok(())
    }

    /// The maps.
    pub fn maps(&self) -> &KernelMaps {
        self.loaded.maps()
    }

    /// The maps.
    pub fn maps_mut(&mut self) -> &mut KernelMaps {
        self.loaded.maps_mut()
    }

    /// The reader of events. Only one may exist.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn events(&self) -> Result<RingReader, DatapathError> {
        Ok(self.loaded.ring(MapId::Events.name())?)
    }
}
