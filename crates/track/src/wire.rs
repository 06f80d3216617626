//! MLflow's entities as JSON: 64-bit integers are numbers, ids are strings, empty repeated fields are left out.

use std::fmt;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

/// An experiment's number; MLflow writes it as a string.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, sqlx::Type)]
#[sqlx(transparent)]
pub struct ExperimentId(pub i64);

impl fmt::Display for ExperimentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for ExperimentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ExperimentId {
    /// From text, as MLflow sends it; an empty one counts as missing.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Err(de::Error::missing_field(""));
        }
        text.parse().map(Self).map_err(|_| {
            de::Error::custom(format_args!(
                "{OWN_WORDS}Invalid experiment ID '{text}'. Experiment ID must be a valid integer."
            ))
        })
    }
}

/// A whole number that may also arrive as text, as protobuf's JSON allows for 64-bit integers and as queries demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int(pub i64);

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Int;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Int, E> {
                Ok(Int(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Int, E> {
                i64::try_from(value).map(Int).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Int, E> {
                // Exact in both directions below 2^53; beyond it the text of the number was not a whole number anyway.
                let whole = value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
                whole.then_some(Int(value as i64)).ok_or_else(|| E::invalid_value(de::Unexpected::Float(value), &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Int, E> {
                value.parse().map(Int).map_err(|_| E::invalid_value(de::Unexpected::Str(value), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A metric's value: a number, or the text `NaN`, `Infinity`, `-Infinity`. Infinities are clamped to the largest finite
/// value, as MLflow stores them, and NaN goes back as `"NaN"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Float(pub f64);

impl Serialize for Float {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_nan() { serializer.serialize_str("NaN") } else { serializer.serialize_f64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Float;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, `NaN`, `Infinity` or `-Infinity`")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Float, E> {
                Ok(Float(value as f64))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Float, E> {
                Ok(Float(value as f64))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Float, E> {
                Ok(Float(value.clamp(f64::MIN, f64::MAX)))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Float, E> {
                let number: f64 =
                    value.trim().parse().map_err(|_| E::invalid_value(de::Unexpected::Str(value), &self))?;
                self.visit_f64(number)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What begins an error of reading whose text is for the client as it is.
pub(crate) const OWN_WORDS: &str = "\u{1}";

/// A text that must be there and not be empty.
pub fn filled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let given = Option::<String>::deserialize(deserializer)?;
    given.filter(|text| !text.is_empty()).ok_or_else(|| de::Error::missing_field(""))
}

/// A value that must be there and not be `null`.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer)?.ok_or_else(|| de::Error::missing_field(""))
}

/// A value of an enumeration by name or, as protobuf's JSON allows, by number.
pub fn enum_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum NameOrNumber {
        Name(String),
        Number(i64),
    }
    Ok(Option::deserialize(deserializer)?.map(|given| match given {
        NameOrNumber::Name(name) => name,
        NameOrNumber::Number(number) => number.to_string(),
    }))
}

/// A value that may be `null`, which is its default.
pub fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A list that a query may give as one value.
pub fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany<T> {
        Many(Vec<T>),
        One(T),
    }
    Ok(match Option::<OneOrMany<T>>::deserialize(deserializer)? {
        Some(OneOrMany::Many(many)) => many,
        Some(OneOrMany::One(one)) => vec![one],
        None => Vec::new(),
    })
}

/// A list that may be `null`.
pub fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn none(text: &Option<String>) -> bool {
    text.as_deref().is_none_or(str::is_empty)
}

/// A param, or a tag of anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
#[allow(missing_docs)]
pub struct Pair {
    pub key: String,
    #[serde(default, deserialize_with = "or_default")]
    pub value: String,
}

/// An experiment.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Experiment {
    pub experiment_id: ExperimentId,
    pub name: String,
    pub artifact_location: String,
    pub lifecycle_stage: String,
    pub last_update_time: i64,
    pub creation_time: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Pair>,
    pub workspace: Workspace,
}

/// The one workspace there is, `default`, which MLflow 3 writes on an experiment.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub enum Workspace {
    /// The only one.
    #[default]
    #[serde(rename = "default")]
    Default,
}

/// What a run is.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
#[allow(missing_docs)]
pub struct RunInfo {
    /// The same id under its old name.
    #[sqlx(rename = "run_id")]
    pub run_uuid: String,
    #[sqlx(rename = "run_name")]
    pub run_name: String,
    pub experiment_id: ExperimentId,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_id: String,
    pub status: String,
    pub start_time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<i64>,
    pub artifact_uri: String,
    pub lifecycle_stage: String,
    /// Its id.
    #[sqlx(skip)]
    pub run_id: String,
}

/// What a run logged.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct RunData {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<Pair>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Pair>,
}

/// What a run read.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct RunInputs {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dataset_inputs: Vec<DatasetInput>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub model_inputs: Vec<ModelInput>,
}

/// What a run made.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct RunOutputs {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub model_outputs: Vec<ModelOutput>,
}

/// A run, whole.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Run {
    pub info: RunInfo,
    pub data: RunData,
    pub inputs: RunInputs,
    pub outputs: RunOutputs,
}

/// One value of a metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Metric {
    pub key: String,
    #[serde(deserialize_with = "present")]
    pub value: Float,
    #[serde(deserialize_with = "present_int")]
    pub timestamp: i64,
    #[serde(default, deserialize_with = "int_or_0")]
    pub step: i64,
    #[serde(default, skip_serializing_if = "none")]
    pub dataset_name: Option<String>,
    #[serde(default, skip_serializing_if = "none")]
    pub dataset_digest: Option<String>,
    #[serde(default, skip_serializing_if = "none")]
    pub model_id: Option<String>,
    #[serde(default, skip_serializing_if = "none")]
    pub run_id: Option<String>,
}

fn present_int<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    present::<D, Int>(deserializer).map(|n| n.0)
}

fn int_or_0<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    Ok(Option::<Int>::deserialize(deserializer)?.map_or(0, |n| n.0))
}

/// A dataset a run read, by digest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DatasetInput {
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Pair>,
    pub dataset: Dataset,
}

/// A dataset.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Dataset {
    pub name: String,
    pub digest: String,
    pub source_type: String,
    pub source: String,
    #[serde(default, skip_serializing_if = "none")]
    pub schema: Option<String>,
    #[serde(default, skip_serializing_if = "none")]
    pub profile: Option<String>,
}

