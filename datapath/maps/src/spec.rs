//! What a map is: kind, sizes, flags. Numbers are those of `include/uapi/linux/bpf.h`.

use datapath_abi::maps::{Kind, MapId};

use crate::store::MapError;

/// `BPF_F_*` bits of a map's creation flags that the datapath uses.
pub mod map_flags {
    /// `BPF_F_NO_PREALLOC`: elements are allocated on update; obligatory for LPM tries.
    pub const NO_PREALLOC: u32 = 1;
    /// `BPF_F_NO_COMMON_LRU`: one LRU list per CPU.
    pub const NO_COMMON_LRU: u32 = 1 << 1;
    /// `BPF_F_RDONLY_PROG`: programs may only read.
    pub const RDONLY_PROG: u32 = 1 << 7;
    /// `BPF_F_WRONLY_PROG`: programs may only write.
    pub const WRONLY_PROG: u32 = 1 << 8;
    /// `BPF_F_MMAPABLE`: the value area of an array can be mapped.
    pub const MMAPABLE: u32 = 1 << 10;
}

/// The kinds of map the datapath uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`
    Hash,
    /// `BPF_MAP_TYPE_LRU_HASH`
    LruHash,
    /// `BPF_MAP_TYPE_LPM_TRIE`; key: prefix length in bits (u32, host order), then data in network order.
    LpmTrie,
    /// `BPF_MAP_TYPE_ARRAY`; key: index (u32, host order).
    Array,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`
    PerCpuArray,
    /// `BPF_MAP_TYPE_PERCPU_HASH`
    PerCpuHash,
    /// `BPF_MAP_TYPE_PROG_ARRAY`: targets of tail calls.
    ProgArray,
    /// `BPF_MAP_TYPE_RINGBUF`; `max_entries` is its size in bytes.
    RingBuf,
}

impl MapKind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Hash,
        Self::LruHash,
        Self::LpmTrie,
        Self::Array,
        Self::PerCpuArray,
        Self::PerCpuHash,
        Self::ProgArray,
        Self::RingBuf,
    ];

    /// The kernel's `BPF_MAP_TYPE_` number.
    #[must_use]
    pub const fn bpf(self) -> u32 {
        match self {
            Self::Hash => 1,
            Self::Array => 2,
            Self::ProgArray => 3,
            Self::PerCpuHash => 5,
            Self::PerCpuArray => 6,
            Self::LruHash => 9,
            Self::LpmTrie => 11,
            Self::RingBuf => 27,
        }
    }

    /// From the kernel's `BPF_MAP_TYPE_` number.
    #[must_use]
    pub fn from_bpf(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.bpf() == number)
    }

    /// Whether every CPU has its own value.
    #[must_use]
    pub const fn is_per_cpu(self) -> bool {
        match self {
            Self::PerCpuArray | Self::PerCpuHash => true,
            Self::Hash | Self::LruHash | Self::LpmTrie | Self::Array | Self::ProgArray | Self::RingBuf => false,
        }
    }

    /// Whether keys are the indices 0 … `max_entries` - 1 and every value always exists.
    #[must_use]
    pub const fn is_array(self) -> bool {
        match self {
            Self::Array | Self::PerCpuArray => true,
            Self::Hash | Self::LruHash | Self::LpmTrie | Self::PerCpuHash | Self::ProgArray | Self::RingBuf => false,
        }
    }

    /// Lower-case name, as `bpftool map` prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::LruHash => "lru_hash",
            Self::LpmTrie => "lpm_trie",
            Self::Array => "array",
            Self::PerCpuArray => "percpu_array",
            Self::PerCpuHash => "percpu_hash",
            Self::ProgArray => "prog_array",
            Self::RingBuf => "ringbuf",
        }
    }
}

/// One map's definition, as in the object's map section. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MapSpec {
    /// Name, at most 15 characters in the kernel.
    pub name: String,
    /// Kind.
    pub kind: MapKind,
    /// Bytes of a key; 4 for arrays, 0 for ring buffers.
    pub key_size: u32,
    /// Bytes of a value (of one CPU's value in per-CPU maps); 0 for ring buffers.
    pub value_size: u32,
    /// Most entries; bytes for a ring buffer.
    pub max_entries: u32,
    /// Creation flags, [`map_flags`].
    pub flags: u32,
}

impl MapSpec {
    /// The definition in the catalogue of maps.
    #[must_use]
    pub fn of(map: MapId) -> Self {
        // Every size in the catalogue is that of a small struct.
        let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self {
            name: map.name().to_owned(),
            kind: match map.kind() {
                Kind::Hash => MapKind::Hash,
                Kind::ProgArray => MapKind::ProgArray,
                Kind::PerCpuArray => MapKind::PerCpuArray,
                Kind::LruHash => MapKind::LruHash,
                Kind::LpmTrie => MapKind::LpmTrie,
                Kind::RingBuf => MapKind::RingBuf,
            },
            key_size: size(map.key_size()),
            value_size: size(map.value_size()),
            max_entries: map.max_entries(),
            flags: map.flags(),
        }
    }

    /// Checks what the kernel checks at `BPF_MAP_CREATE`.
    ///
    /// # Errors
    /// [`MapError::Spec`] with the rule that is broken.
    pub fn check(&self) -> Result<(), MapError> {
        let refuse = |rule: &'static str| Err(MapError::Spec { map: self.name.clone(), rule });
        if self.max_entries == 0 {
            return refuse("max_entries must not be 0");
        }
        if self.max_entries > 1 << 30 {
            return refuse("max_entries must not be above 2^30");
        }
        match self.kind {
            MapKind::Hash | MapKind::LruHash | MapKind::PerCpuHash => {
                if self.key_size == 0 || self.value_size == 0 {
                    return refuse("a hash needs a key and a value");
                }
                if self.kind == MapKind::LruHash && self.flags & map_flags::NO_PREALLOC != 0 {
                    return refuse("an LRU hash is always preallocated");
                }
            }
            MapKind::LpmTrie => {
                if !(5..=4 + 256).contains(&self.key_size) {
                    return refuse("an LPM key is a u32 prefix length and 1 to 256 bytes of data");
                }
                if self.value_size == 0 {
                    return refuse("an LPM trie needs a value");
                }
                if self.flags & map_flags::NO_PREALLOC == 0 {
                    return refuse("an LPM trie needs BPF_F_NO_PREALLOC");
                }
            }
            MapKind::Array | MapKind::PerCpuArray => {
                if self.key_size != 4 || self.value_size == 0 {
                    return refuse("an array needs a 4-byte key and a value");
                }
            }
            MapKind::ProgArray => {
                if self.key_size != 4 || self.value_size != 4 {
                    return refuse("a program array needs 4-byte keys and values");
                }
            }
            MapKind::RingBuf => {
                if self.key_size != 0 || self.value_size != 0 {
                    return refuse("a ring buffer has neither key nor value");
                }
                if !self.max_entries.is_power_of_two() || !self.max_entries.is_multiple_of(4096) {
                    return refuse("a ring buffer's size is a power of two and whole pages");
                }
            }
        }
        Ok(())
    }

    /// Bytes of a value as bpf(2) moves it: per-CPU maps have one per CPU, each rounded up to 8.
    #[must_use]
    pub fn user_value_size(&self, cpus: u32) -> usize {
        if self.kind.is_per_cpu() {
            (self.value_size as usize).next_multiple_of(8) * cpus as usize
        } else {
            self.value_size as usize
        }
    }
}

/// The flags argument of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UpdateMode {
    /// `BPF_ANY`: create or replace.
    #[default]
    Any = 0,
    /// `BPF_NOEXIST`: only create.
    NoExist = 1,
    /// `BPF_EXIST`: only replace.
    Exist = 2,
}

impl UpdateMode {
    /// From the helper's or syscall's flags; `None` is EINVAL.
    #[must_use]
    pub const fn from_bpf(flags: u64) -> Option<Self> {
        match flags {
            0 => Some(Self::Any),
            1 => Some(Self::NoExist),
            2 => Some(Self::Exist),
            _ => None,
        }
    }

    /// The flags value.
    #[must_use]
    pub const fn bpf(self) -> u64 {
        self as u64
    }
}
