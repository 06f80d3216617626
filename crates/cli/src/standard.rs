//! `highroad.toml`: the standard a model repo declares, read by every command that works inside one.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use highroad_package::Digest;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};

pub mod effective;
pub mod moves;
pub mod source;

use effective::{Chain, Head};

/// Variable that tells the repo's own scripts the effective standard; `highroad.standard()` reads it.
pub const FOR_SCRIPTS: &str = "HIGHROAD_STANDARD";
/// File name of the declared standard, at the root of a repo.
pub const FILE: &str = "highroad.toml";

/// Where the published schema of `highroad.toml` lies; the starter names it for editors.
pub const SCHEMA_URL: &str =
    "https://raw.githubusercontent.com/highroad-ml/highroad/main/docs/reference/highroad.schema.json";

/// What a model repo, or the organisation whose standard it extends, declares.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Standard {
    /// What this repo makes and who answers for it.
    pub model: Model,
    /// Who may answer for models.
    #[serde(default)]
    pub owners: Owners,
    /// The environment that trains and exports.
    pub environment: Environment,
    /// How training is started; further keys are the script's own defaults.
    #[serde(default)]
    pub training: Training,
    /// Where runs are tracked.
    #[serde(default)]
    pub tracking: Tracking,
    /// What a candidate is judged on.
    pub evaluation: Evaluation,
    /// How a trained model becomes a package.
    #[serde(default)]
    pub packaging: Packaging,
    /// What production expects of the model.
    #[serde(default)]
    pub serving: Serving,
}

/// `[model]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name in the registry.
    pub name: String,
    /// Which starter this repo follows, such as `classifier`.
    #[schemars(extend("enum" = crate::commands::new::Kind::names()))]
    pub kind: String,
    /// Who answers for the model: a team or an address.
    pub owner: String,
    /// SPDX licence expression of the weights.
    pub licence: String,
    /// The file that describes the model where somebody else hosts it: then nothing is trained or packaged here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosted: Option<String>,
}

/// `[owners]`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Owners {
    /// The teams and addresses that may own a model; anybody if absent. `@example.com` stands for every address there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known: Vec<String>,
}

/// `[environment]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Accepted Python versions (PEP 440), such as `>=3.11`.
    pub python: String,
    /// Accepted versions of the framework, PyTorch, such as `>=2.9,<2.16`; any, and none, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch: Option<String>,
    /// Accepted versions of this command; any if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub highroad: Option<String>,
    /// Accepted versions of other packages, by name; only what is installed is judged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub packages: BTreeMap<String, String>,
    /// Lock file: every package pinned and hashed.
    #[serde(default = "default_lock")]
    pub lock: String,
}

/// `[training]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Training {
    /// The script that `highroad train` launches.
    #[serde(default = "default_train")]
    pub script: String,
    /// Where checkpoints go.
    #[serde(default = "default_output")]
    pub output: String,
    /// Numbers that the forward and backward passes compute in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// How several processes share the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// Seed of every generator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Whether only deterministic algorithms may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deterministic: Option<bool>,
    /// The script's other defaults (epochs, batch size, …): they belong to the script, so any key is allowed here.
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub parameters: toml::Table,
}

/// Numbers that training computes in; weights and optimizer stay f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bfloat16 where the hardware multiplies it faster, else 32-bit floats.
    Auto,
    /// 32-bit floats.
    F32,
    /// Autocast to bfloat16.
    Bf16,
    /// Autocast to float16, with a gradient scaler.
    Fp16,
}

/// How several processes share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// `ddp` where there are several processes.
    Auto,
    /// There is one process.
    Single,
    /// Each has the whole model (`DistributedDataParallel`).
    Ddp,
    /// Each has a part of it (`fully_shard`).
    Fsdp2,
}

/// `[tracking]`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tracking {
    /// Tracking server; absent means the embedded one over `.highroad/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Experiment that runs belong to; absent means the model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    /// What an hour of the machine costs, in the organisation's currency; runs then carry an estimate of their cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<f64>,
}

