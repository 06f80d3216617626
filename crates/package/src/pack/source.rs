//! `package.toml`: what a person or `highroad.export` says about the files beside it.

use serde::Deserialize;

use super::bad;
use crate::{Check, PackageError, Provenance, Task};

/// The description in a package source; the package has `manifest.json` instead.
pub(super) const SOURCE: &str = "package.toml";
/// Longest `package.toml`.
pub(super) const MAX_SOURCE_BYTES: u64 = 1 << 20;

/// Agreement that f32 kernels reach with PyTorch.
const DEFAULT_CHECK: Check = Check { relative_rms: 1e-5 };
pub(super) struct Source {
    pub name: String,
    pub task: Task,
    pub licence: String,
    pub owner: String,
    pub check: Check,
    pub provenance: Provenance,
}

#[derive(Deserialize)]
struct Fields {
    name: String,
    task: Task,
    licence: String,
    owner: String,
    #[serde(default)]
    parity: Option<Check>,
    #[serde(default)]
    provenance: Provenance,
}

impl Source {
    /// Reads a `package.toml`. Errors on unknown keys, with the nearest known one, and on missing or mistyped ones.
    pub fn parse(bytes: &[u8]) -> Result<Self, PackageError> {
        let text = std::str::from_utf8(bytes).map_err(|e| bad(SOURCE, e))?;
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| bad(SOURCE, e.to_string().trim_end()))?;
        check_keys(&table)?;
        let fields: Fields = table.try_into().map_err(|e: toml::de::Error| bad(SOURCE, e.to_string().trim_end()))?;
        let Fields { name, task, licence, owner, parity, provenance } = fields;
        Ok(Self { name, task, licence, owner, check: parity.unwrap_or(DEFAULT_CHECK), provenance })
    }
}

const EMBED_KEYS: [&str; 8] = [
    "task",
    "max_tokens",
    "truncation",
    "dimensions",
    "normalized",
    "matryoshka_dimensions",
    "prompts",
    "default_prompt_name",
];
const IMAGE_KEYS: [&str; 9] =
    ["height", "width", "resize", "interpolation", "channels", "orientation", "rescale", "mean", "std"];

fn check_keys(table: &toml::Table) -> Result<(), PackageError> {
    refuse_unknown("", table, &["name", "licence", "owner", "task", "parity", "provenance"])?;
    let task = table.get("task").and_then(|task| task.get("task")).and_then(toml::Value::as_str);
    let task_keys: &[&str] = match task {
        Some("classify") => &[
            "task",
            "max_tokens",
            "truncation",
            "pair_truncation",
            "labels",
            "flagged",
            "pairs",
            "thresholds",
            "image",
        ],
        Some("embed") => &EMBED_KEYS,
        Some("rerank") => &["task", "max_tokens", "truncation", "pair_truncation", "prompts"],
        Some("recommend") => &["task", "max_tokens", "truncation", "items"],
        Some("tensors") => &["task", "outputs"],
        Some(other) => {
            return Err(bad(
                SOURCE,
                format!(
                    "task `{other}` is unknown; known are `classify`, `embed`, `rerank`, `recommend` and `tensors`"
                ),
            ));
        }
        None => {
            return Err(bad(
                SOURCE,
                "`[task]` must say `task = \"classify\"`, `\"embed\"`, `\"rerank\"`, `\"recommend\"` or `\"tensors\"`",
            ));
        }
    };
    refuse_unknown_in(table, "task", task_keys)?;
    if let Some(image) = table.get("task").and_then(|task| task.get("image")).and_then(toml::Value::as_table) {
        refuse_unknown("task.image.", image, &IMAGE_KEYS)?;
    }
    refuse_unknown_in(table, "parity", &["relative_rms"])?;
    refuse_unknown_in(table, "provenance", &["run_id", "git_commit", "environment", "data", "data_roles", "torch"])
}

fn refuse_unknown_in(table: &toml::Table, name: &str, known: &[&str]) -> Result<(), PackageError> {
    match table.get(name).and_then(toml::Value::as_table) {
        Some(inner) => refuse_unknown(&format!("{name}."), inner, known),
        None => Ok(()),
    }
}

fn refuse_unknown(prefix: &str, table: &toml::Table, known: &[&str]) -> Result<(), PackageError> {
    let Some(unknown) = table.keys().find(|key| !known.contains(&key.as_str())) else {
        return Ok(());
    };
    let hint = match nearest(unknown, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known are {}", known.join(", ")),
    };
    Err(bad(SOURCE, format!("unknown key `{prefix}{unknown}`; {hint}")))
}

/// The one of `known` that `word` is probably a slip of.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let distance = |candidate: &str| strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase());
    let near = known.iter().copied().min_by_key(|candidate| distance(candidate))?;
    (distance(near) <= 2).then_some(near)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CLASSIFY: &str = r#"
name = "moderation"
licence = "Apache-2.0"
owner = "trust@example.com"
[task]
task = "classify"
labels = ["benign", "injection"]
max_tokens = 256
"#;

    fn error(text: &str) -> String {
        match Source::parse(text.as_bytes()) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn agreement_is_1e_5_unless_told() {
        let source = Source::parse(CLASSIFY.as_bytes()).unwrap();
        assert_eq!((source.check, source.task.max_tokens), (Check { relative_rms: 1e-5 }, 256));
        let told = Source::parse(format!("{CLASSIFY}[parity]\nrelative_rms = 1e-4\n").as_bytes()).unwrap();
        assert_eq!(told.check.relative_rms, 1e-4);
    }

    #[test]
    fn an_unknown_key_gets_a_suggestion() {
        let text = CLASSIFY.replace("licence", "license");
        assert_eq!(error(&text), "`package.toml`: unknown key `license`; did you mean `licence`?");
        let text = format!("{CLASSIFY}[provenance]\nrunid = \"x\"\n");
        assert_eq!(error(&text), "`package.toml`: unknown key `provenance.runid`; did you mean `run_id`?");
    }

    #[test]
    fn a_key_of_another_task_is_unknown() {
        let message = error(&format!("{CLASSIFY}dimensions = 3\n"));
        assert_eq!(
            message,
            "`package.toml`: unknown key `task.dimensions`; known are task, max_tokens, truncation, pair_truncation, labels, \
             flagged, pairs, thresholds, image"
        );
    }

    #[test]
    fn a_missing_key_is_named() {
        assert!(error(&CLASSIFY.replace("owner", "#")).contains("missing field `owner`"));
        assert!(error(&CLASSIFY.replace("task =", "#")).contains("`[task]` must say"));
        assert!(error(&CLASSIFY.replace("labels", "#")).contains("missing field `labels`"));
    }

    #[test]
    fn a_syntax_error_shows_its_line() {
        assert!(error("name = \n").contains("line 1"));
    }
}
