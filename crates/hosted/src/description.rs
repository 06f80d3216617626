use std::fs::File;
use std::io::Read as _;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use highroad_package::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::oip::Oip;
use crate::{DescriptionError, Tokens};

/// Stands where a package's numerics id would: whoever hosts the model decides the bits, and may decide anew at any time.
pub const NUMERICS_ID: &str = "hosted: the bits are not ours";

const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_NAME_CHARS: usize = 512;
const MAX_PROMPT_BYTES: usize = 256 << 10;
const MAX_LABELS: usize = 1000;
const MAX_SAMPLES: u32 = 100;
const MAX_CONCURRENCY: u32 = 256;
const MAX_RETRIES: u32 = 20;
const MAX_SECONDS: u64 = 24 * 3600;
const MAX_OUTPUT_TOKENS: u32 = 1 << 20;
/// What JSON numbers hold exactly everywhere.
const MAX_SEED: u64 = 1 << 53;

/// A model that somebody hosts, as its file describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hosted {
    /// Format version, 1.
    pub highroad_hosted: u32,
    /// What it is for.
    pub task: HostedTask,
    /// Up to and with `/v1` or what stands for it; paths such as `/chat/completions` follow.
    pub base_url: String,
    /// What the host calls the model.
    pub model: String,
    /// The environment variable that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// The file that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// What every conversation begins with, unless it has a system message of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// What the last message of the user becomes; `{input}` is that message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// How the host is spoken to.
    #[serde(default, skip_serializing_if = "Protocol::is_usual")]
    pub protocol: Protocol,
    /// Tensors, where it speaks the Open Inference Protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oip: Option<Oip>,
    /// The label that counts as flagged, where it classifies and is to moderate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flagged: Option<String>,
    /// The labels, where it classifies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Not sent if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Most tokens of an answer.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: NonZeroU32,
    /// What the host calls that limit.
    #[serde(default, skip_serializing_if = "LimitName::is_usual")]
    pub max_tokens_name: LimitName,
    /// The first answer's; each further sample has the next one. Not sent if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How many answers are asked for each case, for `pass_at_K`.
    #[serde(default = "default_samples")]
    pub samples: NonZeroU32,
    /// Whether to ask for the probabilities of the answer's tokens, for `perplexity`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub logprobs: bool,
    /// Whether the host holds answers to a JSON schema (`response_format`), for labels and judges.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub structured: bool,
    /// How it is asked.
    #[serde(default)]
    pub limits: Limits,
    /// What it costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}

/// What a hosted model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostedTask {
    /// Writes: `/chat/completions`.
    Generate,
    /// Writes one of `labels`: `/chat/completions`.
    Classify,
    /// Flags or not, as the second or the first of two `labels`: `/moderations`.
    Moderate,
    /// Gives vectors: `/embeddings`.
    Embed,
    /// Orders documents: `/rerank`.
    Rerank,
    /// Takes tensors and gives tensors, which are passed on as they are.
    Infer,
}

/// How a host is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "HostedProtocol")]
pub enum Protocol {
    /// OpenAI's API, with Cohere's and Jina's `/rerank`.
    #[default]
    Openai,
    /// Text Embeddings Inference: `/embed`, `/predict`, `/rerank`.
    Tei,
    /// The Open Inference Protocol v2: Triton, KServe, MLServer, OpenVINO Model Server, another Highroad.
    Oip,
}

impl Protocol {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What hosts call the most tokens of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum LimitName {
    #[default]
    MaxTokens,
    MaxCompletionTokens,
}

/// How a hosted model is asked. No part of what it is: another limit gives the same answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "HostedLimits")]
pub struct Limits {
    /// Requests under way at once.
    pub concurrency: NonZeroU32,
    /// From sending a request to the end of its reply.
    pub timeout_s: u64,
    /// To connect.
    pub connect_timeout_s: u64,
    /// Tries after the first.
    pub retries: u32,
    /// Waiting between the tries of one request, all together: what `Retry-After` asks for, else 0.5 s doubled each time, to
    /// 30 s, with jitter.
    pub wait_s: u64,
}

/// What a hosted model costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Such as `USD`.
    pub currency: String,
    /// Of a million tokens that are sent.
    pub input_per_million: f64,
    /// Of a million tokens that are written.
    pub output_per_million: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrency: NonZeroU32::new(4).expect("4 is not 0"),
            timeout_s: 120,
            connect_timeout_s: 10,
            retries: 5,
            wait_s: 120,
        }
    }
}

