//! Limits of what clients may log, the numbers MLflow 3 uses, and the checks that name the offender.

use std::fmt::Display;

use crate::TrackError;

/// Largest JSON body of a request; `log-batch` has its own.
pub const MAX_BODY_BYTES: usize = 32 << 20;
/// Metrics in one batch.
pub const MAX_METRICS_PER_BATCH: usize = 1000;
/// Params in one batch; tags too.
pub const MAX_PARAMS_PER_BATCH: usize = 100;
/// Metrics, params and tags in one batch together.
pub const MAX_ENTITIES_PER_BATCH: usize = 1000;
/// Datasets in one `log-inputs`.
pub const MAX_DATASETS: usize = 1000;
/// Key of a param, metric or tag, in characters.
pub const MAX_KEY: usize = 250;
/// Value of a param.
pub const MAX_PARAM_VALUE: usize = 6000;
/// Value of a run's tag.
pub const MAX_TAG_VALUE: usize = 8000;
/// Value of an experiment's tag.
pub const MAX_EXPERIMENT_TAG_VALUE: usize = 20_000;
/// Value of a tag of a registered model or version.
pub const MAX_REGISTRY_TAG_VALUE: usize = 100_000;
/// Name of an experiment.
pub const MAX_EXPERIMENT_NAME: usize = 500;
/// Name of a registered model or alias.
pub const MAX_MODEL_NAME: usize = 255;
/// Key of a tag of a run's input.
pub const MAX_INPUT_TAG_KEY: usize = 255;
/// Value of a tag of a run's input.
pub const MAX_INPUT_TAG_VALUE: usize = 500;
/// Experiments in one `experiments/search-datasets`.
pub const MAX_EXPERIMENTS_OF_DATASETS: usize = 20;
/// Runs in one `metrics/get-history-bulk-interval`.
pub const MAX_RUNS_OF_HISTORY: usize = 100;
/// Points of one run in `metrics/get-history-bulk-interval`.
pub const MAX_POINTS_PER_RUN: i64 = 2500;
/// Name of a dataset.
pub const MAX_DATASET_NAME: usize = 500;
/// Digest of a dataset.
pub const MAX_DATASET_DIGEST: usize = 36;
/// Results of one page of `runs/search` and `experiments/search`.
pub const MAX_RUNS_PER_PAGE: i64 = 50_000;
/// Results of one page of `registered-models/search`.
pub const MAX_MODELS_PER_PAGE: i64 = 1000;
/// Results of one page of `model-versions/search`.
pub const MAX_VERSIONS_PER_PAGE: i64 = 200_000;
/// Results of one page of `traces/search`.
pub const MAX_TRACES_PER_PAGE: i64 = 500;
/// Traces one call names.
pub const MAX_TRACES_PER_CALL: usize = 500;
/// The preview of what went into a trace, or came out, that is told from its spans.
pub const MAX_TRACE_PREVIEW: usize = 1000;
/// Results of one page of `datasets/search`.
pub const MAX_DATASETS_PER_PAGE: i64 = 1000;
/// Records one call brings to a golden dataset.
pub const MAX_RECORDS_PER_CALL: usize = 100_000;
/// Largest verdict file that is read.
pub const MAX_VERDICT_BYTES: u64 = 16 << 20;

/// Errors if `value` has more than `max` characters, naming `what`.
pub fn length(what: impl Display, value: &str, max: usize) -> Result<(), TrackError> {
    // A string of n bytes has at most n characters: the common case needs no walk.
    if value.len() <= max || value.chars().count() <= max {
        return Ok(());
    }
    Err(TrackError::Invalid(format!("'{what}' exceeds the maximum length of {max} characters")))
}

/// Errors if `given` is over `max`, naming `what`.
pub fn count(what: &str, given: usize, max: usize) -> Result<(), TrackError> {
    if given <= max {
        return Ok(());
    }
    Err(TrackError::Invalid(format!(
        "A batch logging request can contain at most {max} {what}. Got {given} {what}. Please split up {what} across \
         multiple requests and try again."
    )))
}

/// Errors if a list has more than `max` entries, naming it.
pub fn at_most(what: &str, given: usize, max: usize) -> Result<(), TrackError> {
    if given <= max {
        return Ok(());
    }
    Err(TrackError::Invalid(format!("'{what}' has {given} entries; at most {max} fit in one call")))
}

/// Cuts `value` to `max` characters, as MLflow does with what clients log by themselves.
pub fn cut(value: &mut String, max: usize) {
    if value.len() > max
        && let Some((end, _)) = value.char_indices().nth(max)
    {
        value.truncate(end);
    }
}

/// A key of a param, metric or tag: 1 to 250 characters that MLflow allows, and no path tricks, since clients make
/// files of them.
pub fn key(what: impl Display, key: &str) -> Result<(), TrackError> {
    if key.is_empty() {
        return Err(TrackError::Invalid(format!("Missing value for required parameter '{what}'. {SEE_DOCS}")));
    }
    path_name(&what, key)?;
    length(&what, key, MAX_KEY)
}

