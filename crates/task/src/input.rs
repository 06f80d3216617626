use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Waiting;

/// What a model is asked: `{"text": "…"}`, `{"tokens": [101, …, 102]}`, `{"pair": {"query": "…", "document": "…"}}` or
/// `{"image_base64": "…"}` in JSON.
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
    /// A picture as it was encoded: PNG, JPEG or WebP.
    #[serde(rename = "image_base64")]
    Image(#[serde(with = "in_base64")] Arc<[u8]>),
}

/// Bytes as standard base64 with padding.
mod in_base64 {
    use std::sync::Arc;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(deserializer)?);
        bytes.map(Arc::from).map_err(|error| D::Error::custom(format!("`image_base64` is not base64: {error}")))
    }
}

/// What happens to a text that is longer than the package takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// It loses its end, as in evaluation; of a pair the longer text does.
    #[default]
    End,
    /// It loses its start. A pair cannot.
    Start,
    /// It is refused.
    Never,
}

/// An [`Input`] as the program takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    pub(crate) row: Row,
    pub(crate) truncated: bool,
}

/// One row of the program's inputs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Row {
    Tokens {
        /// Between 1 and `max_tokens`.
        ids: Vec<u32>,
        /// Token types of a pair; none for a text, whose types are all 0.
        types: Vec<u32>,
    },
    Pixels {
        /// `pixel_values`, channel by channel.
        values: Arc<[f32]>,
        n_tokens: usize,
    },
}

impl Prepared {
    pub(crate) fn tokens(ids: Vec<u32>, types: Vec<u32>, truncated: bool) -> Self {
        Self { row: Row::Tokens { ids, types }, truncated }
    }

    pub(crate) fn pixels(values: Arc<[f32]>, n_tokens: usize) -> Self {
        Self { row: Row::Pixels { values, n_tokens }, truncated: false }
    }

    /// What the row costs a batch: its number of tokens, special tokens included; of a picture its number of patches of
    /// 16 × 16 pixels.
    pub fn n_tokens(&self) -> usize {
        match &self.row {
            Row::Tokens { ids, .. } => ids.len(),
            Row::Pixels { n_tokens, .. } => *n_tokens,
        }
    }

    /// Everything that decides the answer, piece by piece: two rows that give the same bytes are one.
    pub fn each_byte(&self, mut each: impl FnMut(&[u8])) {
        fn bytes<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
            values.flatten().collect()
        }
        match &self.row {
            Row::Tokens { ids, types } => {
                each(b"tokens");
                // Where the ids end and the types begin.
                each(&(ids.len() as u64).to_le_bytes());
                each(&bytes(ids.iter().map(|id| id.to_le_bytes())));
                each(&bytes(types.iter().map(|id| id.to_le_bytes())));
            }
            Row::Pixels { values, .. } => {
                each(b"pixels");
                each(&bytes(values.iter().map(|value| value.to_le_bytes())));
            }
        }
    }

    /// Whether the text was too long and lost its end.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// The token ids; none of a picture.
    pub fn ids(&self) -> &[u32] {
        match &self.row {
            Row::Tokens { ids, .. } => ids,
            Row::Pixels { .. } => &[],
        }
    }

    /// Token types of a pair; none otherwise.
    pub(crate) fn types(&self) -> &[u32] {
        match &self.row {
            Row::Tokens { types, .. } => types,
            Row::Pixels { .. } => &[],
        }
    }

    /// `pixel_values` of a picture, channel by channel and row by row; none of a text.
    pub fn pixel_values(&self) -> &[f32] {
        match &self.row {
            Row::Tokens { .. } => &[],
            Row::Pixels { values, .. } => values,
        }
    }
}

impl Waiting for Prepared {
    fn n_tokens(&self) -> usize {
        Self::n_tokens(self)
    }
}
