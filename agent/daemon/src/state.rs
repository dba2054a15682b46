//! What must survive a restart: endpoints, numbers of identities, addresses that were filled in, and settings of the node
//! that were changed. One file, replaced whole: a new file is written, synced and renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use agent_core::identity::Mark;
use agent_core::labels::Labels;
use agent_core::model::{IpBlock, Protocol};
use agent_core::{IdentityAllocator, Owner, Prefix};
use serde::{Deserialize, Serialize};

/// Name of the file in the state folder.
const FILE: &str = "state.json";

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read or written.
    #[error("{step} {path}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// File or folder.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is not what this build writes.
    #[error("{path}: {source}; `weir-agent --cleanup` forgets everything")]
    Syntax {
        /// The file.
        path: String,
        /// Where, and what is wrong.
        source: serde_json::Error,
    },
    /// Something in it contradicts the rest.
    #[error("{path}: {what}; `weir-agent --cleanup` forgets everything")]
    Contradiction {
        /// The file.
        path: String,
        /// What.
        what: String,
    },
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedEndpoint {
    /// `NAMESPACE/NAME`.
    pub pod: String,
    /// Device and inode of the pod's network namespace.
    pub netns: (u64, u64),
    /// Its file, as it was given. It may be gone, or another namespace's.
    #[serde(default)]
    pub path: String,
    /// Device in the pod.
    pub ifname: String,
    /// Device of the node.
    pub device: String,
    /// Somebody else made the device, and it stays theirs.
    pub given: bool,
    /// The pod's Ethernet address.
    pub mac: [u8; 6],
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Made completely. Otherwise the next start removes what there is of it.
    pub ready: bool,
}

