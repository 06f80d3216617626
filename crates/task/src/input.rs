use std::collections::BTreeMap;
use std::sync::Arc;

use highroad_eval::Array;
use highroad_package::Truncation;
use highroad_tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::raw::row_major_bytes;
use crate::{Prompt, Waiting};

/// What a model is asked: `{"text": "…"}`, `{"tokens": [101, …, 102]}`, `{"pair": {"query": "…", "document": "…"}}`,
/// `{"image_base64": "…"}` or `{"tensors": {"x": [[0.5, 1]]}}` in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A text, which the package's tokenizer encodes with special tokens and cuts as the package says if too long. The package's
    /// default prompt goes before it, if there is one.
    Text(String),
    /// A text with another of the package's prompts before it.
    Prompted {
        /// The text alone.
        text: String,
        /// What goes before it.
        prompt: Prompt,
    },
    /// Token ids of the package's tokenizer, special tokens included, taken as they are; never cut.
    Tokens(Vec<u32>),
    /// A query and a document for a reranker, each after its prompt where the package has one, which the package's tokenizer encodes as
    /// a pair; which of them is cut if they are too long together, and where, the package says.
    Pair {
        /// What is sought.
        query: String,
        /// What may answer it.
        document: String,
    },
    /// A picture as it was encoded: PNG, JPEG or WebP.
    #[serde(rename = "image_base64")]
    Image(
        #[serde(with = "in_base64")]
        #[schemars(with = "String")]
        Arc<[u8]>,
    ),
    /// The inputs of a program, by name, as numbers of the dtypes that it takes.
    Tensors(BTreeMap<String, Array>),
}

/// Bytes as standard base64 with padding.
pub(crate) mod in_base64 {
    use std::sync::Arc;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(deserializer)?);
        bytes.map(Arc::from).map_err(|error| D::Error::custom(format!("this is not base64: {error}")))
    }
}

impl Input {
    /// The same with `prompt` before it, if it is a text and there is one.
    #[must_use]
    pub fn prompted(self, prompt: Option<&Prompt>) -> Self {
        match (self, prompt) {
            (Self::Text(text), Some(prompt)) => Self::Prompted { text, prompt: prompt.clone() },
            (input, _) => input,
        }
    }
}

/// What a request says about texts that are too long; what it leaves open, the package decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncate {
    /// Whether they may be cut.
    pub allowed: Option<bool>,
    /// Where, if they are.
    pub side: Option<CutSide>,
}

/// An end of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CutSide {
    End,
    Start,
}

impl Truncate {
    /// They are refused.
    pub const NEVER: Self = Self { allowed: Some(false), side: None };
    /// They are cut at this end.
    pub const fn at(side: CutSide) -> Self {
        Self { allowed: Some(true), side: Some(side) }
    }

    /// What that means for a package that does `policy`.
    pub fn under(self, policy: Truncation) -> Cut {
        match (self.allowed, self.side, policy) {
            (Some(false), ..) | (None, _, Truncation::Error) => Cut::Never,
            (_, Some(CutSide::Start), _) | (_, None, Truncation::Left) => Cut::Start,
            (..) => Cut::End,
        }
    }
}

/// What happens to a text that is longer than the package takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// It loses its end; a history its start.
    #[default]
    End,
    /// It loses its start.
    Start,
    /// It is refused.
    Never,
}

/// An [`Input`] as the program takes it.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(crate) row: Row,
    pub(crate) truncated: bool,
}

/// One row of the program's inputs.
#[derive(Clone, Debug)]
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
    /// All inputs of the program, in its order.
    Tensors(Vec<Tensor>),
}

impl Prepared {
    pub(crate) fn tokens(ids: Vec<u32>, types: Vec<u32>, truncated: bool) -> Self {
        Self { row: Row::Tokens { ids, types }, truncated }
    }

    pub(crate) fn pixels(values: Arc<[f32]>, n_tokens: usize) -> Self {
        Self { row: Row::Pixels { values, n_tokens }, truncated: false }
    }

    /// What the row costs a batch: its number of tokens, special tokens included; of a picture its number of patches of
    /// 16 × 16 pixels, and of tensors the elements of the largest one.
    pub fn n_tokens(&self) -> usize {
        match &self.row {
            Row::Tensors(tensors) => tensors.iter().map(Tensor::numel).max().unwrap_or(0).max(1),
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
            Row::Tensors(tensors) => {
                each(b"tensors");
                for tensor in tensors {
                    // Shapes say where a tensor ends, and the program which dtype it has.
                    each(&(tensor.ndim() as u64).to_le_bytes());
                    each(&bytes(tensor.shape().iter().map(|size| (*size as u64).to_le_bytes())));
                    each(&row_major_bytes(tensor));
                }
            }
        }
    }

    /// Whether the text was too long and was cut.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// The token ids; none of a picture or tensors.
    pub fn ids(&self) -> &[u32] {
        match &self.row {
            Row::Tokens { ids, .. } => ids,
            Row::Pixels { .. } | Row::Tensors(_) => &[],
        }
    }

    /// Token types of a pair; none otherwise.
    pub(crate) fn types(&self) -> &[u32] {
        match &self.row {
            Row::Tokens { types, .. } => types,
            Row::Pixels { .. } | Row::Tensors(_) => &[],
        }
    }

    /// `pixel_values` of a picture, channel by channel and row by row; none of a text.
    pub fn pixel_values(&self) -> &[f32] {
        match &self.row {
            Row::Tokens { .. } | Row::Tensors(_) => &[],
            Row::Pixels { values, .. } => values,
        }
    }
}

impl Waiting for Prepared {
    fn n_tokens(&self) -> usize {
        Self::n_tokens(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_decides_what_it_says_and_the_package_the_rest() {
        use Truncation::{Error, Left, Right};
        let said = |allowed, side| Truncate { allowed, side };
        for (asked, policy, cut) in [
            (Truncate::default(), Right, Cut::End),
            (Truncate::default(), Left, Cut::Start),
            (Truncate::default(), Error, Cut::Never),
            (said(Some(true), None), Error, Cut::End),
            (said(Some(true), None), Left, Cut::Start),
            (said(None, Some(CutSide::Start)), Error, Cut::Never),
            (said(None, Some(CutSide::End)), Left, Cut::End),
            (Truncate::at(CutSide::Start), Right, Cut::Start),
            (Truncate::NEVER, Left, Cut::Never),
        ] {
            assert_eq!(asked.under(policy), cut, "{asked:?} {policy:?}");
        }
    }
}
