use highroad_task::OutputTensor;
use serde::{Deserialize, Serialize};

/// What a hosted model answered to one question, with all that is worth keeping about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// The answer.
    pub said: Said,
    /// Tokens, as the host counted them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Milliseconds from sending the request that was answered to the end of its reply.
    pub ms: f64,
    /// Tries it took.
    pub n_tries: u32,
    /// The model and build that the host says answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_by: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum Said {
    Text {
        text: String,
        /// Whether it ended at the most tokens an answer may have.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cut: bool,
        /// The sum of its tokens' log-probabilities, and how many there are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        likelihood: Option<(f64, u32)>,
        /// Why it ended, as the host says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        finish_reason: Option<String>,
        /// Whether the host says that it is a refusal.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        refused: bool,
    },
    /// The bits of an f32 vector, as JSON numbers would not keep them.
    Vector { bits: Vec<u32> },
    /// The largest score of a category, and whether the text was flagged.
    Moderation { flagged: bool, score: f64 },
    /// The bits of an f32 logit for each label.
    Logits { bits: Vec<u32> },
    /// A score from 0 to 1 for each label.
    Scores { scores: Vec<f64> },
    /// The relevance of each document, in the order they were sent.
    Relevances { scores: Vec<f64> },
    /// Every output but texts, with its bits.
    Tensors { outputs: Vec<OutputTensor> },
}

/// Tokens as the host counted them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Usage {
    pub input: u64,
    pub output: u64,
}
