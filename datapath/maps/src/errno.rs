//! Error numbers of bpf(2) and of the helpers, as a closed set.
//!
//! Source: `include/uapi/asm-generic/errno-base.h`, `errno.h`, and 524 from `include/linux/errno.h`.

/// An error number a map operation can answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i32)]
pub enum Errno {
    /// EPERM: not allowed.
    Perm = 1,
    /// ENOENT: the key is not there.
    Noent = 2,
    /// E2BIG: a hash is full, or an array index is beyond the end.
    E2big = 7,
    /// EAGAIN: try again.
    Again = 11,
    /// ENOMEM: no memory.
    Nomem = 12,
    /// EFAULT: bad address.
    Fault = 14,
    /// EBUSY: the bucket's lock is taken.
    Busy = 16,
    /// EEXIST: the key is there already.
    Exist = 17,
    /// EINVAL: an argument is wrong.
    Inval = 22,
    /// ENOSPC: an LPM trie is full.
    Nospc = 28,
    /// EOPNOTSUPP: the kind of map has no such operation.
    Opnotsupp = 95,
    /// ENOTSUPP: kernel-internal "not supported", seen from bpf(2) nevertheless.
    Notsupp = 524,
}

impl Errno {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Perm,
        Self::Noent,
        Self::E2big,
        Self::Again,
        Self::Nomem,
        Self::Fault,
        Self::Busy,
        Self::Exist,
        Self::Inval,
        Self::Nospc,
        Self::Opnotsupp,
        Self::Notsupp,
    ];

    /// The positive number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// What a helper returns in r0: the negative number.
    #[must_use]
    pub const fn negated(self) -> i64 {
        -(self as i64)
    }

    /// From a positive number; `None` for a number no map operation answers with.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|errno| errno.number() == number)
    }

    /// The name as in errno.h.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Perm => "EPERM",
            Self::Noent => "ENOENT",
            Self::E2big => "E2BIG",
            Self::Again => "EAGAIN",
            Self::Nomem => "ENOMEM",
            Self::Fault => "EFAULT",
            Self::Busy => "EBUSY",
            Self::Exist => "EEXIST",
            Self::Inval => "EINVAL",
            Self::Nospc => "ENOSPC",
            Self::Opnotsupp => "EOPNOTSUPP",
            Self::Notsupp => "ENOTSUPP",
        }
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for Errno {}
