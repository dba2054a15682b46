//! One kernel map through bpf(2).
//!
//! Invariant: every buffer handed to the kernel has the length the map's definition asks for: keys `key_size`, values
//! `value_size`, per-CPU values `possible CPUs × value_size rounded up to 8`.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use datapath_maps::{Entry, MapKind, MapSpec, UpdateMode};

use crate::attr::{self, Command};
use crate::error::KernelError;
use crate::sys::{self, SysResult};

/// `ENOTSUPP`, which the kernel lets out although it is not an errno of user space.
const ENOTSUPP: i32 = 524;

/// Entries fetched with one batch call.
const BATCH: u32 = 4096;

/// A name as the kernel takes it: 15 characters, only letters, digits, `_` and `.`.
pub(crate) fn kernel_name(name: &str) -> [u8; 16] {
    let mut out = [0; 16];
    for (to, byte) in out.iter_mut().take(15).zip(name.bytes()) {
        let usable = byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
        *to = if usable { byte } else { b'_' };
    }
    out
}

/// CPUs the kernel makes room for in per-CPU maps (not only those that are running).
///
/// # Errors
/// [`KernelError::System`] when `/sys/devices/system/cpu/possible` cannot be read.
pub fn possible_cpus() -> Result<u32, KernelError> {
    let unreadable = |errno| KernelError::System { step: "read /sys/devices/system/cpu/possible", errno };
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")
        .map_err(|error| unreadable(error.raw_os_error().unwrap_or(sys::EINVAL)))?;
    count_cpus(&text).ok_or_else(|| unreadable(sys::EINVAL))
}

