//! An object file, linked against maps that exist: through aya-obj (relocation of maps, calls, BTF).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

use aya_obj::btf::{Btf, BtfFeatures};
use aya_obj::generated::bpf_insn;
use aya_obj::{EbpfSectionKind, Map, Object, ProgramSection};
use datapath_maps::{MapKind, MapSpec};

use crate::error::KernelError;
use crate::insn::Insn;
use crate::store::KernelMaps;

/// A program with its subprograms, ready to be loaded.
#[derive(Clone, Debug)]
pub struct LinkedProgram {
    /// Name of the function.
    pub name: String,
    /// Instructions, subprograms behind the main one.
    pub insns: Vec<Insn>,
    /// `struct bpf_func_info` records, and the bytes of one.
    pub func_info: (Vec<u8>, usize),
    /// `struct bpf_line_info` records, and the bytes of one.
    pub line_info: (Vec<u8>, usize),
}

/// One map of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapDefinition {
    /// Definition.
    pub spec: MapSpec,
    /// Initial value of a data section (`.rodata`, `.data`, `.bss`).
    pub data: Option<Vec<u8>>,
}

/// An eBPF object file.
#[derive(Debug)]
pub struct ObjectFile {
    bytes: Vec<u8>,
    globals: Vec<(String, Vec<u8>)>,
    object: Object,
}

fn failed(step: &'static str, error: &dyn std::error::Error) -> KernelError {
    // The library's messages name the object in the outermost error and the reason in the innermost.
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        reason = format!("{reason}: {inner}");
        source = inner.source();
    }
    KernelError::Object { step, reason }
}

fn convert(insn: bpf_insn) -> Insn {
    Insn::new(insn.code, insn.dst_reg(), insn.src_reg(), insn.off, insn.imm)
}

/// Where a map's initial value comes from.
fn has_data(map: &Map) -> bool {
    match map.section_kind() {
        EbpfSectionKind::Bss | EbpfSectionKind::Data | EbpfSectionKind::Rodata => true,
        EbpfSectionKind::Undefined
        | EbpfSectionKind::Maps
        | EbpfSectionKind::BtfMaps
        | EbpfSectionKind::Program
        | EbpfSectionKind::Text
        | EbpfSectionKind::Btf
        | EbpfSectionKind::BtfExt
        | EbpfSectionKind::License
        | EbpfSectionKind::Version => false,
    }
}

impl ObjectFile {
    /// Reads an object and sets globals (constants of `.rodata`) by name; each must exist and have this size.
    ///
    /// # Errors
    /// [`KernelError::Object`].
    pub fn parse(bytes: &[u8], globals: &[(&str, &[u8])]) -> Result<Self, KernelError> {
        let globals: Vec<(String, Vec<u8>)> =
            globals.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
        let object = read(bytes, &globals)?;
        Ok(Self { bytes: bytes.to_vec(), globals, object })
    }

    /// The licence the object declares.
    #[must_use]
    pub fn license(&self) -> CString {
        self.object.license.clone()
    }

    /// Its maps, by name.
    ///
    /// # Errors
    /// [`KernelError::MapKind`] for a kind this crate does not know.
    pub fn maps(&self) -> Result<Vec<MapDefinition>, KernelError> {
        let sorted: BTreeMap<&String, &Map> = self.object.maps.iter().collect();
        sorted
            .into_iter()
            .map(|(name, map)| {
                let kind = MapKind::from_bpf(map.map_type())
                    .ok_or(KernelError::MapKind { map: name.clone(), kind: map.map_type() })?;
                let spec = MapSpec {
                    name: name.clone(),
                    kind,
                    key_size: map.key_size(),
                    value_size: map.value_size(),
                    max_entries: map.max_entries(),
                    flags: map.map_flags(),
                };
                Ok(MapDefinition { spec, data: has_data(map).then(|| map.data().to_vec()) })
            })
            .collect()
    }

    /// Names of its programs, sorted.
    #[must_use]
    pub fn programs(&self) -> Vec<String> {
        let mut names: Vec<String> = self.object.programs.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// BTF as the kernel takes it: first as it is, then for older kernels without the newest kinds.
    ///
    /// # Errors
    /// [`KernelError::Object`].
    pub fn btf(&self, modern: bool) -> Result<Option<Vec<u8>>, KernelError> {
        // Fixing changes the object in place, and must not be done twice.
        let mut object = read(&self.bytes, &self.globals)?;
        let features = BtfFeatures::new(true, true, true, modern, modern, modern, modern, modern);
        let btf = object.fixup_and_sanitize_btf(&features).map_err(|error| failed("fix BTF", &error))?;
        Ok(btf.map(Btf::to_bytes))
    }

    /// Links every program against maps that exist. All maps of [`Self::maps`] must be there.
    ///
    /// # Errors
    /// [`KernelError::NoMap`], [`KernelError::ProgramKind`], [`KernelError::Object`].
    pub fn link(&self, maps: &KernelMaps) -> Result<Vec<LinkedProgram>, KernelError> {
        let mut object = self.object.clone();
        if object.has_btf_relocations() {
            let kernel = Btf::from_sys_fs().map_err(|error| failed("kernel's BTF", &error))?;
            object.relocate_btf(&kernel).map_err(|error| failed("relocate fields", &error))?;
        }
        let definitions = std::mem::take(&mut object.maps);
        let mut targets = Vec::with_capacity(definitions.len());
        for (name, definition) in &definitions {
            let map = maps.get(name).ok_or_else(|| KernelError::NoMap { map: name.clone() })?;
            targets.push((name.as_str(), map.as_fd().as_raw_fd(), definition));
        }
        let code_sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(targets.into_iter(), &code_sections).map_err(|error| failed("relocate maps", &error))?;
        object.relocate_calls(&code_sections).map_err(|error| failed("link calls", &error))?;
        let sorted: BTreeMap<_, _> = object.programs.iter().collect();
        sorted
            .into_iter()
            .map(|(name, program)| {
                if !matches!(program.section, ProgramSection::SchedClassifier) {
                    return Err(KernelError::ProgramKind {
                        program: name.clone(),
                        section: format!("{:?}", program.section),
                    });
                }
                let function = object
                    .functions
                    .get(&program.function_key())
                    .ok_or_else(|| KernelError::NoProgram { program: name.clone() })?;
                Ok(LinkedProgram {
                    name: name.clone(),
                    insns: function.instructions.iter().copied().map(convert).collect(),
                    func_info: (function.func_info.func_info_bytes(), function.func_info_rec_size),
                    line_info: (function.line_info.line_info_bytes(), function.line_info_rec_size),
                })
            })
            .collect()
    }
}

fn read(bytes: &[u8], globals: &[(String, Vec<u8>)]) -> Result<Object, KernelError> {
    let mut object = Object::parse(bytes).map_err(|error| failed("parse", &error))?;
    let patches: HashMap<&str, (&[u8], bool)> =
        globals.iter().map(|(name, value)| (name.as_str(), (value.as_slice(), true))).collect();
    object.patch_map_data(patches).map_err(|error| failed("set globals", &error))?;
    Ok(object)
}
