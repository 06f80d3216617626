//! Limits of what clients may log, the numbers MLflow 3 uses, and the checks that name the offender.

use crate::TrackError;

/// Largest JSON body of a request; `log-batch` has its own.
pub const MAX_BODY_BYTES: usize = 32 << 20;
/// Largest body of `runs/log-batch`.
pub const MAX_BATCH_BYTES: usize = 1_000_000;
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
/// Largest verdict file that is read.
pub const MAX_VERDICT_BYTES: u64 = 16 << 20;

/// Errors if `value` has more than `max` characters, naming `what`.
pub fn length(what: &str, value: &str, max: usize) -> Result<(), TrackError> {
    // A string of n bytes has at most n characters: the common case needs no walk.
    if value.len() <= max || value.chars().count() <= max {
        return Ok(());
    }
    let n = value.chars().count();
    Err(TrackError::Invalid(format!("'{what}' exceeds the maximum length of {max} characters (it has {n})")))
}

/// Errors if `given` is over `max`, naming `what`.
pub fn count(what: &str, given: usize, max: usize) -> Result<(), TrackError> {
    if given <= max {
        return Ok(());
    }
    Err(TrackError::Invalid(format!("A batch logging request can contain at most {max} {what}. Got {given} {what}.")))
}

/// A key of a param, metric or tag: 1 to 250 characters that MLflow allows, and no path tricks, since clients make
/// files of them.
pub fn key(what: &str, key: &str) -> Result<(), TrackError> {
    if key.is_empty() {
        return Err(TrackError::Invalid(format!("Missing value for required parameter '{what}'")));
    }
    length(what, key, MAX_KEY)?;
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '/' | '_' | '-' | '.' | ' ' | ':');
    if let Some(odd) = key.chars().find(|&c| !allowed(c)) {
        return Err(TrackError::Invalid(format!(
            "Invalid value {key:?} for parameter '{what}' supplied: {odd:?} is not allowed. Names may only contain \
             alphanumerics, underscores (_), dashes (-), periods (.), spaces ( ), colon(:) and slashes (/)."
        )));
    }
    if key.starts_with('/') || key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(TrackError::Invalid(format!(
            "Invalid value {key:?} for parameter '{what}' supplied: Names may be treated as files in certain cases, and \
             must not resolve to other names when treated as such."
        )));
    }
    Ok(())
}

/// The name of a registered model: 1 to 255 characters without `/` and `:`, which references use.
pub fn model_name(name: &str) -> Result<(), TrackError> {
    if name.trim().is_empty() {
        return Err(TrackError::Invalid("Registered model name cannot be empty.".into()));
    }
    length("name", name, MAX_MODEL_NAME)?;
    if name.contains(['/', ':']) || name.chars().any(char::is_control) {
        return Err(TrackError::Invalid(format!(
            "Invalid model name {name:?}: it must not contain `/`, `:` or control characters"
        )));
    }
    Ok(())
}

/// An alias: letters, digits, `_` and `-`; not `latest`, not `v1`, which name versions.
pub fn alias(alias: &str) -> Result<(), TrackError> {
    length("alias", alias, MAX_MODEL_NAME)?;
    let word = !alias.is_empty() && alias.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    if !word {
        return Err(TrackError::Invalid(format!(
            "Invalid alias name {alias:?}: it may contain letters, digits, `_` and `-` only"
        )));
    }
    let digits = alias.strip_prefix(['v', 'V']).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if digits || alias.eq_ignore_ascii_case("latest") {
        return Err(TrackError::Invalid(format!("`{alias}` is reserved and cannot be an alias")));
    }
    Ok(())
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
    fn aliases_that_look_like_versions_are_refused() {
        for good in ["champion", "v", "v1a", "prod-eu"] {
            assert!(alias(good).is_ok(), "{good}");
        }
        for bad in ["", "latest", "Latest", "v1", "V22", "a b", "a@b", "a/b"] {
            assert!(alias(bad).is_err(), "{bad}");
        }
    }
}
