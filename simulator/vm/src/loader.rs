//! Object file → linked programs.
//!
//! aya-obj parses the ELF, patches constants, links calls and relocates maps; this module gives every map a number,
//! keeps read-only sections apart (they are shared by all nodes), and reads the line table.
//!
//! Invariant: programs and maps are numbered in the order of their names, so numbers do not depend on the linker.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

use aya_obj::obj::{EbpfSectionKind, ProgramSection};
use datapath_maps::{MapKind, MapSpec, UpdateMode};

use crate::api::ProgramId;
use crate::decode::{self, Decoded};
use crate::isa::Raw;
use crate::lower::{Entry, LowerError, Lowered};

/// Why an object cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not an eBPF object, or one aya-obj does not understand.
    #[error("object file: {0}")]
    Parse(#[from] aya_obj::ParseError),
    /// A call or a map reference cannot be resolved.
    #[error("object file: {0}")]
    Relocation(#[from] aya_obj::relocation::EbpfRelocationError),
    /// The object asks for relocations against the running kernel's types.
    #[error("the object has CO-RE relocations, which depend on a kernel")]
    CoreRelocations,
    /// A global variable does not exist.
    #[error("the object has no global variable `{name}` of {size} bytes in a data section")]
    Global {
        /// Its name.
        name: String,
        /// Bytes given for it.
        size: usize,
    },
    /// A map of a kind that is not modelled.
    #[error("map `{map}` has type {kind}, which is not supported")]
    MapKind {
        /// Its name.
        map: String,
        /// `BPF_MAP_TYPE_` number.
        kind: u32,
    },
    /// A map larger than the address tags allow.
    #[error("map `{map}`: {what}")]
    MapSize {
        /// Its name.
        map: String,
        /// What is too big.
        what: &'static str,
    },
    /// A map that cannot be created.
    #[error(transparent)]
    Map(#[from] datapath_maps::MapError),
    /// A call of a helper that is not modelled.
    #[error("program `{program}`, instruction {pc}: helper {helper} is not supported")]
    UnknownHelper {
        /// Program.
        program: String,
        /// Slot.
        pc: usize,
        /// Number in linux/bpf.h.
        helper: i32,
    },
    /// An instruction that does not exist or is not supported.
    #[error("program `{program}`, instruction {pc}: {what} (opcode {opcode:#04x})")]
    Instruction {
        /// Program.
        program: String,
        /// Slot.
        pc: usize,
        /// Opcode byte.
        opcode: u8,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No program array, or no such program, for [`Object::load`]'s caller.
    #[error("the object has no map `{map}`")]
    NoMap {
        /// What was asked for.
        map: String,
    },
    /// The lowering for rbpf failed.
    #[error(transparent)]
    Lower(#[from] LowerError),
}

/// Where a program may be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramKind {
    /// tc classifier.
    Classifier,
    /// Anything else; runs with the same context.
    Other,
}

/// One linked program: its own code followed by that of the functions it calls.
#[derive(Debug, Clone)]
pub struct Program {
    /// Name of the function.
    pub name: String,
    /// From the section.
    pub kind: ProgramKind,
    /// The code. Map references carry [`Object`]'s numbers, see [`MapRef`].
    pub code: Vec<Raw>,
    /// Source lines.
    pub lines: LineTable,
}

/// Source lines of a program: ascending slots, each valid up to the next.
#[derive(Debug, Clone, Default)]
pub struct LineTable {
    rows: Vec<(u32, Arc<str>, u32)>,
}

impl LineTable {
    /// File and line of a slot.
    #[must_use]
    pub fn at(&self, pc: u32) -> Option<(&str, u32)> {
        let next = self.rows.partition_point(|row| row.0 <= pc);
        let row = self.rows.get(next.checked_sub(1)?)?;
        Some((&row.1, row.2))
    }

    /// All rows: first slot, file, line.
    pub fn rows(&self) -> impl Iterator<Item = (u32, &str, u32)> {
        self.rows.iter().map(|(pc, file, line)| (*pc, &**file, *line))
    }
}

/// What the immediate of a map reference says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapRef {
    /// A map of the node, by number.
    Map(usize),
    /// A read-only section, by number.
    Rodata(usize),
}

/// Immediates from here on are read-only sections.
const RODATA_BASE: i32 = 0x1_0000;

impl MapRef {
    /// From the first immediate of a pseudo `ld_imm64`.
    #[must_use]
    pub fn from_imm(imm: i32) -> Option<Self> {
        let number = usize::try_from(imm).ok()?;
        match usize::try_from(imm - RODATA_BASE) {
            Ok(section) => Some(Self::Rodata(section)),
            Err(_) => Some(Self::Map(number)),
        }
    }
}

/// A read-only section. Eight-byte aligned, never moves; clones share the bytes.
#[derive(Clone)]
pub struct Rodata {
    /// Name of the section.
    pub name: String,
    words: Arc<[u64]>,
    len: usize,
}

impl Rodata {
    fn new(name: String, bytes: &[u8]) -> Self {
        let words = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                for (to, from) in word.iter_mut().zip(chunk) {
                    *to = *from;
                }
                u64::from_ne_bytes(word)
            })
            .collect();
        Self { name, words, len: bytes.len() }
    }

    /// Bytes of the section.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First byte.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.words.as_ptr().cast()
    }
}

