//! Views: other sizes and strides over the same storage.

use smallvec::SmallVec;

use crate::tensor::contiguous_strides;
use crate::{Shape, Strides, Tensor, TensorError};

impl Tensor {
    /// Size of dimension `dim`. Errors if there is no such dimension.
    pub fn size(&self, dim: usize) -> Result<usize, TensorError> {
        self.shape().get(dim).copied().ok_or(TensorError::Dim { dim, ndim: self.ndim() })
    }

    /// Dimensions `a` and `b` swapped.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self, TensorError> {
        self.size(a)?;
        self.size(b)?;
        let mut order: SmallVec<[usize; 6]> = (0..self.ndim()).collect();
        order.swap(a, b);
        self.permute(&order)
    }

    /// Element `index` of dimension `dim`, which goes away.
    pub fn select(&self, dim: usize, index: usize) -> Result<Self, TensorError> {
        let mut view = self.narrow(dim, index, 1)?;
        view = view.squeeze(dim)?;
        Ok(view)
    }

    /// Elements `start .. start + len` of dimension `dim`.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self, TensorError> {
        let end = start.saturating_add(len);
        self.slice(dim, start, end, 1)
    }

    /// Elements `start, start + step, …` below `end` of dimension `dim`; `step` is at least 1. Errors if the range
    /// leaves the dimension.
    pub fn slice(&self, dim: usize, start: usize, end: usize, step: usize) -> Result<Self, TensorError> {
        let size = self.size(dim)?;
        if start > end || end > size || step == 0 {
            return Err(TensorError::Range { dim, start, end, step, size });
        }
        let len = (end - start).div_ceil(step);
        let mut shape = Shape::from_slice(self.shape());
        let mut strides = Strides::from_slice(self.strides());
        let offset = if len == 0 { self.offset() } else { self.offset() + start * strides[dim] };
        shape[dim] = len;
        strides[dim] = strides[dim].saturating_mul(step);
        Ok(self.with_view(shape, strides, offset))
    }

    /// A dimension of size 1 inserted before dimension `dim` (`dim` may equal the number of dimensions).
    pub fn unsqueeze(&self, dim: usize) -> Result<Self, TensorError> {
        if dim > self.ndim() {
            return Err(TensorError::Dim { dim, ndim: self.ndim() });
        }
        let mut shape = Shape::from_slice(self.shape());
        let mut strides = Strides::from_slice(self.strides());
        let stride = shape.get(dim).map_or(1, |&size| strides[dim].saturating_mul(size.max(1)));
        shape.insert(dim, 1);
        strides.insert(dim, stride);
        Ok(self.with_view(shape, strides, self.offset()))
    }

    /// Dimension `dim` removed if its size is 1, else the tensor as it is.
    pub fn squeeze(&self, dim: usize) -> Result<Self, TensorError> {
        if self.size(dim)? != 1 {
            return Ok(self.clone());
        }
        let mut shape = Shape::from_slice(self.shape());
        let mut strides = Strides::from_slice(self.strides());
        shape.remove(dim);
        strides.remove(dim);
        Ok(self.with_view(shape, strides, self.offset()))
    }

    /// The diagonal of dimensions `dim1` and `dim2`, shifted by `shift`, as the last dimension.
    pub fn diagonal(&self, shift: isize, dim1: usize, dim2: usize) -> Result<Self, TensorError> {
        let (rows, cols) = (self.size(dim1)?, self.size(dim2)?);
        if dim1 == dim2 {
            return Err(TensorError::Dim { dim: dim2, ndim: self.ndim() });
        }
        let (row, col) = if shift >= 0 { (0, shift.unsigned_abs()) } else { (shift.unsigned_abs(), 0) };
        let len = rows.saturating_sub(row).min(cols.saturating_sub(col));
        let step = self.strides()[dim1] + self.strides()[dim2];
        let start = if len == 0 { 0 } else { row * self.strides()[dim1] + col * self.strides()[dim2] };
        let kept = |values: &[usize], last: usize| -> SmallVec<[usize; 6]> {
            let rest = (0..self.ndim()).filter(|&dim| dim != dim1 && dim != dim2).map(|dim| values[dim]);
            rest.chain([last]).collect()
        };
        Ok(self.with_view(kept(self.shape(), len), kept(self.strides(), step), self.offset() + start))
    }

    /// The same elements in row-major order under another shape, without a copy; `None` if the strides do not allow
    /// it or the number of elements differs.
    pub fn view(&self, shape: &[usize]) -> Option<Self> {
        let numel = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size))?;
        if numel != self.numel() {
            return None;
        }
        let strides = if self.is_contiguous() { contiguous_strides(shape) } else { self.strides_for(shape)? };
        Some(self.with_view(shape.into(), strides, self.offset()))
    }

    /// The same elements under another shape; copies only where strides demand it. Errors if the number of elements
    /// differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self, TensorError> {
        if let Some(view) = self.view(shape) {
            return Ok(view);
        }
        self.contiguous()
            .view(shape)
            .ok_or_else(|| TensorError::Reshape { from: self.shape().into(), to: shape.into() })
    }

    /// Strides under which `shape` walks the same elements; the shapes have as many elements. Both shapes are cut into
    /// groups of equal products; a group of old dimensions must be evenly spaced.
    fn strides_for(&self, shape: &[usize]) -> Option<Strides> {
        let mut strides = contiguous_strides(shape);
        let old: SmallVec<[(usize, usize); 6]> =
            self.shape().iter().copied().zip(self.strides().iter().copied()).filter(|&(size, _)| size != 1).collect();
        let (mut old_at, mut new_at) = (old.len(), shape.len());
        while old_at > 0 {
            let (mut n_old, mut n_new) = (1, 1);
            let base = old[old_at - 1].1;
            let mut expected = base;
            while n_new == 1 || n_old != n_new {
                if n_old <= n_new {
                    old_at = old_at.checked_sub(1)?;
                    let (size, stride) = old[old_at];
                    if stride != expected {
                        return None;
                    }
                    n_old *= size;
                    expected = stride * size;
                } else {
                    new_at = new_at.checked_sub(1)?;
                    strides[new_at] = base * n_new;
                    n_new *= shape[new_at];
                }
            }
        }
        Some(strides)
    }
}

