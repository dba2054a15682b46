//! The checked engine's memory: a table of regions, every access within one object or refused.

use datapath_maps::{MemoryMap, MemoryMaps, map_flags};

use crate::address::{self, split, tag};
use crate::api::FaultKind;
use crate::isa;
use crate::loader::{Object, Rodata};
use crate::space::{self, CONTEXT_LEN, Packet, SkBuff, Space};
use crate::world::Memory;

/// A row of the table: `slots` objects from `first` on, `stride` bytes apart.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Region {
    base: *mut u8,
    first: u32,
    slots: u32,
    stride: u32,
    /// Bytes of an object that may be read.
    readable: u32,
    /// Bytes of an object that may be written.
    writable: u32,
}

impl Region {
    const NONE: Self = Self { base: std::ptr::null_mut(), first: 0, slots: 0, stride: 0, readable: 0, writable: 0 };

    fn single(base: *mut u8, len: usize) -> Self {
        let len = u32::try_from(len).unwrap_or(0);
        Self { base, first: 0, slots: 1, stride: 0, readable: len, writable: len }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tagged {
    regions: Box<[Region]>,
    /// Number of read-only sections: maps come after them.
    sections: usize,
    generation: u32,
    cpu: u32,
    names: Box<[String]>,
    /// What a load of `data`, `data_end` gives.
    data: u64,
    data_end: u64,
}

// SAFETY: the pointers lead into memory that the engine owns (space, maps) or shares read-only (sections).
unsafe impl Send for Tagged {}

impl Tagged {
    pub(crate) fn new(object: &Object, space: &Space, maps: &mut MemoryMaps) -> Self {
        let sections = object.rodata().len();
        let count = address::map_region(sections, maps.len());
        let mut regions = vec![Region::NONE; count].into_boxed_slice();
        let frame = u32::try_from(isa::FRAME).unwrap_or(0);
        if let Some(stack) = regions.get_mut(address::STACK) {
            *stack = Region {
                base: space.at(space::STACK),
                first: 0,
                slots: 1,
                stride: frame,
                readable: frame,
                writable: frame,
            };
        }
        for (index, section) in object.rodata().iter().enumerate() {
            if let Some(region) = regions.get_mut(address::rodata_region(index)) {
                *region = Region { writable: 0, ..Region::single(section.as_ptr().cast_mut(), section.len()) };
            }
        }
        let names = object.rodata().iter().map(|section: &Rodata| section.name.clone());
        let names = names.chain(object.maps().iter().map(|map| map.name.clone())).collect();
        let mut tagged = Self { regions, sections, generation: 0, cpu: 0, names, data: 0, data_end: 0 };
        tagged.map_all(maps, 0);
        tagged
    }

    /// Takes the maps' slabs again, for one CPU.
    pub(crate) fn map_all(&mut self, maps: &mut MemoryMaps, cpu: u32) {
        self.cpu = cpu;
        // Every row is written, so that none leads to maps that are gone.
        let rows = self.regions.iter_mut().skip(address::map_region(self.sections, 0));
        for (index, row) in rows.enumerate() {
            *row = maps.get_mut(index).map_or(Region::NONE, |map| map_region(map, cpu));
        }
    }

    pub(crate) fn cpu(&self) -> u32 {
        self.cpu
    }

    /// At the start of a run.
    pub(crate) fn begin(&mut self, space: &mut Space, packet: Packet) {
        self.generation = 0;
        for record in address::RECORDS..address::RECORDS + address::MAX_RECORDS {
            if let Some(region) = self.regions.get_mut(record) {
                *region = Region::NONE;
            }
        }
        self.frames(1);
        self.packet_moved(space, packet);
        self.generation = 0;
        if let Some(region) = self.regions.get_mut(address::PACKET) {
            region.first = 0;
        }
        self.place_packet(packet);
    }

    fn place_packet(&mut self, packet: Packet) {
        self.data = tag(address::PACKET, self.generation, 0);
        self.data_end = self.data + packet.linear as u64;
    }

    /// The memory of a program without context.
    pub(crate) fn set_memory(&mut self, memory: &mut [u8]) -> u64 {
        if let Some(region) = self.regions.get_mut(address::MEMORY) {
            *region = Region::single(memory.as_mut_ptr(), memory.len());
        }
        tag(address::MEMORY, 0, 0)
    }

    /// Frames in use.
    #[inline]
    pub(crate) fn frames(&mut self, count: u32) {
        if let Some(region) = self.regions.get_mut(address::STACK) {
            region.slots = count;
        }
    }

    #[inline(always)]
    fn find(&self, address: u64, len: u64, write: bool) -> Option<*mut u8> {
        let (region, slot, offset) = split(address);
        let region = self.regions.get(region)?;
        let slot = slot.wrapping_sub(region.first);
        let limit = if write { region.writable } else { region.readable };
        if slot >= region.slots || u64::from(offset) + len > u64::from(limit) {
            return None;
        }
        Some(region.base.wrapping_add(slot as usize * region.stride as usize + offset as usize))
    }

    /// `len` readable bytes, or `None`.
    #[inline(always)]
    pub(crate) fn load(&self, address: u64, len: usize) -> Option<*const u8> {
        self.find(address, len as u64, false).map(<*mut u8>::cast_const)
    }

    /// `len` writable bytes, or `None`.
    #[inline(always)]
    pub(crate) fn store(&self, address: u64, len: usize) -> Option<*mut u8> {
        self.find(address, len as u64, true)
    }

    /// A load that [`Self::load`] refused: the context, or a fault.
    #[cold]
    #[inline(never)]
    pub(crate) fn load_context(&self, context: &SkBuff, address: u64, len: usize) -> Result<u64, Box<FaultKind>> {
        let (region, slot, offset) = split(address);
        if region != address::CONTEXT {
            return Err(self.fault("load", address, len as u64));
        }
        let refused = || Err(context_fault("load", len, offset));
        let at = offset as usize;
        if slot != 0 || at + len > CONTEXT_LEN || !at.is_multiple_of(len) {
            return refused();
        }
        match at {
            // data, data_end, data_meta: pointers, whole.
            76 | 140 if len == 4 => Ok(self.data),
            80 if len == 4 => Ok(self.data_end),
            76..84 | 140..144 => refused(),
            // Socket fields and flow keys are for other program types.
            88..140 | 144..152 => refused(),
            // tstamp, sk, hwtstamp: whole.
            152..160 | 168..176 | 184..192 if len != 8 => refused(),
            // One byte and its padding.
            180..184 if len != 1 || at != 180 => refused(),
            _ => {
                if len == 8 && !matches!(at, 48 | 56 | 152 | 168 | 184) {
                    return refused();
                }
                let start = std::ptr::from_ref(context).cast::<u8>().wrapping_add(at);
                Ok(read(start, len))
            }
        }
    }

    /// A store that [`Self::store`] refused: the context, or a fault.
    #[cold]
    #[inline(never)]
    pub(crate) fn store_context(
        &self,
        context: &mut SkBuff,
        address: u64,
        len: usize,
        value: u64,
    ) -> Result<(), Box<FaultKind>> {
        let (region, slot, offset) = split(address);
        if region != address::CONTEXT {
            return Err(self.fault("store", address, len as u64));
        }
        let at = offset as usize;
        let allowed = match at {
            // mark, queue_mapping, priority, tc_index, tc_classid: whole.
            8 | 12 | 32 | 44 | 72 => len == 4,
            // cb: any size.
            48..68 => at + len <= 68,
            // tstamp.
            152 => len == 8,
            _ => false,
        };
        if slot != 0 || !allowed || !at.is_multiple_of(len) {
            return Err(context_fault("store", len, offset));
        }
        let start = std::ptr::from_mut(context).cast::<u8>().wrapping_add(at);
        write(start, len, value);
        Ok(())
    }

    /// Puts a refused access into words.
    #[cold]
    pub(crate) fn fault(&self, access: &'static str, address: u64, size: u64) -> Box<FaultKind> {
        Box::new(FaultKind::Memory { access, size, address, region: self.describe(address) })
    }

    /// What an address points to.
    pub(crate) fn describe(&self, address: u64) -> String {
        if address::map_of_handle(address).is_some() {
            return "a map's handle".to_owned();
        }
        let (number, slot, offset) = split(address);
        let offset = i64::from(offset.cast_signed());
        let Some(region) = self.regions.get(number) else { return "no pointer".to_owned() };
        let size = region.readable;
        let read_only = if region.writable == 0 && size != 0 { ", read-only" } else { "" };
        match number {
            0 => "null or no pointer".to_owned(),
            address::CONTEXT => format!("context offset {offset}"),
            address::PACKET if slot != self.generation => {
                format!("packet offset {offset}, through a pointer from before a helper that may move the packet")
            }
            address::PACKET => format!("packet offset {offset} of {size} bytes"),
            address::STACK if slot >= region.slots => format!("stack frame {slot}, which has ended"),
            address::STACK => format!("stack frame {slot} at r10{:+} of {size} bytes", offset - i64::from(size)),
            address::MEMORY => format!("memory offset {offset} of {size} bytes"),
            n if n < address::RECORDS + address::MAX_RECORDS => {
                if size == 0 {
                    "a ring-buffer record that was given back".to_owned()
                } else {
                    format!("ring-buffer record offset {offset} of {size} bytes")
                }
            }
            n => match n.checked_sub(address::rodata_region(0)).and_then(|at| self.names.get(at)) {
                Some(name) if n < address::map_region(self.sections, 0) => {
                    format!("section `{name}` offset {offset} of {size} bytes{read_only}")
                }
                Some(name) => {
                    format!("map `{name}` slot {slot} offset {offset} of {size} bytes{read_only}")
                }
                None => "no pointer".to_owned(),
            },
        }
    }
}

#[cold]
fn context_fault(access: &'static str, len: usize, offset: u32) -> Box<FaultKind> {
    Box::new(FaultKind::Context { access, size: len as u64, offset: i64::from(offset.cast_signed()) })
}

fn map_region(map: &mut MemoryMap, cpu: u32) -> Region {
    let cpu = cpu.min(map.cpus().saturating_sub(1));
    let offset = map.value_offset(0, cpu);
    let spec = map.spec();
    let size = spec.value_size;
    let writable = if spec.flags & map_flags::RDONLY_PROG != 0 { 0 } else { size };
    Region {
        first: 0,
        slots: map.slots().min(address::MAX_SLOTS),
        stride: u32::try_from(map.value_stride()).unwrap_or(0),
        readable: size,
        writable,
        base: map.values_mut().as_mut_ptr().wrapping_add(offset),
    }
}

/// Little-endian load of 1, 2, 4 or 8 bytes that the caller has checked.
fn read(from: *const u8, len: usize) -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: callers checked `len` bytes at `from`; len is at most 8.
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len.min(8)) };
    u64::from_le_bytes(bytes)
}

