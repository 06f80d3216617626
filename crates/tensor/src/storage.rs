use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

use crate::pool::{Buffer, Line};

/// Shared bytes: owned memory, or a range of a memory-mapped file that stays mapped as long as a tensor uses it.
#[derive(Clone)]
pub struct Storage(Kind);

#[derive(Clone)]
enum Kind {
    Owned { buffer: Arc<Buffer>, range: Range<usize> },
    Mapped { map: Arc<Mmap>, range: Range<usize> },
}

impl Storage {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self(Kind::Owned { buffer: Arc::new(Buffer::zeroed(len)), range: 0..len })
    }

    /// `len` bytes of arbitrary content, taken from the pool of freed buffers where one fits: for results that are
    /// written whole before they are read.
    pub fn scratch(len: usize) -> Self {
        Self(Kind::Owned { buffer: Arc::new(Buffer::scratch(len)), range: 0..len })
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut storage = Self::scratch(bytes.len());
        storage.bytes_mut().expect("just made, so not shared").copy_from_slice(bytes);
        storage
    }

    /// A whole file, mapped: pages are read when first touched and shared between processes.
    ///
    /// The file must not change while it is mapped. Highroad maps files of its read-only store, and files a user
    /// names; one that is truncated under a running program ends that program with SIGBUS.
    #[allow(unsafe_code)]
    pub fn map(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self::zeroed(0));
        }
        // SAFETY: the map is private and only read, and nobody writes to the file while it is open (above).
        let map = unsafe { Mmap::map(file)? };
        let range = 0..map.len();
        Ok(Self(Kind::Mapped { map: Arc::new(map), range }))
    }

    /// The bytes `range` of this storage, shared; `None` if they reach past its end.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        let (Kind::Owned { range: whole, .. } | Kind::Mapped { range: whole, .. }) = &self.0;
        if range.start > range.end || range.end > whole.len() {
            return None;
        }
        let range = whole.start + range.start..whole.start + range.end;
        Some(Self(match &self.0 {
            Kind::Owned { buffer, .. } => Kind::Owned { buffer: buffer.clone(), range },
            Kind::Mapped { map, .. } => Kind::Mapped { map: map.clone(), range },
        }))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Kind::Owned { buffer, range } => &bytemuck::cast_slice::<Line, u8>(buffer.lines())[range.clone()],
            Kind::Mapped { map, range } => &map[range.clone()],
        }
    }

    /// All bytes for writing; `None` while another tensor shares them or when they are mapped.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.0 {
            Kind::Owned { buffer, range } => {
                let buffer = Arc::get_mut(buffer)?;
                Some(&mut bytemuck::cast_slice_mut::<Line, u8>(buffer.lines_mut())[range.clone()])
            }
            Kind::Mapped { .. } => None,
        }
    }

    /// Whether two storages are the same memory.
    pub fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.bytes().as_ptr(), other.bytes().as_ptr()) && self.bytes().len() == other.bytes().len()
    }

    /// Tells the system that mapped bytes will not be read soon, so that they stop counting as resident memory; they
    /// are read from the file again on demand. Does nothing to owned memory.
    pub fn release(&self) {
        let Kind::Mapped { map, range } = &self.0 else { return };
        #[cfg(unix)]
        {
            let page = 4096;
            let start = range.start.next_multiple_of(page);
            let end = range.end / page * page;
            if start < end {
                // SAFETY: the map is read-only and never written, so dropping its pages only means that the next
                // access reads the same bytes from the file. Refusal by the system changes nothing, so it is ignored.
                #[allow(unsafe_code)]
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_a_slice_is_counted_from_its_own_start() {
        let storage = Storage::copy_of(&[0, 1, 2, 3, 4, 5]);
        let tail = storage.slice(2..6).unwrap();
        assert_eq!(tail.slice(1..3).unwrap().bytes(), [3, 4]);
        assert!(tail.slice(1..5).is_none());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 3..2;
        assert!(tail.slice(reversed).is_none());
    }
}
