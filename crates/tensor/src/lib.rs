//! Dtypes, shapes, strided tensors over owned or memory-mapped storage, and the numeric kernels.
//!
//! A [`Tensor`] is a dtype, sizes, strides and an offset over shared storage, all counted in elements, exactly as
//! PyTorch counts them. Views are free; kernels take slices or views and never know about graphs.

mod dtype;
mod elementwise;
mod gemm;
mod math;
mod nest;
pub mod parallel;
mod pool;
mod storage;
mod tensor;
#[cfg(test)]
mod testing;
mod view;

pub use dtype::{DType, Element};
pub use elementwise::{Convert, Scalar, concat, map, select, zip};
pub use gemm::{LinearWeights, PackedMatrix, instruction_set, linear, matmul};
pub use half::{bf16, f16};
pub use math::{Unary, unary};
pub use storage::Storage;
pub use tensor::{Shape, Strides, Tensor, TensorError};
pub use view::broadcast_shapes;
