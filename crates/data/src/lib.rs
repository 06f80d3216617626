//! Tokenizers, record readers and batches.