impl fmt::Debug for Rodata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rodata").field("name", &self.name).field("len", &self.len).finish_non_exhaustive()
    }
}

/// What all objects from one file have in common.
#[derive(Debug)]
struct Code {
    programs: Vec<Program>,
    license: String,
    decoded: Arc<Decoded>,
    lowered: OnceLock<Arc<Lowered>>,
    /// Symbols and data sections of the file, without code; `None` for assembled programs.
    file: Option<aya_obj::Object>,
}

/// A linked object with its settings in place, shared by every node with the same settings.
///
/// Objects made of each other by [`Object::with_globals`] share linked, decoded, lowered and machine code: only their
/// data sections are their own.
#[derive(Debug)]
pub struct Object {
    code: Arc<Code>,
    maps: Vec<MapSpec>,
    init: Vec<(usize, Vec<u8>)>,
    rodata: Vec<Rodata>,
}

/// Where a map of the file goes.
enum Place {
    Map,
    Variables,
    Rodata,
}

fn place(map: &aya_obj::Map) -> Place {
    let kind = map.section_kind();
    if kind == EbpfSectionKind::Rodata {
        Place::Rodata
    } else if matches!(kind, EbpfSectionKind::Data | EbpfSectionKind::Bss) {
        Place::Variables
    } else {
        Place::Map
    }
}

fn by_name(maps: &HashMap<String, aya_obj::Map>) -> Vec<(&str, &aya_obj::Map)> {
    let mut named: Vec<_> = maps.iter().map(|(name, map)| (name.as_str(), map)).collect();
    named.sort_by_key(|entry| entry.0);
    named
}

impl Object {
    /// Links an object. `globals` are constants (or variables) to set: name of the static, its bytes.
    ///
    /// # Errors
    /// Anything that would make a program fail for a reason that can be seen without running it.
    pub fn load(bytes: &[u8], globals: &[(&str, &[u8])]) -> Result<Self, LoadError> {
        let mut object = aya_obj::Object::parse(bytes)?;
        if object.has_btf_relocations() {
            return Err(LoadError::CoreRelocations);
        }
        let license = object.license.to_string_lossy().into_owned();

        let file_maps = std::mem::take(&mut object.maps);
        let mut maps = Vec::new();
        let mut sections = 0;
        let mut numbered = Vec::new();
        for (name, map) in by_name(&file_maps) {
            if matches!(place(map), Place::Rodata) {
                numbered.push((name, RODATA_BASE + sections, map));
                sections += 1;
                continue;
            }
            let number = i32::try_from(maps.len()).unwrap_or(RODATA_BASE - 1);
            numbered.push((name, number, map));
            maps.push(MapSpec {
                name: name.to_owned(),
                kind: MapKind::from_bpf(map.map_type())
                    .ok_or_else(|| LoadError::MapKind { map: name.to_owned(), kind: map.map_type() })?,
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: map.max_entries(),
                flags: map.map_flags(),
            });
        }

        let text: HashSet<usize> = object.functions.keys().map(|key| key.0).collect();
        object.relocate_maps(numbered.into_iter(), &text)?;
        object.relocate_calls(&text)?;

        let strings = object.btf.as_ref().map(btf_strings).unwrap_or_default();
        let mut names: Vec<&String> = object.programs.keys().collect();
        names.sort();
        let mut programs = Vec::with_capacity(names.len());
        for name in names {
            let Some(program) = object.programs.get(name) else { continue };
            let Some(function) = object.functions.get(&program.function_key()) else { continue };
            programs.push(Program {
                name: name.clone(),
                kind: program_kind(&program.section),
                code: function.instructions.iter().map(raw).collect(),
                lines: line_table(&function.line_info.line_info, &strings),
            });
        }

        let sections = usize::try_from(sections).unwrap_or(0);
        let decoded = Arc::new(decode::decode(&programs, &maps, sections)?);
        object.maps = file_maps;
        object.functions.clear();
        object.programs.clear();
        object.btf = None;
        object.btf_ext = None;
        let code = Code { programs, license, decoded, lowered: OnceLock::new(), file: Some(object) };
        Self { code: Arc::new(code), maps, init: Vec::new(), rodata: Vec::new() }.with_globals(globals)
    }

