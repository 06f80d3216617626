use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

/// Bytes aligned to a cache line, so that every element type and SIMD load can use them.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Shared bytes: owned memory, or a range of a memory-mapped file that stays mapped as long as a tensor uses it.
#[derive(Clone)]
pub struct Storage(Kind);

#[derive(Clone)]
enum Kind {
    Owned { lines: Arc<Vec<Line>>, len: usize },
    Mapped { map: Arc<Mmap>, range: Range<usize> },
}

impl Storage {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let lines = vec![bytemuck::Zeroable::zeroed(); len.div_ceil(64)];
        Self(Kind::Owned { lines: Arc::new(lines), len })
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut storage = Self::zeroed(bytes.len());
        storage.bytes_mut().expect("just made, so not shared").copy_from_slice(bytes);
        storage
    }

    /// The bytes `range` of a mapped file; `None` if the file is shorter.
    pub fn mapped(map: Arc<Mmap>, range: Range<usize>) -> Option<Self> {
        (range.start <= range.end && range.end <= map.len()).then_some(Self(Kind::Mapped { map, range }))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Kind::Owned { lines, len } => &bytemuck::cast_slice(lines.as_slice())[..*len],
            Kind::Mapped { map, range } => &map[range.clone()],
        }
    }

    /// All bytes for writing; `None` while another tensor shares them or when they are mapped.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.0 {
            Kind::Owned { lines, len } => {
                let lines = Arc::get_mut(lines)?;
                Some(&mut bytemuck::cast_slice_mut(lines.as_mut_slice())[..*len])
            }
            Kind::Mapped { .. } => None,
        }
    }
}