impl LimitName {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// The field of a request.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

impl Price {
    /// Of so many tokens.
    pub fn of(&self, tokens: Tokens) -> f64 {
        (tokens.input as f64 * self.input_per_million + tokens.output as f64 * self.output_per_million) / 1e6
    }
}

impl Limits {
    /// `timeout_s`
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }
}

fn default_max_tokens() -> NonZeroU32 {
    NonZeroU32::new(512).expect("512 is not 0")
}

fn default_samples() -> NonZeroU32 {
    NonZeroU32::MIN
}

impl Hosted {
    /// Reads a description; relative paths in it are beside it. Unknown keys are errors, and so is a number out of its range.
    pub fn read(path: &Path) -> Result<Self, DescriptionError> {
        let io = |source| DescriptionError::Io { path: path.to_owned(), source };
        let mut text = String::new();
        File::open(path).map_err(io)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(DescriptionError::TooLarge { path: path.to_owned(), limit: MAX_FILE_BYTES });
        }
        let mut hosted =
            Self::parse(&text).map_err(|reason| DescriptionError::Syntax { path: path.to_owned(), reason })?;
        let beside = |file: PathBuf| path.parent().map_or(file.clone(), |folder| folder.join(&file));
        hosted.api_key_file = hosted.api_key_file.map(beside);
        if let Some(oip) = &mut hosted.oip {
            let opened = oip.open(path.parent().unwrap_or(Path::new("")), hosted.task);
            opened.map_err(|reason| DescriptionError::Syntax { path: path.to_owned(), reason })?;
        }
        Ok(hosted)
    }

    /// The same from text; a problem in words if it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let hosted: Self = toml::from_str(text).map_err(|error| in_words(text, &error))?;
        hosted.check()?;
        Ok(hosted)
    }

    /// SHA-256 of the canonical JSON (RFC 8785) of what decides the answers: all but the key's place, `[limits]` and `[price]`.
    pub fn digest(&self) -> Digest {
        let mut identity = serde_json::to_value(self).expect("a description is plain data with text keys");
        if let Some(keys) = identity.as_object_mut() {
            ["api_key_env", "api_key_file", "limits", "price"].iter().for_each(|key| drop(keys.remove(*key)));
        }
        Digest::of(&serde_json_canonicalizer::to_vec(&identity).expect("a value is canonical JSON"))
    }

    fn check(&self) -> Result<(), String> {
        self.check_place()?;
        self.check_texts()?;
        self.check_task()?;
        self.check_protocol()?;
        self.check_numbers()?;
        self.price.as_ref().map_or(Ok(()), Price::check)
    }

    fn check_place(&self) -> Result<(), String> {
        if self.highroad_hosted != 1 {
            return Err(format!("highroad_hosted = {}: this version reads 1", self.highroad_hosted));
        }
        let url = reqwest::Url::parse(&self.base_url).map_err(|error| format!("base_url: {error}"))?;
        if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
            return Err("base_url must begin with http:// or https:// and name a host".to_owned());
        }
        let authority = self.base_url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
        if authority.ends_with(':') {
            return Err(format!("base_url: `{authority}` has no port behind its colon"));
        }
        // A secret in an address ends up in logs, verdicts and shell histories.
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err("base_url takes no user, password, query or fragment: a key belongs into `api_key_env` or \
                        `api_key_file`"
                .to_owned());
        }
        // Whatever is written there instead is not told: it may be the key.
        if self.api_key_env.as_ref().is_some_and(|name| !is_name_of_variable(name)) {
            return Err("api_key_env must be the name of an environment variable, not the key itself".to_owned());
        }
        if self.api_key_env.is_some() && self.api_key_file.is_some() {
            return Err("`api_key_env` and `api_key_file` are two places for one key".to_owned());
        }
        Ok(())
    }

    fn check_texts(&self) -> Result<(), String> {
        let names = [
            ("base_url", Some(&self.base_url)),
            ("model", Some(&self.model)),
            ("api_key_env", self.api_key_env.as_ref()),
        ];
        let labels = self.labels.iter().map(|label| ("a label", Some(label)));
        for (key, name) in names.into_iter().chain(labels).filter_map(|(key, name)| Some((key, name?))) {
            if name.trim().is_empty() || name.chars().count() > MAX_NAME_CHARS || name.contains(char::is_control) {
                return Err(format!("{key} must be 1 to {MAX_NAME_CHARS} printable characters"));
            }
        }
        for (key, text) in [("system", &self.system), ("prompt", &self.prompt)] {
            if text.as_ref().is_some_and(|text| text.len() > MAX_PROMPT_BYTES) {
                return Err(format!("{key} is over {MAX_PROMPT_BYTES} bytes"));
            }
        }
        match &self.prompt {
            Some(prompt) if !prompt.contains("{input}") => {
                Err("prompt must hold {input}, the text it asks about".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn check_task(&self) -> Result<(), String> {
        let n_labels = self.labels.len();
        let distinct: std::collections::BTreeSet<_> = self.labels.iter().collect();
        match self.task {
            HostedTask::Classify if !(2..=MAX_LABELS).contains(&n_labels) => {
                Err(format!("a model that classifies needs 2 to {MAX_LABELS} `labels`"))
            }
            HostedTask::Moderate if n_labels != 2 => {
                Err("a model that moderates needs two `labels`: that of a text that passes, then that of a flagged one"
                    .to_owned())
            }
            HostedTask::Classify | HostedTask::Moderate if distinct.len() < n_labels => {
                Err("a label is given twice".to_owned())
            }
            HostedTask::Classify | HostedTask::Moderate => Ok(()),
            _ if n_labels > 0 => Err("only a model that classifies or moderates takes `labels`".to_owned()),
            _ => Ok(()),
        }
    }

    fn check_protocol(&self) -> Result<(), String> {
        use HostedTask::{Classify, Embed, Infer, Rerank};
        if self.flagged.as_ref().is_some_and(|label| self.task != Classify || !self.labels.contains(label)) {
            return Err("`flagged` is one of the `labels` of a model that classifies".to_owned());
        }
        match (self.protocol, self.task, &self.oip) {
            (Protocol::Oip, Classify | Embed | Rerank | Infer, _) if self.model.contains(['/', '?', '#', '%']) => {
                Err("a model of the Open Inference Protocol is one part of a path".to_owned())
            }
            (Protocol::Oip, Infer, None) => Ok(()),
            (Protocol::Oip, Classify | Embed | Rerank | Infer, Some(oip)) => oip.check(self.task),
            (Protocol::Oip, Classify | Embed | Rerank, None) => {
                Err("protocol = \"oip\" needs [oip], which names the tensors".to_owned())
            }
            (Protocol::Tei, Classify | Embed | Rerank, None) | (Protocol::Openai, _, None) if self.task != Infer => {
                Ok(())
            }
            (Protocol::Openai | Protocol::Tei, _, Some(_)) => Err("[oip] is of `protocol = \"oip\"`".to_owned()),
            _ => Err("the protocol has no such task".to_owned()),
        }
    }

    fn check_numbers(&self) -> Result<(), String> {
        let Limits { concurrency, timeout_s, connect_timeout_s, retries, wait_s } = self.limits;
        if self.temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
            return Err("temperature is out of range: expected 0 to 2".to_owned());
        }
        let ranges = [
            ("max_tokens", u64::from(self.max_tokens.get()), 1, u64::from(MAX_OUTPUT_TOKENS)),
            ("samples", u64::from(self.samples.get()), 1, u64::from(MAX_SAMPLES)),
            ("seed", self.seed.unwrap_or(0), 0, MAX_SEED),
            ("limits.concurrency", u64::from(concurrency.get()), 1, u64::from(MAX_CONCURRENCY)),
            ("limits.timeout_s", timeout_s, 1, MAX_SECONDS),
            ("limits.connect_timeout_s", connect_timeout_s, 1, MAX_SECONDS),
            ("limits.retries", u64::from(retries), 0, u64::from(MAX_RETRIES)),
            ("limits.wait_s", wait_s, 0, MAX_SECONDS),
        ];
        match ranges.into_iter().find(|(_, value, least, most)| value < least || value > most) {
            Some((key, value, least, most)) => {
                Err(format!("{key} = {value} is out of range: expected {least} to {most}"))
            }
            None => Ok(()),
        }
    }
}

/// What is wrong and in which line, without the line: it may hold a key that somebody wrote where none belongs.
fn in_words(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let place = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1)).unwrap_or_default();
    format!("{place}{}", error.message())
}

