use serde::{Deserialize, Serialize};

use crate::Waiting;

/// What a text model is asked: `{"text": "…"}`, `{"tokens": [101, …, 102]}` or `{"pair": {"query": "…", "document": "…"}}` in
/// JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A text, which the package's tokenizer encodes with special tokens and cuts at its end if too long.
    Text(String),
    /// Token ids of the package's tokenizer, special tokens included, taken as they are; never cut.
    Tokens(Vec<u32>),
    /// A query and a document for a reranker, which the package's tokenizer encodes as a pair; if both together are too
    /// long, the longer one loses its end.
    Pair {
        /// What is sought.
        query: String,
        /// What may answer it.
        document: String,
    },
}

/// An [`Input`] as the program takes it: between 1 and `max_tokens` ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    pub(crate) ids: Vec<u32>,
    /// Token types of a pair; none for a text, whose types are all 0.
    pub(crate) types: Vec<u32>,
    pub(crate) truncated: bool,
}

impl Prepared {
    /// Number of tokens, special tokens included.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Whether the text was too long and lost its end.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// The token ids.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

impl Waiting for Prepared {
    fn n_tokens(&self) -> usize {
        Self::n_tokens(self)
    }
}