/// `0-3,8-9` → 6: holes have no values, as in the kernel's `num_possible_cpus`.
fn count_cpus(list: &str) -> Option<u32> {
    let mut count = 0;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

/// One map in the kernel.
#[derive(Debug)]
pub struct KernelMap {
    spec: MapSpec,
    fd: OwnedFd,
    cpus: u32,
}

impl KernelMap {
    /// Creates it.
    ///
    /// # Errors
    /// A definition no kernel accepts, or what this kernel says.
    pub fn create(spec: MapSpec) -> Result<Self, KernelError> {
        if !sys::SUPPORTED {
            return Err(KernelError::Unsupported { what: "creating a map" });
        }
        spec.check()?;
        Self::create_unchecked(spec)
    }

    /// As [`Self::create`], leaving it to the kernel to refuse.
    ///
    /// # Errors
    /// What this kernel says.
    pub fn create_unchecked(spec: MapSpec) -> Result<Self, KernelError> {
        let cpus = if spec.kind.is_per_cpu() { possible_cpus()? } else { 1 };
        let mut args = attr::MapCreate {
            kind: spec.kind.bpf(),
            key_size: spec.key_size,
            value_size: spec.value_size,
            max_entries: spec.max_entries,
            flags: spec.flags,
            name: kernel_name(&spec.name),
            ..Default::default()
        };
        // SAFETY: the attributes hold no addresses.
        let fd = unsafe { sys::bpf_fd(Command::MapCreate, &mut args) }.map_err(|errno| KernelError::Map {
            map: spec.name.clone(),
            step: "create",
            errno,
        })?;
        Ok(Self { spec, fd, cpus })
    }

    /// Its definition.
    #[must_use]
    pub fn spec(&self) -> &MapSpec {
        &self.spec
    }

    /// CPUs with a value of their own: 1 unless the kind is per-CPU.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    fn error(&self, step: &'static str, errno: i32) -> KernelError {
        KernelError::Map { map: self.spec.name.clone(), step, errno }
    }

    fn value_size(&self) -> usize {
        self.spec.user_value_size(self.cpus)
    }

    fn check(&self, part: &'static str, given: usize, wanted: usize) -> Result<(), KernelError> {
        if given == wanted {
            return Ok(());
        }
        Err(KernelError::Size { map: self.spec.name.clone(), part, given, wanted })
    }

    fn check_key(&self, key: &[u8]) -> Result<(), KernelError> {
        self.check("key", key.len(), self.spec.key_size as usize)
    }

    /// Attributes of a call on one element.
    fn element(&self, key: &[u8]) -> attr::Element {
        attr::Element { map: attr::number(self.fd.as_fd()), key: attr::address(key), ..Default::default() }
    }

    /// The value under a key; per-CPU kinds: all CPUs' values, each rounded up to 8.
    ///
    /// # Errors
    /// What the kernel says, other than ENOENT.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KernelError> {
        self.check_key(key)?;
        let mut value = vec![0; self.value_size()];
        let mut args = self.element(key);
        args.value_or_next = attr::address_mut(&mut value);
        // SAFETY: the kernel reads `key_size` bytes of the key (checked) and writes `value_size` bytes per CPU, which
        // is the buffer's length.
        match unsafe { sys::bpf(Command::MapLookup, &mut args) } {
            Ok(_) => Ok(Some(value)),
            Err(sys::ENOENT) => Ok(None),
            Err(errno) => Err(self.error("lookup", errno)),
        }
    }

    /// Writes a value. Program arrays take a program's descriptor: [`crate::Loaded::set_call`].
    ///
    /// # Errors
    /// What the kernel says: E2BIG, ENOSPC (full), EEXIST, ENOENT (by `mode`), EINVAL.
    pub fn set(&self, key: &[u8], value: &[u8], mode: UpdateMode) -> Result<(), KernelError> {
        self.check_key(key)?;
        self.check("value", value.len(), self.value_size())?;
        let mut args = self.element(key);
        args.value_or_next = attr::address(value);
        args.flags = mode.bpf();
        // SAFETY: the kernel reads `key_size` and `value_size` (per CPU) bytes; both lengths are checked.
        unsafe { sys::bpf(Command::MapUpdate, &mut args) }.map(|_| ()).map_err(|errno| self.error("update", errno))
    }

    /// Deletes an entry.
    ///
    /// # Errors
    /// What the kernel says: ENOENT, EINVAL (arrays, prefix length).
    pub fn remove(&self, key: &[u8]) -> Result<(), KernelError> {
        self.check_key(key)?;
        let mut args = self.element(key);
        // SAFETY: the kernel reads `key_size` bytes of the key (checked).
        unsafe { sys::bpf(Command::MapDelete, &mut args) }.map(|_| ()).map_err(|errno| self.error("delete", errno))
    }

    /// The key after this one in the map's own order; the first for `None`.
    fn next_key(&self, key: Option<&[u8]>) -> Result<Option<Vec<u8>>, KernelError> {
        let mut next = vec![0; self.spec.key_size as usize];
        let mut args = attr::Element {
            map: attr::number(self.fd.as_fd()),
            key: key.map_or(0, attr::address),
            value_or_next: attr::address_mut(&mut next),
            ..Default::default()
        };
        // SAFETY: the kernel reads `key_size` bytes of a key it has given us, and writes as many to `next`.
        match unsafe { sys::bpf(Command::MapNextKey, &mut args) } {
            Ok(_) => Ok(Some(next)),
            Err(sys::ENOENT) => Ok(None),
            Err(errno) => Err(self.error("next key", errno)),
        }
    }

    /// All entries, sorted by key bytes (array kinds: by index, all of them; ring buffers: none).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn entries(&self) -> Result<Vec<Entry>, KernelError> {
        let mut entries = match self.spec.kind {
            MapKind::RingBuf => Vec::new(),
            // The generic batch walks a trie's keys, and program arrays have none.
            MapKind::ProgArray => self.walk()?,
            MapKind::Hash
            | MapKind::LruHash
            | MapKind::PerCpuHash
            | MapKind::LpmTrie
            | MapKind::Array
            | MapKind::PerCpuArray => match self.collect() {
                Ok(entries) => entries,
                Err(ENOTSUPP | sys::EOPNOTSUPP | sys::EINVAL) => self.walk()?,
                Err(errno) => return Err(self.error("lookup batch", errno)),
            },
        };
        if self.spec.kind.is_array() || self.spec.kind == MapKind::ProgArray {
            entries.sort_by_key(|(key, _)| key.first_chunk::<4>().map_or(0, |key| u32::from_ne_bytes(*key)));
        } else {
            entries.sort_unstable();
        }
        Ok(entries)
    }

    /// Key by key: works on every kernel.
    fn walk(&self) -> Result<Vec<Entry>, KernelError> {
        let mut entries = Vec::new();
        let mut at = self.next_key(None)?;
        while let Some(key) = at {
            at = self.next_key(Some(&key))?;
            if let Some(value) = self.get(&key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }

    fn collect(&self) -> SysResult<Vec<Entry>> {
        let mut entries = Vec::new();
        self.batch(&mut |key, value| entries.push((key.to_vec(), value.to_vec())))?;
        Ok(entries)
    }

    /// Deletes the entries of a hash that `keep` refuses, a few thousand at a time, so that a full map costs no memory.
    /// Returns how many there were and how many went. Entries that come or change meanwhile may or may not be asked for.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn retain(&self, keep: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(usize, usize), KernelError> {
        let (mut all, mut gone, mut failed) = (0, 0, None);
        // What a batch has handed out can be deleted before the next: the kernel goes on at the next bucket.
        let walked = self.batch(&mut |key, value| {
            all += 1;
            if !keep(key, value) {
                match self.remove(key) {
                    Ok(()) => gone += 1,
                    Err(error) if error.errno() == Some(sys::ENOENT) => {}
                    Err(error) => failed = Some(error),
                }
            }
        });
        walked.map_err(|errno| self.error("lookup batch", errno))?;
        if let Some(error) = failed {
            return Err(error);
        }
        Ok((all, gone))
    }

    fn batch(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> SysResult<()> {
        let (key_size, value_size) = (self.spec.key_size as usize, self.value_size());
        let mut room = BATCH.min(self.spec.max_entries.max(64));
        // Where the kernel goes on: a bucket number or a key, whichever is larger.
        let mut token = vec![0u8; key_size.max(8)];
        let mut next = vec![0u8; key_size.max(8)];
        let mut begun = false;
        loop {
            let mut keys = vec![0u8; key_size * room as usize];
            let mut values = vec![0u8; value_size * room as usize];
            let mut args = attr::Batch {
                in_batch: if begun { attr::address(&token) } else { 0 },
                out_batch: attr::address_mut(&mut next),
                keys: attr::address_mut(&mut keys),
                values: attr::address_mut(&mut values),
                count: room,
                map: attr::number(self.fd.as_fd()),
                ..Default::default()
            };
            // SAFETY: room for `count` keys and values as the map defines them; the tokens hold a key or 8 bytes.
            let result = unsafe { sys::bpf(Command::MapLookupBatch, &mut args) };
            let more = match result {
                Ok(_) => true,
                Err(sys::ENOENT) => false,
                // One bucket holds more than there is room for: nothing was written.
                Err(sys::ENOSPC) if room < self.spec.max_entries => {
                    room = room.saturating_mul(2).min(self.spec.max_entries);
                    continue;
                }
                Err(errno) => return Err(errno),
            };
            let found = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)).take(args.count as usize);
            found.for_each(|(key, value)| each(key, value));
            if !more {
                return Ok(());
            }
            std::mem::swap(&mut token, &mut next);
            begun = true;
        }
    }

    /// Writes many entries (create or replace) with as few calls as the kernel allows. Not atomic: entries before the
    /// first that fails are written.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn set_many(&self, entries: &[Entry]) -> Result<(), KernelError> {
        for chunk in entries.chunks(BATCH as usize) {
            let mut keys = Vec::with_capacity(chunk.len() * self.spec.key_size as usize);
            let mut values = Vec::with_capacity(chunk.len() * self.value_size());
            for (key, value) in chunk {
                self.check_key(key)?;
                self.check("value", value.len(), self.value_size())?;
                keys.extend_from_slice(key);
                values.extend_from_slice(value);
            }
            let mut args = attr::Batch {
                keys: attr::address(&keys),
                values: attr::address(&values),
                count: u32::try_from(chunk.len()).unwrap_or(BATCH),
                map: attr::number(self.fd.as_fd()),
                ..Default::default()
            };
            // SAFETY: the kernel reads `count` keys and values; every one's length is checked.
            match unsafe { sys::bpf(Command::MapUpdateBatch, &mut args) } {
                Ok(_) => {}
                Err(ENOTSUPP | sys::EOPNOTSUPP | sys::EINVAL) => {
                    for (key, value) in chunk {
                        self.set(key, value, UpdateMode::Any)?;
                    }
                }
                Err(errno) => return Err(self.error("update batch", errno)),
            }
        }
        Ok(())
    }

    /// User space can no longer write it; the verifier then takes a read-only map's values as constants.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn freeze(&self) -> Result<(), KernelError> {
        let mut args = attr::FreezeMap { map: attr::number(self.fd.as_fd()) };
        // SAFETY: the attributes hold no addresses.
        unsafe { sys::bpf(Command::MapFreeze, &mut args) }.map(|_| ()).map_err(|errno| self.error("freeze", errno))
    }

    /// Opens a pinned map and checks that it is what this build expects.
    ///
    /// # Errors
    /// What the kernel says; [`KernelError::Pinned`] for another layout.
    pub fn open_pinned(spec: MapSpec, path: &Path) -> Result<Self, KernelError> {
        let failed = |step, errno| KernelError::Map { map: spec.name.clone(), step, errno };
        let fd = open_pinned(path).map_err(|errno| failed("open pinned", errno))?;
        let mut info = [attr::MapInfo::default()];
        let mut args = attr::ObjectInfo {
            fd: attr::number(fd.as_fd()),
            len: u32::try_from(size_of::<attr::MapInfo>()).unwrap_or(0),
            info: attr::address_mut(&mut info),
        };
        // SAFETY: the kernel writes at most `len` bytes, the size of the struct at that address.
        unsafe { sys::bpf(Command::ObjectInfo, &mut args) }.map_err(|errno| failed("info", errno))?;
        let [info] = info;
        for (field, found, expected) in [
            ("kind", info.kind, spec.kind.bpf()),
            ("key size", info.key_size, spec.key_size),
            ("value size", info.value_size, spec.value_size),
            ("max_entries", info.max_entries, spec.max_entries),
            ("flags", info.flags, spec.flags),
        ] {
            if found != expected {
                return Err(KernelError::Pinned { map: spec.name, field, found, expected });
            }
        }
        let cpus = if spec.kind.is_per_cpu() { possible_cpus()? } else { 1 };
        Ok(Self { spec, fd, cpus })
    }

    /// Gives it a name in a bpf file system, where it outlives this process.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pin(&self, path: &Path) -> Result<(), KernelError> {
        pin(self.fd.as_fd(), path).map_err(|errno| self.error("pin", errno))
    }
}