/// A logged model that a run read.
#[derive(Debug, Clone, Serialize, Deserialize, sqlx::FromRow)]
#[allow(missing_docs)]
pub struct ModelInput {
    pub model_id: String,
}

/// A logged model that a run made.
#[derive(Debug, Clone, Serialize, Deserialize, sqlx::FromRow)]
#[allow(missing_docs)]
pub struct ModelOutput {
    pub model_id: String,
    #[serde(default, deserialize_with = "int_or_0")]
    pub step: i64,
}

/// A model that was logged, registered or not.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct LoggedModel {
    pub info: LoggedModelInfo,
    pub data: LoggedModelData,
}

/// What a logged model is.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct LoggedModelInfo {
    pub model_id: String,
    pub experiment_id: ExperimentId,
    pub name: String,
    pub creation_timestamp_ms: i64,
    pub last_updated_timestamp_ms: i64,
    pub artifact_uri: String,
    pub status: String,
    #[serde(skip_serializing_if = "none")]
    pub model_type: Option<String>,
    #[serde(skip_serializing_if = "none")]
    pub source_run_id: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Pair>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub registrations: Vec<Registration>,
}

/// A version that was registered from a logged model.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Registration {
    pub name: String,
    pub version: String,
}

/// What is known of a logged model.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct LoggedModelData {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<Pair>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
}

/// A registered model.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct RegisteredModel {
    pub name: String,
    pub creation_timestamp: i64,
    pub last_updated_timestamp: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latest_versions: Vec<ModelVersion>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Pair>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Alias>,
}

/// A movable name of a version.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Alias {
    pub alias: String,
    pub version: String,
}

/// A version of a registered model.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct ModelVersion {
    pub name: String,
    pub version: String,
    pub creation_timestamp: i64,
    pub last_updated_timestamp: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_id: String,
    pub current_stage: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    pub source: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub run_id: String,
    pub status: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Pair>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub run_link: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    #[serde(skip_serializing_if = "none")]
    pub model_id: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub model_params: Vec<ModelParam>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub model_metrics: Vec<Metric>,
}

/// A param of the logged model behind a version; here MLflow says `name`.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct ModelParam {
    pub name: String,
    pub value: String,
}

impl ModelVersion {
    /// The value of its tag `key`.
    pub fn tag(&self, key: &str) -> Option<&str> {
        self.tags.iter().find(|tag| tag.key == key).map(|tag| tag.value.as_str())
    }
}

/// One move of an alias, or the removal of it: who, when, why, and on what evidence.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct AliasMove {
    /// Counts up over the whole server.
    pub move_id: i64,
    /// Milliseconds since 1970, UTC.
    pub at: i64,
    /// Registered model.
    pub model: String,
    /// The alias; empty on the row that renames a model.
    pub alias: String,
    /// `promote`, `override` (a promotion that no verdict admits), `rollback`, `set` (plain MLflow route), `remove`,
    /// `delete-version`, `delete-model` or `rename`.
    pub action: String,
    /// Version it named before.
    #[sqlx(rename = "from_version")]
    pub from: Option<i64>,
    /// Version it names since; none if the alias was removed.
    #[sqlx(rename = "to_version")]
    pub to: Option<i64>,
    /// Who.
    #[sqlx(rename = "moved_by")]
    pub by: String,
    /// Why.
    pub why: String,
    /// Digest of the package it names since.
    pub package: Option<String>,
    /// Digest of the verdict that admitted it.
    pub verdict: Option<String>,
    /// The override that admitted it instead, as its maker wrote it.
    #[serde(rename = "override", skip_serializing_if = "Option::is_none", serialize_with = "raw_json")]
    pub overridden: Option<String>,
    /// What the rehearsal of the rollback found, as the promoter sent it.
    #[serde(serialize_with = "raw_json")]
    pub rehearsal: Option<String>,
    /// What has to be told although the gate admitted it: its verdict compares with something else than the alias named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caution: Option<String>,
    /// The name that the model had before, on the row that renames it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<String>,
}

fn raw_json<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let value: Option<serde_json::Value> = text.as_deref().and_then(|text| serde_json::from_str(text).ok());
    value.serialize(serializer)
}
