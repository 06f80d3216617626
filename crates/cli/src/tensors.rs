//! Tensors in safetensors files.

use std::path::Path;

use anyhow::{Context as _, bail};
use highroad_tensor::{DType, Storage, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Every tensor of `path`, by name.
pub fn read(path: &Path) -> anyhow::Result<Vec<(String, Tensor)>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let file =
        SafeTensors::deserialize(&bytes).with_context(|| format!("`{}` is no safetensors file", path.display()))?;
    file.iter().map(|(name, view)| Ok((name.to_owned(), tensor(name, &view)?))).collect()
}

/// Writes `tensors` to `path` under the names `0`, `1`, ….
pub fn write(path: &Path, tensors: &[Tensor]) -> anyhow::Result<()> {
    let contiguous: Vec<Tensor> = tensors.iter().map(Tensor::contiguous).collect();
    let views = contiguous.iter().enumerate().map(|(index, tensor)| Ok((index.to_string(), view(tensor)?)));
    let views: Vec<(String, TensorView<'_>)> = views.collect::<anyhow::Result<_>>()?;
    let bytes = safetensors::serialize(views, None)?;
    std::fs::write(path, bytes).with_context(|| format!("cannot write `{}`", path.display()))
}

fn tensor(name: &str, view: &TensorView<'_>) -> anyhow::Result<Tensor> {
    let Some(&(dtype, _)) = DTYPES.iter().find(|(_, dtype)| *dtype == view.dtype()) else {
        bail!("tensor `{name}` is {:?}, which is not supported", view.dtype());
    };
    let shape = view.shape();
    let mut strides = vec![1usize; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim].saturating_mul(shape[dim].max(1));
    }
    Tensor::from_storage(Storage::copy_of(view.data()), dtype, shape, &strides, 0)
        .with_context(|| format!("tensor `{name}`"))
}

fn view(tensor: &Tensor) -> anyhow::Result<TensorView<'_>> {
    let (_, dtype) = DTYPES.iter().find(|(dtype, _)| *dtype == tensor.dtype()).expect("the table has every dtype");
    let start = tensor.offset() * tensor.dtype().size_bytes();
    let len = tensor.numel() * tensor.dtype().size_bytes();
    let bytes = tensor.storage().bytes().get(start..start + len).context("a contiguous tensor lies in its storage")?;
    Ok(TensorView::new(*dtype, tensor.shape().to_vec(), bytes)?)
}

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