/// Little-endian store of 1, 2, 4 or 8 bytes that the caller has checked.
fn write(to: *mut u8, len: usize, value: u64) {
    let bytes = value.to_le_bytes();
    // SAFETY: callers checked `len` bytes at `to`; len is at most 8.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len.min(8)) };
}

impl Memory for Tagged {
    #[inline]
    fn readable(&self, helper: &'static str, address: u64, len: usize) -> Result<*const u8, Box<FaultKind>> {
        self.load(address, len).ok_or_else(|| self.fault(helper, address, len as u64))
    }

    fn writable(&self, helper: &'static str, address: u64, len: usize) -> Result<*mut u8, Box<FaultKind>> {
        self.store(address, len).ok_or_else(|| self.fault(helper, address, len as u64))
    }

    #[inline]
    fn map(&self, handle: u64) -> Option<usize> {
        address::map_of_handle(handle)
    }

    #[inline]
    fn value(&self, map: usize, slot: u32) -> u64 {
        tag(address::map_region(self.sections, map), slot, 0)
    }

    fn is_context(&self, address: u64) -> bool {
        address == tag(address::CONTEXT, 0, 0)
    }

    fn packet_moved(&mut self, space: &mut Space, packet: Packet) {
        self.generation += 1;
        if let Some(region) = self.regions.get_mut(address::PACKET) {
            *region = Region { first: self.generation, ..Region::single(space.at(packet.head), packet.linear) };
        }
        self.place_packet(packet);
    }

    fn record(&mut self, start: *mut u8, len: usize) -> Option<u64> {
        let range = address::RECORDS..address::RECORDS + address::MAX_RECORDS;
        for (number, region) in self.regions.iter_mut().enumerate().take(range.end).skip(range.start) {
            if region.slots == 0 {
                // The next slot number: pointers to an earlier record of this region stay void.
                let first = region.first + 1;
                *region = Region { first, ..Region::single(start, len) };
                return Some(tag(number, first, 0));
            }
        }
        None
    }

    fn record_closed(&mut self, address: u64) {
        let (number, slot, _) = split(address);
        if let Some(region) = self.regions.get_mut(number) {
            *region = Region { first: slot, ..Region::NONE };
        }
    }
}
