use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::in_range;
use crate::{Agreement, AgreementRule, GatesError, HostedEvidence, clopper_pearson};

const MOST_REPEATS: u32 = 25;
const MOST_PROMPT_BYTES: usize = 64 << 10;
/// A judge that ignores the texts and names the first place with probability p changes its mind with the order in
/// p² + (1 − p)² of the comparisons: never in less than this share.
const CHANCE_ORDER_DECIDES: f64 = 0.5;
/// From this share of the comparisons on the order leaves so few that what they say is lost among ties, however well the judge
/// agrees with people elsewhere.
const MOST_ORDER_DECIDED: f64 = 0.9;
/// Beyond this share of replies without a score more was lost than heard, and what was lost was not drawn at random.
const MOST_UNREADABLE: f64 = 0.5;

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
    /// Of the pairs whose two texts differ, as equal ones are ties whoever judges; absent on a scale, and in verdicts from before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub different: Option<DifferentPairs>,
    /// How many different scores it gave; absent of pairs, and in verdicts from before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_different_scores: Option<usize>,
    /// With people, where some of their scores are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// What it took to ask.
    pub hosted: HostedEvidence,
}

/// What a judge said of the pairs whose two texts differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DifferentPairs {
    /// How many.
    pub n: usize,
    /// Share of their comparisons in which the better text changed with the order.
    pub order_decided: f64,
    /// Share of their comparisons in which both orders named the same better text.
    pub told_apart: f64,
}

impl JudgeEvidence {
    /// Why what it says shows nothing about the texts, in one clause; `None` where nothing speaks against it. `alpha` is the risk
    /// to take a judge for one that reads the texts although it does not.
    ///
    /// Agreement with people that is above chance (its 95 % interval lies above 0) speaks for it where the order decided many pairs, or
    /// where it finds all alike.
    pub fn doubt(&self, alpha: f64) -> Option<String> {
        let name = &self.name;
        let is_told = |agreement: &Agreement| agreement.interval[0] > 0.0;
        if let Some(agreement) = self.agreement.as_ref().filter(|agreement| !is_told(agreement)) {
            let Agreement { measure, value, interval: [low, high], .. } = agreement;
            return Some(format!(
                "judge \"{name}\" agrees with people no better than chance ({measure} {value:.3}, {low:.3} to {high:.3})"
            ));
        }
        let n_orders = if self.mode == JudgeMode::Pairwise { 2 } else { 1 };
        let n_replies = self.n_judged * self.repeats as usize * n_orders;
        if self.n_unreadable as f64 > MOST_UNREADABLE * n_replies as f64 {
            let lost = self.n_unreadable;
            return Some(format!("{lost} of the {n_replies} replies of judge \"{name}\" hold no score"));
        }
        self.pairs_doubted(alpha).or_else(|| {
            let is_always_the_same = self.n_different_scores == Some(1) && self.agreement.is_none();
            is_always_the_same.then(|| format!("judge \"{name}\" gave every answer the same score"))
        })
    }

    fn pairs_doubted(&self, alpha: f64) -> Option<String> {
        let DifferentPairs { n, order_decided, told_apart } = self.different.filter(|pairs| pairs.n > 0)?;
        // Repeats of one pair are no new evidence, so pairs are counted.
        let n_turned = ((order_decided * n as f64).round() as u64).min(n as u64);
        let most = clopper_pearson(n_turned, n as u64, 1.0 - 2.0 * alpha)[1];
        let is_proven = self.agreement.is_some();
        let told = if is_proven && order_decided >= MOST_ORDER_DECIDED {
            "so that hardly any tells anything".to_owned()
        } else if !is_proven && most >= CHANCE_ORDER_DECIDES {
            let chance = 100.0 * CHANCE_ORDER_DECIDES;
            format!("which is not shown to be below the {chance:.0} % of one that reads neither text")
        } else {
            let finds_all_alike = told_apart == 0.0 && !is_proven;
            return finds_all_alike
                .then(|| format!("judge \"{}\" told none of the {n} pairs that differ apart", self.name));
        };
        let (percent, name) = (100.0 * order_decided, &self.name);
        Some(format!(
            "the order decided {percent:.1} % of the {n} pairs that judge \"{name}\" was to tell apart, {told}"
        ))
    }
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