    /// The same programs with other settings: data sections as in the file but for these globals. Code is shared.
    ///
    /// # Errors
    /// [`LoadError::Global`] for a name the file does not have, or bytes of another size.
    pub fn with_globals(&self, globals: &[(&str, &[u8])]) -> Result<Self, LoadError> {
        let mut file = self.code.file.clone();
        for &(name, value) in globals {
            let unknown = LoadError::Global { name: name.to_owned(), size: value.len() };
            let Some(file) = &mut file else { return Err(unknown) };
            file.patch_map_data(HashMap::from([(name, (value, true))])).map_err(|_| unknown)?;
        }
        let mut rodata = Vec::new();
        let mut init = Vec::new();
        let mut number = 0;
        for (name, map) in file.as_ref().map(|file| by_name(&file.maps)).unwrap_or_default() {
            match place(map) {
                Place::Rodata => rodata.push(Rodata::new(name.to_owned(), map.data())),
                Place::Variables => {
                    init.push((number, map.data().to_vec()));
                    number += 1;
                }
                Place::Map => number += 1,
            }
        }
        Ok(Self { code: Arc::clone(&self.code), maps: self.maps.clone(), init, rodata })
    }

    /// Programs from code that no object file holds: for tests of engines.
    ///
    /// # Errors
    /// As [`Object::load`].
    pub fn assemble(programs: Vec<(&str, Vec<Raw>)>, maps: Vec<MapSpec>) -> Result<Self, LoadError> {
        let mut programs: Vec<Program> = programs
            .into_iter()
            .map(|(name, code)| Program {
                name: name.to_owned(),
                kind: ProgramKind::Classifier,
                code,
                lines: LineTable::default(),
            })
            .collect();
        programs.sort_by(|a, b| a.name.cmp(&b.name));
        let decoded = Arc::new(decode::decode(&programs, &maps, 0)?);
        let license = "Dual MIT/GPL".to_owned();
        let code = Code { programs, license, decoded, lowered: OnceLock::new(), file: None };
        Ok(Self { code: Arc::new(code), maps, init: Vec::new(), rodata: Vec::new() })
    }

    /// The programs, sorted by name: [`ProgramId`] is the index.
    #[must_use]
    pub fn programs(&self) -> &[Program] {
        &self.code.programs
    }

    /// Finds a program by name.
    #[must_use]
    pub fn program(&self, name: &str) -> Option<ProgramId> {
        let index = self.code.programs.binary_search_by(|program| program.name.as_str().cmp(name)).ok()?;
        u32::try_from(index).ok().map(ProgramId)
    }

    /// The maps, sorted by name. Writable sections (`.data`, `.bss`) are arrays of one entry.
    #[must_use]
    pub fn maps(&self) -> &[MapSpec] {
        &self.maps
    }

    /// The read-only sections.
    #[must_use]
    pub fn rodata(&self) -> &[Rodata] {
        &self.rodata
    }

