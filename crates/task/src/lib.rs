//! What a model is for: predictors that turn inputs into answers.
//!
//! Parity check, evaluation, gate and serving all go through [`Predictor`]: one tokenisation, one softmax, one pooling.

mod answer;
mod error;
mod input;
mod predictor;

pub use answer::Answer;
pub use error::TaskError;
pub use input::{Input, Prepared};
pub use predictor::{Predictor, PredictorOptions};