fn is_name_of_variable(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

impl Price {
    fn check(&self) -> Result<(), String> {
        let is_price = |price: f64| (0.0..=1e9).contains(&price);
        if !is_price(self.input_per_million) || !is_price(self.output_per_million) {
            return Err("a price is out of range: expected 0 or more".to_owned());
        }
        let fits =
            (1..=8).contains(&self.currency.len()) && self.currency.bytes().all(|byte| byte.is_ascii_alphabetic());
        if fits { Ok(()) } else { Err("price.currency must be letters such as `USD`".to_owned()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LEAST: &str = "highroad_hosted = 1\ntask = 'generate'\nbase_url = 'https://models.example/v1'\nmodel = 'm'\n";

    fn refused(more: &str) -> String {
        Hosted::parse(&format!("{LEAST}{more}")).unwrap_err()
    }

    #[test]
    fn what_decides_no_answer_is_no_part_of_the_identity() {
        let digest = |more: &str| Hosted::parse(&format!("{LEAST}{more}")).unwrap().digest();
        let price = "[price]\ncurrency = 'USD'\ninput_per_million = 1\noutput_per_million = 2\n";
        assert_eq!(digest(""), digest(&format!("api_key_env = 'KEY'\n[limits]\nretries = 1\n{price}")));
        assert_eq!(digest(""), digest("max_tokens = 512\nsamples = 1\nlogprobs = false"));
        let others = ["seed = 1", "temperature = 0.0", "system = 'Be kind.'", "samples = 2", "structured = true"];
        let distinct: std::collections::BTreeSet<_> =
            others.iter().map(|more| digest(more)).chain([digest("")]).collect();
        assert_eq!(distinct.len(), others.len() + 1);
    }

    #[test]
    fn what_means_nothing_is_refused_with_a_reason() {
        for (more, reason) in [
            ("api_key = 'sk-1'", "line 5: unknown field `api_key`"),
            ("api_key_env = 'sk-1'", "must be the name of an environment variable"),
            ("prompt = 'no place'", "must hold {input}"),
            ("temperature = nan", "temperature is out of range"),
            ("samples = 101", "samples = 101 is out of range"),
            ("labels = ['a', 'b']", "only a model that classifies"),
            ("api_key_env = 'A'\napi_key_file = 'b'", "two places"),
            ("[limits]\nconcurrency = 0", "nonzero"),
            ("[price]\ncurrency = 'USD'\ninput_per_million = -1\noutput_per_million = 1", "price is out of range"),
        ] {
            assert!(refused(more).contains(reason), "{more}: {}", refused(more));
            assert!(!refused(more).contains("sk-1"));
        }
        let of = |task: &str, url: &str| {
            Hosted::parse(&format!("highroad_hosted = 1\ntask = '{task}'\nbase_url = '{url}'\nmodel = 'm'"))
        };
        assert!(of("generate", "https://me:secret@models.example").unwrap_err().contains("no user, password"));
        assert!(of("generate", "http://127.0.0.1:/v1").unwrap_err().contains("no port behind its colon"));
        assert!(of("generate", "http://[::1]/v1").is_ok());
        assert!(of("generate", "file:///etc/passwd").unwrap_err().contains("http"));
        assert!(of("classify", "https://models.example").unwrap_err().contains("`labels`"));
    }
}