/// `[evaluation]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Golden set that eval and gate answer.
    pub golden: String,
    /// Digest of the one golden set that `doctor` accepts; any if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", regex(pattern = "^sha256:[0-9a-f]{64}$"))]
    pub golden_digest: Option<Digest>,
    /// The fewest cases a golden set may have.
    #[serde(default)]
    pub min_cases: usize,
    /// Gate rules.
    #[serde(default = "default_gates")]
    pub gates: String,
    /// Days after its training from which on a review calls a model stale; never if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_days: Option<u32>,
}

/// `[packaging]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Packaging {
    /// The script that `highroad export` runs.
    #[serde(default = "default_export")]
    pub script: String,
    /// The task that a package's signature must declare, such as `classify`; any if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// SPDX identifiers of the licences that weights may have; any if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub licences: Vec<String>,
    /// Longest input in tokens, special tokens included; absent where the model reads no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Largest accepted relative root mean square between eager PyTorch and the runtime.
    #[serde(default = "default_relative_rms")]
    pub relative_rms: f64,
    /// Whether a package is loaded, judged, pushed and served only where one of the trusted keys signed it.
    #[serde(default)]
    pub require_signature: bool,
    /// Public keys whose signatures count, each as `highroad keys show` prints it: `ed25519:BASE64 NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_keys: Vec<String>,
}

/// `[serving]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Serving {
    /// Alias that production follows.
    #[serde(default = "default_alias")]
    pub alias: String,
    /// Protocols that clients speak to the model; any if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<Protocol>,
    /// What an answer may cost.
    #[serde(default)]
    pub budgets: Budgets,
}

/// A protocol of `highroad serve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// OpenAI's: `/v1/moderations`, `/v1/embeddings`.
    #[serde(rename = "openai")]
    OpenAi,
    /// The Open Inference Protocol, version 2.
    OpenInference,
    /// Cohere's, which Jina's and vLLM's rerank clients speak too: `/v1/rerank`, `/v2/rerank`.
    Cohere,
    /// Text Embeddings Inference's: `/rerank`.
    Tei,
}

/// `[serving.budgets]`
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// The slowest acceptable 99th percentile of the service time of one case, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            script: default_train(),
            output: default_output(),
            precision: None,
            strategy: None,
            seed: None,
            deterministic: None,
            parameters: toml::Table::new(),
        }
    }
}

impl Default for Packaging {
    fn default() -> Self {
        Self {
            script: default_export(),
            signature: None,
            licences: Vec::new(),
            max_tokens: None,
            relative_rms: default_relative_rms(),
            require_signature: false,
            trusted_keys: Vec::new(),
        }
    }
}

