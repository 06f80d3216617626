//! What a model is for: predictors that turn inputs into answers.
//!
//! Parity check, evaluation, gate and serving all go through [`Predictor`]: one tokenisation, one softmax, one pooling.

mod answer;
mod batching;
mod error;
mod glimpse;
mod image;
mod input;
mod parity;
mod predictor;
mod prompt;
mod signature;
mod tensor_glimpse;
mod tensors;
pub mod vector;

pub use answer::{Answer, Ranked, apart, class_of_logits, joined, ranked};
pub use batching::{Flow, RunCost, TurnQueue, Waiting};
pub use error::TaskError;
pub use glimpse::{Glimpse, Written};
pub use highroad_data::{Piece, Special};
pub use highroad_eval::Array;
pub use image::pixel_values;
pub use input::{Cut, CutSide, Input, Prepared, Truncate};
pub use parity::{ParityCase, ParityReport, check_cases, check_parity_on, verify_parity};
pub use predictor::{Engine, Predictor, PredictorOptions};
pub use prompt::{Prompt, Purpose, document_prompt};
pub use signature::Sharing;
pub use tensor_glimpse::{MetShapes, MetTensors, TensorGlimpse};
pub use tensors::OutputTensor;

/// What a caller needs to run [`Predictor::program`] itself, past the task: servers that take program tensors.
pub mod raw {
    pub use highroad_runtime::graph::Dim;
    pub use highroad_runtime::{Program, RunError, RunOptions, TensorSpec, numerics_id};
    pub use highroad_tensor::{DType, Storage, Tensor, TensorError};

    pub use crate::tensors::{arrays_of, is_finite, of_arrays, row_major_bytes, tensors_digest};
}
