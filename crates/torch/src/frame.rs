//! Tensors as frames hold them.

use highroad_task::TaskError;
use highroad_task::raw::{DType, Storage, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// The tensors `0`, `1`, … of a frame, which holds no others.
pub(crate) fn outputs(frame: &[u8]) -> Result<Vec<Tensor>, String> {
    let file = SafeTensors::deserialize(frame).map_err(|error| error.to_string())?;
    (0..file.len())
        .map(|idx| {
            let view = file.tensor(&idx.to_string()).map_err(|error| error.to_string())?;
            let found = DTYPES.iter().find(|(_, dtype)| *dtype == view.dtype());
            let (dtype, _) = found.ok_or_else(|| format!("an output of dtype {:?}", view.dtype()))?;
            let shape = view.shape();
            let strides: Vec<usize> = (1..=shape.len()).map(|dim| shape[dim..].iter().product()).collect();
            Tensor::from_storage(Storage::copy_of(view.data()), *dtype, shape, &strides, 0).map_err(|e| e.to_string())
        })
        .collect()
}

pub(crate) fn view(tensor: &Tensor) -> Result<TensorView<'_>, TaskError> {
    let unusable = |what: String| TaskError::Tensors(what);
    let (_, dtype) = DTYPES
        .iter()
        .find(|(dtype, _)| *dtype == tensor.dtype())
        .ok_or_else(|| unusable(format!("an input of dtype {}", tensor.dtype())))?;
    let start = tensor.offset() * tensor.dtype().size_bytes();
    let end = start + tensor.numel() * tensor.dtype().size_bytes();
    let bytes = tensor.storage().bytes().get(start..end).expect("a contiguous tensor lies in its storage");
    TensorView::new(*dtype, tensor.shape().to_vec(), bytes).map_err(|error| unusable(error.to_string()))
}

/// Every dtype, by the two names it has here.
const DTYPES: [(DType, Dtype); 10] = [
    (DType::Bool, Dtype::BOOL),
    (DType::U8, Dtype::U8),
    (DType::I8, Dtype::I8),
    (DType::I16, Dtype::I16),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
];
