//! Loop nests over several operands of one shape.

use smallvec::SmallVec;

/// A loop nest: neighbouring dimensions that all operands walk evenly are merged, so the innermost loop is as long as
/// it can be.
pub(crate) struct Nest<const N: usize> {
    sizes: SmallVec<[usize; 6]>,
    strides: [SmallVec<[usize; 6]>; N],
}

impl<const N: usize> Nest<N> {
    /// The nest over `shape` with the strides of each operand, which have as many dimensions.
    pub(crate) fn new(shape: &[usize], strides: [&[usize]; N]) -> Self {
        let mut nest = Self { sizes: SmallVec::new(), strides: std::array::from_fn(|_| SmallVec::new()) };
        for dim in 0..shape.len() {
            nest.push(shape[dim], std::array::from_fn(|n| strides[n][dim]));
        }
        if nest.sizes.is_empty() {
            nest.sizes.push(1);
            nest.strides.iter_mut().for_each(|strides| strides.push(1));
        }
        nest
    }

    fn push(&mut self, size: usize, strides: [usize; N]) {
        if size == 1 {
            return;
        }
        let last = self.sizes.len().wrapping_sub(1);
        let merges = !self.sizes.is_empty() && (0..N).all(|n| self.strides[n][last] == strides[n] * size);
        if merges {
            self.sizes[last] *= size;
            (0..N).for_each(|n| self.strides[n][last] = strides[n]);
        } else {
            self.sizes.push(size);
            (0..N).for_each(|n| self.strides[n].push(strides[n]));
        }
    }

    /// Calls `row(offsets, len, strides)` for every run of the innermost dimension, in row-major order: operand `n`
    /// has elements `offsets[n] + i * strides[n]` for `i` in `0..len`.
    #[inline(always)]
    pub(crate) fn for_each_row(&self, start: [usize; N], mut row: impl FnMut([usize; N], usize, [usize; N])) {
        let (&len, outer) = self.sizes.split_last().expect("a nest has a dimension");
        if len == 0 || outer.contains(&0) {
            return;
        }
        let inner: [usize; N] = std::array::from_fn(|n| self.strides[n][outer.len()]);
        let mut index: SmallVec<[usize; 6]> = SmallVec::from_elem(0, outer.len());
        let mut offsets = start;
        loop {
            row(offsets, len, inner);
            let mut dim = outer.len();
            loop {
                let Some(next) = dim.checked_sub(1) else { return };
                dim = next;
                index[dim] += 1;
                (0..N).for_each(|n| offsets[n] += self.strides[n][dim]);
                if index[dim] < outer[dim] {
                    break;
                }
                (0..N).for_each(|n| offsets[n] -= self.strides[n][dim] * outer[dim]);
                index[dim] = 0;
            }
        }
    }
}
