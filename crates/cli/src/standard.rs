//! `highroad.toml`: the standard a model repo declares, read by every command that works inside one.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

/// File name of the declared standard, at the root of a repo.
pub const FILE: &str = "highroad.toml";

/// What `highroad.toml` says. Every table is documented in `docs/reference/highroad-toml.md`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "some keys are read by the repo's own scripts; all of them are checked here")]
pub struct Standard {
    /// What this repo makes and who answers for it.
    pub model: Model,
    /// The Python environment that trains and exports.
    pub environment: Environment,
    /// How training is started; further keys are the script's own defaults.
    pub training: Training,
    /// Where runs are tracked.
    #[serde(default)]
    pub tracking: Tracking,
    /// What a candidate is judged on.
    pub evaluation: Evaluation,
    /// How a trained model becomes a package.
    pub packaging: Packaging,
    /// What production expects of the model.
    #[serde(default)]
    pub serving: Serving,
}

/// `[model]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "some keys are read by the repo's own scripts; all of them are checked here")]
pub struct Model {
    /// Name in the registry.
    pub name: String,
    /// Which starter this repo follows: `classifier`.
    pub kind: String,
    /// Who answers for the model: a team or an address.
    pub owner: String,
    /// SPDX licence expression of the weights.
    pub licence: String,
}

/// `[environment]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Accepted Python versions, such as `>=3.11`.
    pub python: String,
    /// Accepted torch versions, such as `>=2.9,<2.16`.
    pub torch: String,
    /// Lock file: every package pinned and hashed.
    #[serde(default = "default_lock")]
    pub lock: String,
}

/// `[training]`
#[derive(Clone, Debug, Deserialize)]
pub struct Training {
    /// The script that `highroad train` launches.
    #[serde(default = "default_train")]
    pub script: String,
    /// Where checkpoints go.
    #[serde(default = "default_output")]
    pub output: String,
    /// The script's own defaults (seed, epochs, batch size, …): they belong to the script, so any key is allowed here.
    #[serde(flatten)]
    pub parameters: toml::Table,
}

/// `[tracking]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracking {
    /// Tracking server; absent means the embedded one over `.highroad/`.
    pub uri: Option<String>,
    /// Experiment that runs belong to; absent means the model's name.
    pub experiment: Option<String>,
}

/// `[evaluation]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Golden set that eval and gate answer.
    pub golden: String,
    /// Gate rules.
    #[serde(default = "default_gates")]
    pub gates: String,
}

/// `[packaging]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "some keys are read by the repo's own scripts; all of them are checked here")]
pub struct Packaging {
    /// The script that `highroad export` runs.
    #[serde(default = "default_export")]
    pub script: String,
    /// Longest input in tokens, special tokens included.
    pub max_tokens: u32,
    /// Largest accepted relative root mean square between eager PyTorch and the runtime.
    #[serde(default = "default_relative_rms")]
    pub relative_rms: f64,
}

/// `[serving]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "some keys are read by the repo's own scripts; all of them are checked here")]
pub struct Serving {
    /// Alias that production follows.
    #[serde(default = "default_alias")]
    pub alias: String,
}

impl Default for Serving {
    fn default() -> Self {
        Self { alias: default_alias() }
    }
}

fn default_lock() -> String {
    "requirements.txt".to_owned()
}

fn default_train() -> String {
    "train.py".to_owned()
}

fn default_output() -> String {
    "runs".to_owned()
}

fn default_gates() -> String {
    "gates.toml".to_owned()
}

fn default_export() -> String {
    "export.py".to_owned()
}

fn default_relative_rms() -> f64 {
    1e-5
}

fn default_alias() -> String {
    "champion".to_owned()
}

impl Standard {
    /// The standard of the repo at `root`.
    ///
    /// Errors if there is none, it is not TOML, or it has a key that nothing reads.
    pub fn load(root: &Path) -> anyhow::Result<Self> {
        Self::find(root)?.with_context(|| {
            format!("no `{FILE}` in {}: run this inside a repo made by `highroad new`", root.display())
        })
    }

    /// As [`Standard::load`], but `None` where the directory holds no `highroad.toml`.
    pub fn find(root: &Path) -> anyhow::Result<Option<Self>> {
        let path = root.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        toml::from_str(text).map_err(|error| {
            let hint = did_you_mean(error.message()).map(|key| format!("\nhint: did you mean `{key}`?"));
            anyhow::anyhow!("`{FILE}`: {}{}", error.to_string().trim_end(), hint.unwrap_or_default())
        })
    }

    /// Experiment that runs belong to.
    pub fn experiment(&self) -> &str {
        self.tracking.experiment.as_deref().unwrap_or(&self.model.name)
    }
}

/// The known key closest to the unknown one that serde's message names.
///
/// The message is ``unknown field `x`, expected one of `a`, `b` ``: the list of known keys is the structs above, and
/// reading it back from the message keeps it the only list.
fn did_you_mean(message: &str) -> Option<String> {
    let mut names = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    let closeness = |known: &str| strsim::jaro_winkler(unknown, known);
    let best = names.max_by(|a, b| closeness(a).total_cmp(&closeness(b)))?;
    (closeness(best) > 0.7).then(|| best.to_owned())
}

#[cfg(test)]
mod tests {
    use super::Standard;

    const MINIMAL: &str = r#"
        [model]
        name = "moderation"
        kind = "classifier"
        owner = "safety team"
        licence = "Apache-2.0"
        [environment]
        python = ">=3.11"
        torch = ">=2.9,<2.16"
        [training]
        seed = 7
        [evaluation]
        golden = "golden/test.jsonl"
        [packaging]
        max_tokens = 128
    "#;

    #[test]
    fn what_is_not_said_has_a_default() {
        let standard = Standard::parse(MINIMAL).expect("valid");
        assert_eq!(standard.environment.lock, "requirements.txt");
        assert_eq!(standard.serving.alias, "champion");
        assert_eq!(standard.experiment(), "moderation");
        assert_eq!(standard.training.parameters["seed"].as_integer(), Some(7));
        assert_eq!(standard.tracking.uri, None);
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_the_likely_key() {
        let error = Standard::parse(&MINIMAL.replace("max_tokens", "max_token")).expect_err("unknown key").to_string();
        assert!(error.contains("unknown field `max_token`"), "{error}");
        assert!(error.contains("line 15"), "{error}");
        assert!(error.ends_with("hint: did you mean `max_tokens`?"), "{error}");
    }

    #[test]
    fn a_key_unlike_any_other_gets_no_guess() {
        let error = Standard::parse(&MINIMAL.replace("max_tokens", "zebra")).expect_err("unknown key").to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn a_missing_table_is_named() {
        let error = Standard::parse("[model]\nname = \"x\"\n").expect_err("incomplete").to_string();
        assert!(error.contains("missing field"), "{error}");
    }
}