    /// The licence the object declares.
    #[must_use]
    pub fn license(&self) -> &str {
        &self.code.license
    }

    /// Changes the capacity of a map, before any engine is made.
    ///
    /// # Errors
    /// [`LoadError::NoMap`], [`LoadError::MapSize`].
    pub fn resize_map(&mut self, name: &str, max_entries: u32) -> Result<(), LoadError> {
        match self.maps.iter_mut().find(|map| map.name == name) {
            Some(map) => {
                let spec = MapSpec { max_entries, ..map.clone() };
                decode::check_map(&spec)?;
                *map = spec;
                Ok(())
            }
            None => Err(LoadError::NoMap { map: name.to_owned() }),
        }
    }

    /// Empty maps for one node, writable sections with their initial content.
    ///
    /// # Errors
    /// [`LoadError::Map`].
    pub fn new_maps(&self, cpus: u32) -> Result<datapath_maps::MemoryMaps, LoadError> {
        let mut maps = datapath_maps::MemoryMaps::new(self.maps.iter().cloned(), cpus)?;
        for (index, bytes) in &self.init {
            if let Some(map) = maps.get_mut(*index) {
                map.set_bytes(&0u32.to_le_bytes(), bytes, UpdateMode::Any).map_err(|_| LoadError::MapSize {
                    map: map.spec().name.clone(),
                    what: "its initial content does not fit",
                })?;
            }
        }
        Ok(maps)
    }

    pub(crate) fn decoded(&self) -> Arc<Decoded> {
        Arc::clone(&self.code.decoded)
    }

    /// The code as rbpf gets it, made at the first call.
    ///
    /// # Errors
    /// [`LowerError`].
    pub(crate) fn lowered(&self) -> Result<Arc<Lowered>, LowerError> {
        if let Some(lowered) = self.code.lowered.get() {
            return Ok(Arc::clone(lowered));
        }
        let lowered = Arc::new(Lowered::new(&self.code.programs, self.maps.len(), Entry::Context)?);
        Ok(Arc::clone(self.code.lowered.get_or_init(|| lowered)))
    }
}

fn program_kind(section: &ProgramSection) -> ProgramKind {
    if matches!(section, ProgramSection::SchedClassifier) { ProgramKind::Classifier } else { ProgramKind::Other }
}

fn raw(insn: &aya_obj::generated::bpf_insn) -> Raw {
    Raw { opcode: insn.code, dst: insn.dst_reg(), src: insn.src_reg(), off: insn.off, imm: insn.imm }
}

/// The string section of a BTF blob: `struct btf_header` is magic u16, version u8, flags u8, header length, type
/// offset and length, string offset and length, all u32; offsets count from the end of the header.
fn btf_strings(btf: &aya_obj::btf::Btf) -> Vec<u8> {
    let blob = btf.to_bytes();
    let word = |at: usize| -> usize {
        blob.get(at..at + 4)
            .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
            .and_then(|bytes| usize::try_from(u32::from_le_bytes(bytes)).ok())
            .unwrap_or(0)
    };
    let start = word(4) + word(16);
    blob.get(start..start + word(20)).unwrap_or_default().to_vec()
}

fn line_table(rows: &[aya_obj::generated::bpf_line_info], strings: &[u8]) -> LineTable {
    let mut files: HashMap<u32, Arc<str>> = HashMap::new();
    let mut table: Vec<(u32, Arc<str>, u32)> = rows
        .iter()
        .map(|row| {
            let file = files.entry(row.file_name_off).or_insert_with(|| {
                let tail = usize::try_from(row.file_name_off).ok().and_then(|at| strings.get(at..)).unwrap_or_default();
                let end = tail.iter().position(|&byte| byte == 0).unwrap_or(tail.len());
                Arc::from(String::from_utf8_lossy(tail.get(..end).unwrap_or_default()).as_ref())
            });
            // The kernel packs the line into the upper 22 bits and the column into the rest.
            (row.insn_off, Arc::clone(file), row.line_col >> 10)
        })
        .collect();
    table.sort_by_key(|row| row.0);
    LineTable { rows: table }
}
