use std::fmt;

use smallvec::SmallVec;

use crate::{DType, Element, Storage};

/// Sizes of a tensor, outermost dimension first.
pub type Shape = SmallVec<[usize; 6]>;
/// Distances in elements between neighbours along each dimension; 0 where a dimension is broadcast.
pub type Strides = SmallVec<[usize; 6]>;

/// Why a tensor could not be made or viewed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum TensorError {
    #[error("{len} elements do not fill shape {shape:?}")]
    Length { len: usize, shape: Vec<usize> },
    #[error("sizes {sizes:?} with strides {strides:?} from offset {offset} reach past the {len} elements stored")]
    OutOfStorage { sizes: Vec<usize>, strides: Vec<usize>, offset: usize, len: usize },
    #[error("the number of elements of {0:?} does not fit in memory")]
    TooLarge(Vec<usize>),
    #[error("storage is not aligned for {0}")]
    Misaligned(DType),
    #[error("dimension {dim} does not exist in a tensor of {ndim} dimensions")]
    Dim { dim: usize, ndim: usize },
    #[error("shape {from:?} does not expand to {to:?}")]
    Expand { from: Vec<usize>, to: Vec<usize> },
    #[error("{start}..{end} by {step} leaves dimension {dim} of size {size}")]
    Range { dim: usize, start: usize, end: usize, step: usize, size: usize },
    #[error("{from:?} elements do not reshape to {to:?}")]
    Reshape { from: Vec<usize>, to: Vec<usize> },
    #[error("shapes {left:?} and {right:?} do not broadcast")]
    Broadcast { left: Vec<usize>, right: Vec<usize> },
    #[error("expected {expected}, got {got}")]
    DType { expected: &'static str, got: DType },
    #[error("{what}: {left:?} does not fit {right:?}")]
    Mismatch { what: &'static str, left: Vec<usize>, right: Vec<usize> },
    #[error("index {index} is outside 0..{len}")]
    Index { index: i64, len: usize },
}

/// A strided view of shared [`Storage`]; cloning shares the storage.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    strides: Strides,
    offset: usize,
    storage: Storage,
}

impl Tensor {
    /// A contiguous tensor that owns `data`. Errors if `data` does not fill `shape`.
    pub fn from_slice<T: Element>(data: &[T], shape: &[usize]) -> Result<Self, TensorError> {
        if numel(shape) != Some(data.len()) {
            return Err(TensorError::Length { len: data.len(), shape: shape.into() });
        }
        Self::from_storage(Storage::copy_of(bytemuck::cast_slice(data)), T::DTYPE, shape, &contiguous_strides(shape), 0)
    }

    /// A contiguous tensor of booleans. Errors if `data` does not fill `shape`.
    pub fn from_bools(data: &[bool], shape: &[usize]) -> Result<Self, TensorError> {
        let bytes: Vec<u8> = data.iter().map(|&b| u8::from(b)).collect();
        let mut tensor = Self::from_slice(&bytes, shape)?;
        tensor.dtype = DType::Bool;
        Ok(tensor)
    }

    /// A tensor of no dimensions.
    pub fn scalar<T: Element>(value: T) -> Self {
        Self::from_slice(&[value], &[]).expect("one element fills a scalar")
    }

