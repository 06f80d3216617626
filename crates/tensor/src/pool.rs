//! Freed buffers kept for reuse, so that a steady stream of runs asks the system for no memory; what a burst leaves is given back.

use std::sync::Mutex;

/// Bytes aligned to a cache line, so that every element type and SIMD load can use them.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// Buffers smaller than this go straight to the allocator, which is as fast.
const SMALLEST_POOLED_LINES: usize = 64;
/// Freed buffers beyond these bytes are given back to the system.
const POOL_LIMIT_BYTES: usize = 512 << 20;
/// Buffers kept per size class.
const KEPT_PER_CLASS: usize = 32;
/// Size classes: four per power of two.
const N_CLASSES: usize = 4 * 48;

/// Owned memory that goes back to the pool when dropped.
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// `len` zero bytes.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self { lines: vec![bytemuck::Zeroable::zeroed(); capacity_of(len.div_ceil(64))] }
    }

    /// At least `len` initialised bytes of arbitrary content.
    pub(crate) fn scratch(len: usize) -> Self {
        let n_lines = len.div_ceil(64);
        let Some(lines) = take(n_lines) else { return Self::zeroed(len) };
        let mut buffer = Self { lines };
        if cfg!(debug_assertions) {
            // NaN in every float type, so that a kernel that reads what it did not write shows in tests.
            bytemuck::cast_slice_mut::<Line, u8>(&mut buffer.lines).fill(0xff);
        }
        buffer
    }

    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    pub(crate) fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.lines));
    }
}

struct Pool {
    /// Of each class the buffers in the order they were freed in; the last is taken first.
    classes: Vec<Vec<Kept>>,
    n_lines: usize,
    /// Calls of [`release_unused`].
    n_releases: u64,
}

struct Kept {
    lines: Vec<Line>,
    /// [`Pool::n_releases`] when it was freed.
    freed_at: u64,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { classes: Vec::new(), n_lines: 0, n_releases: 0 });

/// Gives buffers that nobody used since the last call back to the allocator, and returns their bytes. A server calls it every few
/// seconds, so that memory follows the load: what keeps running keeps its buffers.
pub fn release_unused() -> usize {
    let unused: Vec<Kept> = {
        let Ok(mut pool) = POOL.lock() else { return 0 };
        let now = pool.n_releases;
        pool.n_releases += 1;
        let cold = |kept: &mut Vec<Kept>| {
            let n_cold = kept.partition_point(|buffer| buffer.freed_at < now);
            kept.drain(..n_cold).collect::<Vec<_>>()
        };
        let unused: Vec<Kept> = pool.classes.iter_mut().flat_map(cold).collect();
        pool.n_lines -= unused.iter().map(|buffer| buffer.lines.len()).sum::<usize>();
        unused
    };
    unused.iter().map(|buffer| 64 * buffer.lines.len()).sum()
}

fn take(n_lines: usize) -> Option<Vec<Line>> {
    if n_lines < SMALLEST_POOLED_LINES {
        return None;
    }
    let class = class_of(n_lines);
    let mut pool = POOL.lock().ok()?;
    let kept = pool.classes.get_mut(class)?.pop()?;
    pool.n_lines -= kept.lines.len();
    Some(kept.lines)
}

fn give_back(lines: Vec<Line>) {
    if lines.len() < SMALLEST_POOLED_LINES || lines.len() != capacity_of(lines.len()) {
        return;
    }
    let class = class_of(lines.len());
    let Ok(mut pool) = POOL.lock() else { return };
    if pool.classes.is_empty() {
        pool.classes = (0..N_CLASSES).map(|_| Vec::new()).collect();
    }
    let fits = (pool.n_lines + lines.len()) * 64 <= POOL_LIMIT_BYTES;
    let n_lines = lines.len();
    let freed_at = pool.n_releases;
    match pool.classes.get_mut(class) {
        Some(kept) if fits && kept.len() < KEPT_PER_CLASS => kept.push(Kept { lines, freed_at }),
        _ => return,
    }
    pool.n_lines += n_lines;
}

/// The class whose buffers hold `n_lines`: quarter steps of powers of two, so at most a quarter is wasted.
fn class_of(n_lines: usize) -> usize {
    let octave = n_lines.ilog2() as usize;
    let base = 1usize << octave;
    let step = (base / 4).max(1);
    4 * octave + (n_lines - base).div_ceil(step)
}

/// Lines that a buffer for `n_lines` gets: the size of its class.
fn capacity_of(n_lines: usize) -> usize {
    if n_lines < SMALLEST_POOLED_LINES {
        return n_lines;
    }
    let base = 1usize << n_lines.ilog2();
    let step = base / 4;
    base + (n_lines - base).next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_what_it_is_asked_for() {
        for n_lines in (64..5000).chain([65_536, 65_537, 100_000, 131_071]) {
            let capacity = capacity_of(n_lines);
            assert!(capacity >= n_lines && capacity <= n_lines + n_lines / 4 + 1, "{n_lines} got {capacity}");
            assert_eq!(capacity_of(capacity), capacity);
            assert_eq!(class_of(capacity), class_of(n_lines), "{n_lines}");
        }
    }

    #[test]
    fn a_freed_buffer_is_used_again() {
        // A size no other test asks for, because the pool is shared by the process.
        let len = 7_777_777;
        let buffer = Buffer::scratch(len);
        let address = buffer.lines().as_ptr();
        drop(buffer);
        assert_eq!(Buffer::scratch(len).lines().as_ptr(), address);
    }

    #[test]
    fn what_nobody_uses_is_released() {
        let (used, unused) = (5_555_555, 6_666_666);
        let address = |len: usize| Buffer::scratch(len).lines().as_ptr();
        let kept = address(used);
        drop(Buffer::scratch(unused));
        release_unused();
        assert_eq!(address(used), kept, "freed since the call before");
        assert!(release_unused() >= unused, "the other one was not");
        assert_eq!(address(used), kept, "and this one was used meanwhile");
        assert!(take(unused.div_ceil(64)).is_none());
    }
}