impl Default for Serving {
    fn default() -> Self {
        Self { alias: default_alias(), protocols: Vec::new(), budgets: Budgets::default() }
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
    /// Errors if there is none, if a file it extends cannot be had, or if one of them is not TOML or has a key that nothing reads.
    pub fn load(root: &Path) -> anyhow::Result<Self> {
        Self::find(root)?.with_context(|| {
            format!("no `{FILE}` in {}: run this inside a repo made by `highroad new`", root.display())
        })
    }

    /// As [`Standard::load`], but `None` where the directory holds no `highroad.toml`.
    pub fn find(root: &Path) -> anyhow::Result<Option<Self>> {
        let path = root.join(FILE);
        if path.exists() { Chain::read(&path)?.standard().map(Some) } else { Ok(None) }
    }

    /// The effective standard, defaults included, as JSON in one line: the value of [`FOR_SCRIPTS`]. A file would not be there on
    /// another machine.
    pub fn for_scripts(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// The JSON Schema (draft 7, which editors know) of the files that declare a standard.
    ///
    /// It demands no key: what a file leaves out may come from the one it extends.
    pub fn schema() -> serde_json::Value {
        let of = SchemaSettings::draft07().into_generator();
        let mut schema = of.clone().into_root_schema_for::<Self>().to_value();
        let mut head = of.into_root_schema_for::<Head>().to_value();
        for part in ["properties", "definitions"] {
            if let (Some(whole), Some(more)) = (schema[part].as_object_mut(), head[part].as_object_mut()) {
                whole.append(more);
            }
        }
        demand_nothing(&mut schema);
        schema["$id"] = SCHEMA_URL.into();
        schema["title"] = FILE.into();
        schema
    }

    /// As [`Standard::load`] where a model is trained; an error where somebody else hosts it.
    pub fn load_trained(root: &Path) -> anyhow::Result<Self> {
        let standard = Self::load(root)?;
        if let Some(file) = &standard.model.hosted {
            bail!(
                "somebody else hosts this model: nothing is trained or exported here\nhint: `highroad eval {file}` and \
                 `highroad gate {file} --baseline …` judge it"
            );
        }
        Ok(standard)
    }

    /// Experiment that runs belong to.
    pub fn experiment(&self) -> &str {
        self.tracking.experiment.as_deref().unwrap_or(&self.model.name)
    }
}

fn demand_nothing(schema: &mut serde_json::Value) {
    match schema {
        serde_json::Value::Object(map) => {
            map.retain(|key, value| key != "required" || !value.is_array());
            map.values_mut().for_each(demand_nothing);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(demand_nothing),
        _ => {}
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
    use super::effective::{Chain, Layer};
    use super::source::Place;
    use super::{FILE, Standard};

    fn parse(text: &str) -> anyhow::Result<Standard> {
        Chain(vec![Layer::parse(Place::File(FILE.into()), text.to_owned())?]).standard()
    }

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
        epochs = 3
        [evaluation]
        golden = "golden/test.jsonl"
        [packaging]
        max_tokens = 128
    "#;

    #[test]
    fn what_is_not_said_has_a_default() {
        let standard = parse(MINIMAL).expect("valid");
        assert_eq!(standard.environment.lock, "requirements.txt");
        assert_eq!(standard.serving.alias, "champion");
        assert_eq!(standard.experiment(), "moderation");
        assert_eq!(standard.training.seed, Some(7));
        assert_eq!(standard.training.parameters["epochs"].as_integer(), Some(3));
        assert_eq!(standard.tracking.uri, None);
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_the_likely_key() {
        let error = parse(&MINIMAL.replace("max_tokens", "max_token")).expect_err("unknown key").to_string();
        assert!(error.contains("unknown field `max_token`"), "{error}");
        assert!(error.contains("line 16"), "{error}");
        assert!(error.ends_with("hint: did you mean `max_tokens`?"), "{error}");
    }

    #[test]
    fn scripts_find_what_was_inherited_and_left_out() {
        let text = parse(MINIMAL).expect("valid").for_scripts().expect("JSON");
        let standard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(standard["training"]["epochs"], 3);
        assert_eq!(standard["packaging"]["script"], "export.py");
    }

    #[test]
    fn a_key_unlike_any_other_gets_no_guess() {
        let error = parse(&MINIMAL.replace("max_tokens", "zebra")).expect_err("unknown key").to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn a_missing_table_is_named() {
        let error = parse("[model]\nname = \"x\"\n").expect_err("incomplete").to_string();
        assert!(error.contains("missing field"), "{error}");
    }

    #[test]
    fn the_published_schema_is_the_one_these_types_have() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/highroad.schema.json");
        let published = std::fs::read_to_string(path).expect("published");
        let current = serde_json::to_string_pretty(&Standard::schema()).expect("JSON") + "\n";
        assert!(
            published == current,
            "`highroad standard schema > docs/reference/highroad.schema.json` writes it anew"
        );
    }

    #[test]
    fn the_starter_names_the_schema_for_editors() {
        let starter = include_str!("../../../starter/trained/highroad.toml.jinja");
        assert!(starter.starts_with(&format!("#:schema {}\n", super::SCHEMA_URL)));
    }
}