/// The shape that `left` and `right` broadcast to, by the rules of NumPy and PyTorch.
pub fn broadcast_shapes(left: &[usize], right: &[usize]) -> Result<Shape, TensorError> {
    let ndim = left.len().max(right.len());
    let size = |shape: &[usize], dim: usize| (dim + shape.len()).checked_sub(ndim).map_or(1, |dim| shape[dim]);
    (0..ndim)
        .map(|dim| match (size(left, dim), size(right, dim)) {
            (l, r) if l == r || r == 1 => Ok(l),
            (1, r) => Ok(r),
            _ => Err(TensorError::Broadcast { left: left.into(), right: right.into() }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::{Tensor, broadcast_shapes};

    fn counted(shape: &[usize]) -> Tensor {
        let data: Vec<i32> = (0..shape.iter().product::<usize>() as i32).collect();
        Tensor::from_slice(&data, shape).unwrap()
    }

    #[test]
    fn a_reshape_of_any_layout_keeps_the_elements() {
        let x = counted(&[4, 6, 2]);
        let layouts = [
            x.clone(),
            x.permute(&[2, 0, 1]).unwrap(),
            x.slice(0, 1, 4, 2).unwrap(),
            x.slice(1, 0, 6, 2).unwrap(),
            x.select(0, 1).unwrap(),
            x.unsqueeze(1).unwrap().expand(&[4, 3, 6, 2]).unwrap(),
            x.transpose(0, 1).unwrap().unsqueeze(0).unwrap(),
        ];
        for layout in layouts {
            let n = layout.numel();
            let halves = if n.is_multiple_of(4) { vec![4, 1, n / 4] } else { vec![n] };
            let mut merged = vec![layout.shape()[0] * layout.shape()[1]];
            merged.extend(&layout.shape()[2..]);
            for shape in [vec![n], halves, merged, vec![n / 2, 2]] {
                assert_eq!(layout.reshape(&shape).unwrap().to_vec::<i32>(), layout.to_vec::<i32>(), "{shape:?}");
            }
        }
    }

    #[test]
    fn merging_neighbours_of_a_transposed_tensor_needs_no_copy() {
        let x = counted(&[2, 3, 4, 5]).permute(&[2, 3, 0, 1]).unwrap();
        let view = x.view(&[20, 6]).unwrap();
        assert_eq!(view.strides(), [1, 20]);
        assert!(x.view(&[120]).is_none());
        assert_eq!(x.view(&[4, 5, 6]).unwrap().strides(), [5, 1, 20]);
    }

    #[test]
    fn slices_selects_and_squeezes_pick_the_elements_they_name() {
        let x = counted(&[3, 4]);
        assert_eq!(x.slice(1, 1, 4, 2).unwrap().to_vec::<i32>(), Some(vec![1, 3, 5, 7, 9, 11]));
        assert_eq!(x.select(0, 2).unwrap().to_vec::<i32>(), Some(vec![8, 9, 10, 11]));
        assert_eq!(x.select(1, 0).unwrap().to_vec::<i32>(), Some(vec![0, 4, 8]));
        assert_eq!(x.narrow(0, 3, 0).unwrap().shape(), [0, 4]);
        assert_eq!(x.unsqueeze(2).unwrap().shape(), [3, 4, 1]);
        assert_eq!(x.unsqueeze(0).unwrap().squeeze(0).unwrap().shape(), [3, 4]);
        assert_eq!(x.diagonal(1, 0, 1).unwrap().to_vec::<i32>(), Some(vec![1, 6, 11]));
        assert_eq!(x.diagonal(-2, 0, 1).unwrap().to_vec::<i32>(), Some(vec![8]));
        assert!(x.slice(1, 0, 5, 1).is_err() && x.slice(1, 2, 1, 1).is_err() && x.slice(1, 0, 1, 0).is_err());
        assert!(x.select(0, 3).is_err() && x.select(2, 0).is_err() && x.permute(&[0, 0]).is_err());
    }

    #[test]
    fn empty_tensors_have_every_view() {
        let x = counted(&[0, 3]);
        assert_eq!(x.view(&[3, 0, 7]).unwrap().shape(), [3, 0, 7]);
        assert_eq!(x.transpose(0, 1).unwrap().to_vec::<i32>(), Some(vec![]));
    }

    #[test]
    fn shapes_broadcast_as_in_numpy() {
        assert_eq!(broadcast_shapes(&[3, 1], &[2, 1, 4]).unwrap().as_slice(), [2, 3, 4]);
        assert_eq!(broadcast_shapes(&[0], &[1]).unwrap().as_slice(), [0]);
        assert!(broadcast_shapes(&[2], &[3]).is_err());
    }
}
