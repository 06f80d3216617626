//! Tokenizers, pictures, record readers, batches and the training data loader: what lies between a text or a picture and a tensor.
//! Same input, same batches, everywhere.

mod batches;
mod encoder;
mod field;
mod files;
mod image;
mod json_rows;
mod loader;
mod plan;
mod records;
mod table;
mod threads;
mod tokenizer;

pub use batches::{Budget, batches, in_order};
pub use encoder::{Encoder, PairCut, PairCutWhich, Side};
pub use field::{Field, Kind, MAX_TEXT_BYTES};
pub use files::{Local, Place, resolve};
pub use image::{Filter, Image, ImageError, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE, Region};
pub use json_rows::parquet_to_jsonl;
pub use loader::{Array, Batch, Loader, LoaderOptions, State, Text};
pub use plan::{Layout, Plan, Remainder, Segment, Size, TooFewRows};
pub use records::{MAX_LINE_BYTES, RecordError, Records};
pub use table::{BadRecord, DataError, FilePrint, Format, MAX_LISTED_BAD, MAX_RECORD_BYTES, OnBad, Table};
pub use threads::in_parallel;
pub use tokenizer::{Encoded, EncodedPair, Piece, Special, Tokenizer, TokenizerError};
