//! The wire protocols: pure conversions between bodies and the core's inputs and answers.

pub mod cohere;
pub mod oip;
pub mod openai;
pub mod rerank;
pub mod tei;