impl AsFd for KernelMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `BPF_OBJ_PIN`.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> SysResult<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| sys::EINVAL)?;
    let mut args = attr::PinObject { path: attr::address(path.as_bytes_with_nul()), fd: attr::number(fd), flags: 0 };
    // SAFETY: the path is a live string that ends with a zero byte.
    unsafe { sys::bpf(Command::ObjectPin, &mut args) }.map(|_| ())
}

/// `BPF_OBJ_GET`.
pub(crate) fn open_pinned(path: &Path) -> SysResult<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| sys::EINVAL)?;
    let mut args = attr::PinObject { path: attr::address(path.as_bytes_with_nul()), ..Default::default() };
    // SAFETY: the path is a live string that ends with a zero byte.
    unsafe { sys::bpf_fd(Command::ObjectGet, &mut args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("0-1\n"), Some(2));
        assert_eq!(count_cpus("0-3,8-9"), Some(6));
        assert_eq!(count_cpus(""), None);
        assert_eq!(count_cpus("3-1"), None);
    }

    #[test]
    fn names_are_cut_and_cleaned() {
        assert_eq!(&kernel_name("ct4")[..4], b"ct4\0");
        assert_eq!(&kernel_name("a-very-long-name-indeed"), b"a_very_long_nam\0");
    }
}