    /// A contiguous tensor of zeros. Errors if its size overflows.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, TensorError> {
        let len = size_bytes(dtype, shape)?;
        Self::from_storage(Storage::zeroed(len), dtype, shape, &contiguous_strides(shape), 0)
    }

    /// A contiguous tensor of arbitrary content from the pool of freed buffers: for results that are written whole.
    /// Errors if its size overflows.
    pub fn scratch(dtype: DType, shape: &[usize]) -> Result<Self, TensorError> {
        let len = size_bytes(dtype, shape)?;
        Self::from_storage(Storage::scratch(len), dtype, shape, &contiguous_strides(shape), 0)
    }

    /// A view of `storage`: `shape`, `strides` and `offset` count elements. Errors if the view leaves the storage or
    /// the storage is not aligned for `dtype`.
    pub fn from_storage(
        storage: Storage,
        dtype: DType,
        shape: &[usize],
        strides: &[usize],
        offset: usize,
    ) -> Result<Self, TensorError> {
        let len = storage.bytes().len() / dtype.size_bytes();
        let end = if shape.contains(&0) { Some(offset) } else { last_offset(shape, strides, offset).map(|o| o + 1) };
        if shape.len() != strides.len() || end.is_none_or(|end| end > len) {
            return Err(TensorError::OutOfStorage { sizes: shape.into(), strides: strides.into(), offset, len });
        }
        if !(storage.bytes().as_ptr() as usize).is_multiple_of(dtype.size_bytes()) {
            return Err(TensorError::Misaligned(dtype));
        }
        Ok(Self { dtype, shape: shape.into(), strides: strides.into(), offset, storage })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Strides in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Position of the first element in the storage, in elements.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The shared storage.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Number of dimensions.
    pub fn ndim(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether elements lie next to each other in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        }) || self.numel() == 0
    }

    /// The elements in row-major order without a copy; `None` if the tensor is not contiguous or stores another type.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        if !T::stores(self.dtype) || !self.is_contiguous() {
            return None;
        }
        let start = self.offset * self.dtype.size_bytes();
        let end = start + self.numel() * self.dtype.size_bytes();
        Some(bytemuck::cast_slice(&self.storage.bytes()[start..end]))
    }

    /// The elements for writing; `None` also while another tensor shares the storage.
    pub fn as_mut_slice<T: Element>(&mut self) -> Option<&mut [T]> {
        if !T::stores(self.dtype) || !self.is_contiguous() {
            return None;
        }
        let start = self.offset * self.dtype.size_bytes();
        let end = start + self.numel() * self.dtype.size_bytes();
        Some(bytemuck::cast_slice_mut(&mut self.storage.bytes_mut()?[start..end]))
    }

    /// The storage seen as elements from the first one stored, for kernels that walk strides themselves; element
    /// `[0, …]` is at [`Tensor::offset`]. `None` if the tensor stores another type.
    pub fn elements<T: Element>(&self) -> Option<&[T]> {
        let whole = self.storage.bytes().len() / self.dtype.size_bytes() * self.dtype.size_bytes();
        T::stores(self.dtype).then(|| bytemuck::cast_slice(&self.storage.bytes()[..whole]))
    }

    /// The same bytes read as another dtype of the same width. Errors if the widths differ.
    pub fn reinterpret(&self, dtype: DType) -> Result<Self, TensorError> {
        if dtype.size_bytes() != self.dtype.size_bytes() {
            return Err(TensorError::DType { expected: "a dtype of the same width", got: dtype });
        }
        Ok(Self { dtype, ..self.clone() })
    }

    pub(crate) fn with_view(&self, shape: Shape, strides: Strides, offset: usize) -> Self {
        // An empty view begins at the start, so that slicing its storage from its offset is always in bounds.
        let offset = if shape.contains(&0) { 0 } else { offset };
        Self { dtype: self.dtype, shape, strides, offset, storage: self.storage.clone() }
    }

    /// Dimensions reordered: dimension `i` of the result is dimension `permutation[i]` of this tensor. Errors if
    /// `permutation` does not name every dimension once.
    pub fn permute(&self, permutation: &[usize]) -> Result<Self, TensorError> {
        let mut is_named: SmallVec<[bool; 6]> = SmallVec::from_elem(false, self.ndim());
        for &dim in permutation.iter().filter(|&&dim| dim < self.ndim()) {
            is_named[dim] = true;
        }
        if permutation.len() != self.ndim() || is_named.contains(&false) {
            let dim = permutation.iter().copied().find(|&dim| dim >= self.ndim()).unwrap_or(permutation.len());
            return Err(TensorError::Dim { dim, ndim: self.ndim() });
        }
        let shape = permutation.iter().map(|&d| self.shape[d]).collect();
        let strides = permutation.iter().map(|&d| self.strides[d]).collect();
        Ok(self.with_view(shape, strides, self.offset))
    }

    /// Sizes of 1 (or missing leading dimensions) repeated up to `shape` without a copy.
    pub fn expand(&self, shape: &[usize]) -> Result<Self, TensorError> {
        let error = || TensorError::Expand { from: self.shape.to_vec(), to: shape.into() };
        let lead = shape.len().checked_sub(self.ndim()).ok_or_else(error)?;
        let mut strides: Strides = SmallVec::from_elem(0, shape.len());
        for (dim, (&size, &stride)) in self.shape.iter().zip(&self.strides).enumerate() {
            match shape[lead + dim] {
                to if to == size => strides[lead + dim] = stride,
                _ if size == 1 => {}
                _ => return Err(error()),
            }
        }
        Ok(self.with_view(shape.into(), strides, self.offset))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape.as_slice())
    }
}

/// Row-major strides of `shape`.
pub(crate) fn contiguous_strides(shape: &[usize]) -> Strides {
    let mut strides: Strides = SmallVec::from_elem(1, shape.len());
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim].saturating_mul(shape[dim].max(1));
    }
    strides
}

fn size_bytes(dtype: DType, shape: &[usize]) -> Result<usize, TensorError> {
    numel(shape)
        .and_then(|n| n.checked_mul(dtype.size_bytes()))
        .filter(|&n| n <= isize::MAX as usize)
        .ok_or_else(|| TensorError::TooLarge(shape.into()))
}

fn numel(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size))
}

fn last_offset(shape: &[usize], strides: &[usize], offset: usize) -> Option<usize> {
    shape
        .iter()
        .zip(strides)
        .try_fold(offset, |at, (&size, &stride)| at.checked_add(size.saturating_sub(1).checked_mul(stride)?))
        .filter(|&at| at < usize::MAX)
}
