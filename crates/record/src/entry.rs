use serde::{Deserialize, Serialize};

/// One point of a metric, as MLflow has it. Two points that agree in all of it are one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Name.
    pub key: String,
    /// Value.
    #[serde(with = "value")]
    pub value: f64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Step of training.
    pub step: i64,
}

/// What a run logs. Delivering an entry twice leaves the server as delivering it once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// Points of metrics.
    Metrics(Vec<Metric>),
    /// Parameters: name and value.
    Params(Vec<(String, String)>),
    /// Tags: name and value.
    Tags(Vec<(String, String)>),
    /// A data set, as the JSON of MLflow's `log-inputs`.
    Inputs(serde_json::Value),
    /// A file beside the journal, to be uploaded under this path of the run's artifacts.
    Artifact {
        /// Name of the copy in the journal's folder.
        copy: String,
        /// Path within the run's artifacts.
        path: String,
    },
    /// The run's end: MLflow's status and milliseconds since 1970.
    End {
        /// `FINISHED`, `FAILED` or `KILLED`.
        status: String,
        /// When.
        end_time: i64,
    },
}

/// Values as text, which Rust writes and reads back to the same bits; `serde_json` does not promise that for numbers.
mod value {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(from)?;
        text.parse().map_err(|_| serde::de::Error::custom(format!("`{text}` is no metric value")))
    }
}
