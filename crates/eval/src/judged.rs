use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::in_range;
use crate::{Agreement, AgreementRule, GatesError, HostedEvidence};

const MOST_REPEATS: u32 = 25;
const MOST_PROMPT_BYTES: usize = 64 << 10;

/// A hosted model that judges texts, as `gates.toml` declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeRule {
    /// The file that describes the model, beside `gates.toml`.
    pub model: String,
    /// What it is asked, with `{input}`, `{reference}` and `{answer}`, or `{a}` and `{b}` for two answers.
    pub prompt: String,
    /// What it says.
    #[serde(default)]
    pub mode: JudgeMode,
    /// The least and the largest whole score.
    #[serde(default = "default_scale")]
    pub scale: [i32; 2],
    /// How often each answer is judged, each time asked anew.
    #[serde(default = "default_repeats")]
    pub repeats: u32,
    /// The file of answers that people scored, beside `gates.toml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// The least agreement with these people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<AgreementRule>,
}

/// What a judge says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JudgeMode {
    /// A score for one answer.
    #[default]
    Scale,
    /// Which of two answers is better, asked in both orders.
    Pairwise,
}

/// Who judged, and how much that is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgeEvidence {
    /// What `gates.toml` calls it.
    pub name: String,
    /// Digest of the description of its model.
    pub model: String,
    /// Digest of its prompt.
    pub prompt: String,
    /// What it says.
    pub mode: JudgeMode,
    /// The least and the largest score; 0 to 1 of a pair.
    pub scale: [i32; 2],
    /// How often each answer was judged.
    pub repeats: u32,
    /// Answers, or pairs, that were judged.
    pub n_judged: usize,
    /// Replies in which no score could be read; they count nowhere.
    pub n_unreadable: usize,
    /// Share of the answers, or pairs, on which the repeats do not all say the same.
    pub self_disagreement: f64,
    /// Share of the comparisons in which the better answer changed with the order; each is a tie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position_inconsistency: Option<f64>,
    /// With people, where some of their scores are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// What it took to ask.
    pub hosted: HostedEvidence,
}

fn default_scale() -> [i32; 2] {
    [1, 5]
}

fn default_repeats() -> u32 {
    3
}

impl JudgeRule {
    pub(crate) fn check(&self, name: &str) -> Result<(), GatesError> {
        let wrong = |problem: String| Err(GatesError::Judge { name: name.to_owned(), problem });
        let placeholders: &[&str] = match self.mode {
            JudgeMode::Scale => &["{answer}"],
            JudgeMode::Pairwise => &["{a}", "{b}"],
        };
        if let Some(missing) = placeholders.iter().find(|place| !self.prompt.contains(**place)) {
            return wrong(format!("its prompt must hold {missing}"));
        }
        if self.prompt.len() > MOST_PROMPT_BYTES {
            return wrong(format!("its prompt is over {MOST_PROMPT_BYTES} bytes"));
        }
        let [least, most] = self.scale;
        if least >= most || i64::from(most) - i64::from(least) > 1000 {
            return wrong("its scale must be two whole numbers, the smaller first, at most 1000 apart".to_owned());
        }
        if !(1..=MOST_REPEATS).contains(&self.repeats) {
            return wrong(format!("repeats = {} is out of range: expected 1 to {MOST_REPEATS}", self.repeats));
        }
        match (&self.labels, self.agreement) {
            (None, Some(_)) => wrong("`agreement` needs `labels`, the answers that people scored".to_owned()),
            (_, Some(AgreementRule { floor, .. })) => in_range("agreement.floor", floor, -1.0..=1.0, "-1 to 1"),
            _ => Ok(()),
        }
    }
}