/// Node and addresses that were filled in for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Node.
    pub node: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum SavedMark {
    Block { prefix: String, except: Vec<String> },
    Port { name: String, protocol: String, number: u16 },
    Asked(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum SavedOwner {
    Pods { namespace: String, labels: Labels, namespace_labels: Labels, marks: Vec<SavedMark> },
    Prefix(String),
    Nodes(Vec<SavedMark>),
}

/// Contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Endpoints by number.
    pub endpoints: BTreeMap<u16, SavedEndpoint>,
    /// What was filled in, by pod.
    pub placements: BTreeMap<String, Placement>,
    /// Settings of the kernel that were changed and outlive weir's devices, with their values before.
    pub sysctls: BTreeMap<String, String>,
    identities: BTreeMap<u32, SavedOwner>,
}

/// The file and what it holds.
#[derive(Debug)]
pub struct StateFile {
    folder: PathBuf,
    saved: Saved,
}

impl StateFile {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        std::fs::create_dir_all(folder).map_err(|source| failed("make", folder, source))?;
        let path = folder.join(FILE);
        let saved = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| StateError::Syntax { path: path.display().to_string(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Saved::default(),
            Err(source) => return Err(failed("read", &path, source)),
        };
        Ok(Self { folder: folder.to_owned(), saved })
    }

    /// What it holds.
    pub fn get(&self) -> &Saved {
        &self.saved
    }

    /// Changes it, on disk first. Nothing is written when nothing changes.
    ///
    /// # Errors
    /// [`StateError::Io`]; then nothing has changed.
    pub fn change(&mut self, change: impl FnOnce(&mut Saved)) -> Result<(), StateError> {
        let mut new = self.saved.clone();
        change(&mut new);
        if new != self.saved {
            self.write(&new)?;
            self.saved = new;
        }
        Ok(())
    }

    fn write(&self, saved: &Saved) -> Result<(), StateError> {
        let (path, temporary) = (self.folder.join(FILE), self.folder.join("state.json.new"));
        let bytes = serde_json::to_vec_pretty(saved).map_err(|e| failed("write", &temporary, e.into()))?;
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(|source| failed("write", &temporary, source))?;
        let renamed = std::fs::rename(&temporary, &path).and_then(|()| File::open(&self.folder)?.sync_all());
        renamed.map_err(|source| failed("replace", &path, source))
    }

    /// The identities of the earlier run.
    ///
    /// # Errors
    /// [`StateError::Contradiction`].
    pub fn identities(&self) -> Result<IdentityAllocator, StateError> {
        let mut identities = IdentityAllocator::default();
        for (number, saved) in &self.saved.identities {
            let restored = owner(saved).is_some_and(|owner| identities.restore(owner, *number));
            if !restored {
                let path = self.folder.join(FILE).display().to_string();
                return Err(StateError::Contradiction { path, what: format!("identity {number} cannot be restored") });
            }
        }
        Ok(identities)
    }
}

impl Saved {
    /// Remembers these identities.
    pub fn set_identities(&mut self, identities: &IdentityAllocator) {
        self.identities = identities.iter().map(|(number, owner)| (number, save(owner))).collect();
    }
}

fn failed(step: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::Io { step, path: path.display().to_string(), source }
}

fn save(owner: &Owner) -> SavedOwner {
    match owner {
        Owner::Pods { namespace, labels, namespace_labels, marks } => SavedOwner::Pods {
            namespace: namespace.clone(),
            labels: labels.clone(),
            namespace_labels: namespace_labels.clone(),
            marks: marks.iter().map(save_mark).collect(),
        },
        Owner::Prefix(prefix) => SavedOwner::Prefix(prefix.to_string()),
        Owner::Nodes(marks) => SavedOwner::Nodes(marks.iter().map(save_mark).collect()),
    }
}

fn save_mark(mark: &Mark) -> SavedMark {
    match mark {
        Mark::Block(block) => SavedMark::Block {
            prefix: block.prefix.to_string(),
            except: block.except.iter().map(Prefix::to_string).collect(),
        },
        Mark::Port { name, protocol, number } => {
            SavedMark::Port { name: name.clone(), protocol: protocol.name().to_owned(), number: *number }
        }
        Mark::Asked(text) => SavedMark::Asked(text.clone()),
    }
}

fn owner(saved: &SavedOwner) -> Option<Owner> {
    Some(match saved {
        SavedOwner::Pods { namespace, labels, namespace_labels, marks } => Owner::Pods {
            namespace: namespace.clone(),
            labels: labels.clone(),
            namespace_labels: namespace_labels.clone(),
            marks: all_marks(marks)?,
        },
        SavedOwner::Prefix(prefix) => Owner::Prefix(prefix.parse().ok()?),
        SavedOwner::Nodes(marks) => Owner::Nodes(all_marks(marks)?),
    })
}

fn all_marks(saved: &[SavedMark]) -> Option<BTreeSet<Mark>> {
    saved.iter().map(mark).collect()
}

fn mark(saved: &SavedMark) -> Option<Mark> {
    Some(match saved {
        SavedMark::Block { prefix, except } => Mark::Block(IpBlock {
            prefix: prefix.parse().ok()?,
            except: except.iter().map(|prefix| prefix.parse().ok()).collect::<Option<_>>()?,
        }),
        SavedMark::Port { name, protocol, number } => Mark::Port {
            name: name.clone(),
            protocol: Protocol::ALL.into_iter().find(|known| known.name() == protocol)?,
            number: *number,
        },
        SavedMark::Asked(text) => Mark::Asked(text.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners() -> BTreeSet<Owner> {
        let block = IpBlock { prefix: "10.0.0.0/8".parse().unwrap(), except: ["10.1.0.0/16".parse().unwrap()].into() };
        let port = Mark::Port { name: "web".into(), protocol: Protocol::Sctp, number: 80 };
        let labels = Labels::from([("app".to_owned(), "a".to_owned())]);
        [
            Owner::Pods {
                namespace: "x".into(),
                labels: labels.clone(),
                namespace_labels: labels,
                marks: [Mark::Block(block.clone()), port].into(),
            },
            Owner::Prefix("2001:db8::/32".parse().unwrap()),
            Owner::Nodes([Mark::Block(block)].into()),
        ]
        .into()
    }

    #[test]
    fn identities_are_what_they_were_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut identities = IdentityAllocator::default();
        identities.assign(&owners()).unwrap();
        let mut file = StateFile::open(folder.path()).unwrap();
        file.change(|saved| saved.set_identities(&identities)).unwrap();
        let again = StateFile::open(folder.path()).unwrap();
        assert_eq!(again.get(), file.get());
        let restored = again.identities().unwrap();
        assert!(restored.iter().eq(identities.iter()));
        assert_eq!(restored.iter().count(), 3);
    }

    #[test]
    fn a_file_that_is_cut_off_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "{\"endpoints\": {").unwrap();
        let error = StateFile::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("state.json") && error.contains("--cleanup"), "{error}");
    }
}
