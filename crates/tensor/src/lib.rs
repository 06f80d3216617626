//! Dtypes, shapes, strided tensors over owned or memory-mapped storage, and the numeric kernels.
//!
//! A [`Tensor`] is a dtype, sizes, strides and an offset over shared storage, all counted in elements, exactly as
//! PyTorch counts them. Views are free; kernels take slices or views and never know about graphs.

mod attention;
mod conv;
mod dtype;
mod elementwise;
mod gemm;
mod math;
mod nest;
mod norm;
pub mod parallel;
mod pool;
mod reduce;
mod storage;
mod tensor;
#[cfg(test)]
mod testing;
mod view;

pub use attention::{Attention, Causality, attention};
pub use conv::{Convolution, Pool, Window, adaptive_mean_pool2d, conv2d, pool2d};
pub use dtype::{DType, Element};
pub use elementwise::{Convert, Scalar, concat, map, select, zip};
pub use gemm::{LinearWeights, PackedMatrix, instruction_set, linear, matmul};
pub use half::{bf16, f16};
pub use math::{Unary, unary};
pub use norm::{LayerNorm, Softmax, batch_norm, layer_norm, softmax};
pub use pool::release_unused;
pub use reduce::{Keep, fold, gather_rows, reduced_shape, sum};
pub use storage::Storage;
pub use tensor::{Shape, Strides, Tensor, TensorError};
pub use view::broadcast_shapes;
