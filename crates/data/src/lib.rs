//! Tokenizers, record readers and batches: what lies between a text and a tensor. Same input, same batches, everywhere.

mod batches;
mod records;
mod tokenizer;

pub use batches::{Budget, batches, in_order};
pub use records::{MAX_LINE_BYTES, RecordError, Records};
pub use tokenizer::{Encoded, Tokenizer, TokenizerError};