/// What MLflow appends where a parameter of the request itself is at fault.
pub const SEE_DOCS: &str = "See the API docs for more information about request parameters.";

/// A name that clients make files of: allowed characters only, and it leads nowhere else.
pub fn path_name(what: impl Display, name: &str) -> Result<(), TrackError> {
    let invalid = |why: &str| {
        let shown = serde_json::Value::from(name);
        TrackError::Invalid(format!("Invalid value {shown} for parameter '{what}' supplied: {why}"))
    };
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '/' | '_' | '-' | '.' | ' ' | ':');
    if !name.chars().all(allowed) {
        return Err(invalid(
            "Names may only contain alphanumerics, underscores (_), dashes (-), periods (.), spaces ( ), colon(:) and \
             slashes (/).",
        ));
    }
    // Without slashes and leading dots there is nothing to resolve: the common case builds no path.
    if !name.is_empty() && !name.contains('/') && !name.starts_with('.') {
        return Ok(());
    }
    let resolved = resolved(name);
    if resolved != name || resolved == "." || resolved.starts_with("..") || resolved.starts_with('/') {
        return Err(invalid(&format!(
            "Names may be treated as files in certain cases, and must not resolve to other names when treated as such. \
             This name would resolve to '{resolved}'"
        )));
    }
    Ok(())
}

/// What a path is without `.`, `..` and doubled slashes.
fn resolved(path: &str) -> String {
    let root = if path.starts_with('/') { "/" } else { "" };
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if !root.is_empty() => {}
            _ => parts.push(part),
        }
    }
    let joined = format!("{root}{}", parts.join("/"));
    if joined.is_empty() { ".".to_owned() } else { joined }
}

/// The name of a registered model: 1 to 255 characters without `/` and `:`, which references use.
pub fn model_name(name: &str) -> Result<(), TrackError> {
    if name.is_empty() {
        return Err(TrackError::Invalid("Registered model name cannot be empty.".into()));
    }
    length("name", name, MAX_MODEL_NAME)?;
    if name.contains(['/', ':']) || name.trim().is_empty() || name.chars().any(char::is_control) {
        return Err(TrackError::Invalid(format!(
            "Invalid model name: '{name}'. It must not be blank and not contain `/`, `:` or control characters"
        )));
    }
    if matches!(name, "." | "..") {
        return path_name("name", name);
    }
    Ok(())
}

/// An alias: letters, digits, `_` and `-`; not `latest`, not `v1`, which name versions.
pub fn alias(alias: &str) -> Result<(), TrackError> {
    alias_word(alias)?;
    let digits = alias.strip_prefix(['v', 'V']).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if digits {
        return Err(TrackError::Invalid(format!("Version alias name '{alias}' is reserved.")));
    }
    if alias.eq_ignore_ascii_case("latest") {
        return Err(TrackError::Invalid("'latest' alias name (case insensitive) is reserved.".into()));
    }
    Ok(())
}

/// What may be asked for as an alias, reserved words included.
pub fn alias_word(alias: &str) -> Result<(), TrackError> {
    length("Registered model alias name", alias, MAX_MODEL_NAME)?;
    if !alias.is_empty() && alias.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
        return Ok(());
    }
    Err(TrackError::Invalid(format!(
        "Invalid alias name: '{alias}'. Names may only contain alphanumerics, underscores (_), and dashes (-)."
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_characters_and_admits_its_own_value() {
        assert!(length("value", &"é".repeat(6000), MAX_PARAM_VALUE).is_ok());
        assert!(length("value", &"x".repeat(6001), MAX_PARAM_VALUE).is_err());
        assert!(count("metrics", 1000, MAX_METRICS_PER_BATCH).is_ok());
        assert!(count("metrics", 1001, MAX_METRICS_PER_BATCH).is_err());
    }

    #[test]
    fn keys_that_would_leave_their_folder_are_refused() {
        for good in ["loss", "val/loss", "a b:c-d_e.f", "größe"] {
            assert!(key("key", good).is_ok(), "{good}");
        }
        for bad in ["", "..", "a/../b", "/a", "a//b", "a/", "./a", "a\0b", "a\nb", "a;b"] {
            assert!(key("key", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_resolves_as_a_shell_would() {
        let cases =
            [("a/../b", "b"), ("../b", "../b"), ("/../a", "/a"), ("a/..", "."), ("./a//b/", "a/b"), ("..", "..")];
        for (path, expected) in cases {
            assert_eq!(resolved(path), expected);
        }
    }

    #[test]
    fn a_cut_counts_characters() {
        let mut text = "é".repeat(10);
        cut(&mut text, 4);
        assert_eq!(text, "éééé");
        cut(&mut text, 4);
        assert_eq!(text.chars().count(), 4);
    }

    #[test]
    fn aliases_that_look_like_versions_are_refused() {
        for good in ["champion", "v", "v1a", "prod-eu"] {
            assert!(alias(good).is_ok(), "{good}");
        }
        for bad in ["", "latest", "Latest", "v1", "V22", "a b", "a@b", "a/b"] {
            assert!(alias(bad).is_err(), "{bad}");
        }
    }
}
