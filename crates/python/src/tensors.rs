//! Tensors as Python passes them.

use highroad_tensor::{DType, Storage, Tensor};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

/// Dtype name, sizes and the contiguous elements' bytes.
pub type Given<'py> = (String, Vec<usize>, PyReadonlyArray1<'py, u8>);
/// As [`Given`], on the way out.
pub type Returned = (&'static str, Vec<usize>, Py<PyArray1<u8>>);

/// A tensor of its own: inputs are small beside the work, and a copy needs no promise from Python about the buffer.
pub fn from_python((dtype, sizes, bytes): &Given<'_>) -> PyResult<Tensor> {
    let dtype = DType::from_name(dtype).ok_or_else(|| PyTypeError::new_err(format!("unknown dtype `{dtype}`")))?;
    let storage = Storage::copy_of(bytes.as_slice()?);
    let mut strides = vec![1; sizes.len()];
    for dim in (1..sizes.len()).rev() {
        strides[dim - 1] = strides[dim] * sizes[dim];
    }
    Tensor::from_storage(storage, dtype, sizes, &strides, 0).map_err(|error| PyTypeError::new_err(error.to_string()))
}

/// The tensor's elements in a fresh NumPy array.
pub fn to_python(py: Python<'_>, tensor: &Tensor) -> Returned {
    let tensor = tensor.contiguous();
    let size_bytes = tensor.dtype().size_bytes();
    let bytes = &tensor.storage().bytes()[tensor.offset() * size_bytes..][..tensor.numel() * size_bytes];
    (tensor.dtype().name(), tensor.shape().to_vec(), PyArray1::from_slice(py, bytes).unbind())
}
