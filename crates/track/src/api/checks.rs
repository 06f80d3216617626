//! What MLflow refuses at the door, in its words. Rules that hold whichever client writes are the store's.

use std::fmt::{self, Display};

use crate::source::unescaped;
use crate::wire::{DatasetInput, Int, Metric, Pair};
use crate::{TrackError, limits};

/// Where something stands in a request: `key` of a call about one thing, `tags[3].key` in a batch.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    Alone,
    At(&'static str, usize),
}

impl Place {
    /// Spelt out only where there is something to say about it.
    fn of(self, field: &str) -> impl Display {
        fmt::from_fn(move |f| match self {
            Self::Alone => f.write_str(field),
            Self::At(list, n) => write!(f, "{list}[{n}].{field}"),
        })
    }
}

pub fn metric(metric: &Metric, place: Place) -> Result<(), TrackError> {
    filled(&metric.key, place)?;
    limits::path_name(place.of("name"), &metric.key)?;
    if metric.timestamp < 0 {
        return Err(TrackError::Invalid(format!(
            "Invalid value {} for parameter '{}' supplied: metric '{}' (value={:?}). Timestamp must be a nonnegative long \
             (64-bit integer) ",
            metric.timestamp,
            place.of("timestamp"),
            metric.key,
            metric.value.0
        )));
    }
    limits::length("Metric name", &metric.key, limits::MAX_KEY)
}

/// Cuts a value that is too long, as MLflow does: Lightning and the Trainer log whole configurations.
pub fn param(param: &mut Pair, place: Place) -> Result<(), TrackError> {
    filled(&param.key, place)?;
    limits::path_name(place.of("key"), &param.key)?;
    limits::length("Param key", &param.key, limits::MAX_KEY)?;
    limits::cut(&mut param.value, limits::MAX_PARAM_VALUE);
    Ok(())
}

/// Cuts a value that is too long, as MLflow does.
pub fn tag(tag: &mut Pair, place: Place) -> Result<(), TrackError> {
    filled(&tag.key, place)?;
    limits::path_name(place.of("key"), &tag.key)?;
    limits::length(place.of("key"), &tag.key, limits::MAX_KEY)?;
    limits::cut(&mut tag.value, limits::MAX_TAG_VALUE);
    Ok(())
}

/// MLflow looks at the key before it looks at the length.
fn filled(key: &str, place: Place) -> Result<(), TrackError> {
    if key.is_empty() { Err(super::missing(&place.of("key").to_string())) } else { Ok(()) }
}

/// A param may stand in a batch once, whatever its value.
pub fn unique_params(params: &[Pair]) -> Result<(), TrackError> {
    let mut seen = std::collections::HashSet::new();
    let twice: Vec<String> = params.iter().filter(|p| !seen.insert(&p.key)).map(|p| format!("'{}'", p.key)).collect();
    if twice.is_empty() {
        return Ok(());
    }
    Err(TrackError::Invalid(format!(
        "Duplicate parameter keys have been submitted: [{}]. Please ensure the request contains only one param value per \
         param key.",
        twice.join(", ")
    )))
}

/// A dataset that a run reads: names and tags are bounded.
pub fn dataset_input(input: &DatasetInput) -> Result<(), TrackError> {
    limits::length("name", &input.dataset.name, limits::MAX_DATASET_NAME)?;
    limits::length("digest", &input.dataset.digest, limits::MAX_DATASET_DIGEST)?;
    for tag in &input.tags {
        limits::length("key", &tag.key, limits::MAX_INPUT_TAG_KEY)?;
        limits::length("value", &tag.value, limits::MAX_INPUT_TAG_VALUE)?;
    }
    Ok(())
}

/// How many results a page may have; 0 where nothing is said, which is the route's default.
pub fn page_size(max_results: Option<Int>) -> Result<i64, TrackError> {
    match max_results {
        Some(Int(n)) if n < 1 => Err(TrackError::Invalid(format!(
            "Invalid value {n} for parameter 'max_results' supplied. It must be a positive integer"
        ))),
        given => Ok(given.map_or(0, |n| n.0)),
    }
}

/// A place for artifacts is an URI without fragment.
pub fn artifact_location(location: &str) -> Result<(), TrackError> {
    if location.contains('#') {
        return Err(TrackError::Invalid("'artifact_location' URL can't include fragments or params.".into()));
    }
    Ok(())
}

/// The source of a model version must not be this server's disk nor lead around by `..`; what it is contained in is
/// `owner`: a run (`run_id`) or a logged model (`model_id`).
pub fn version_source(source: &str, owner: &str) -> Result<(), TrackError> {
    let Some((scheme, _)) = source.split_once(':') else { return Err(local_source(source, owner)) };
    match scheme.to_ascii_lowercase().as_str() {
        "file" => Err(local_source(source, owner)),
        "http" | "https" | "ftp" | "sftp" => Err(TrackError::Invalid(format!(
            "'source' cannot use the '{scheme}' scheme: the '{scheme}' scheme addresses a host other than the tracking \
             server's configured artifact storage, so the server would connect to the host named in the URI."
        ))),
        _ if leads_astray(source) => Err(TrackError::Invalid(format!(
            "Invalid model version source: '{source}'. If supplying a source as an http, https, local file path, ftp, \
             objectstore, or mlflow-artifacts uri, an absolute path must be provided without relative path references \
             present. Please provide an absolute path."
        ))),
        _ => Ok(()),
    }
}

fn local_source(source: &str, owner: &str) -> TrackError {
    TrackError::Invalid(format!(
        "Invalid model version source: '{source}'. To use a local path as a model version source, the {owner} request \
         parameter has to be specified and the local path has to be contained within the artifact directory of the run \
         specified by the {owner}."
    ))
}

/// Whether a URI's path is missing, not absolute, or has a part that is `..` under however many layers of escapes.
fn leads_astray(source: &str) -> bool {
    let plain = unescaped(source);
    let (_, rest) = plain.split_once(':').unwrap_or(("", &plain));
    let path = match rest.strip_prefix("//") {
        Some(rest) => rest.find('/').map_or("", |start| &rest[start..]),
        None => rest,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    !path.starts_with('/') || plain.contains('\0') || plain.split('/').any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_stays_where_it_says() {
        for good in
            ["s3://b/x", "mlflow-artifacts:/1/r/artifacts/m", "gs://b/a%20b", "models:/m/1", "runs:/r/m", "dbfs:/x"]
        {
            assert!(version_source(good, "run_id").is_ok(), "{good}");
        }
        for bad in [
            "s3://x",
            "s3://b/../x",
            "s3://b/%252e%252e/x",
            "/etc",
            "up",
            "file:///etc",
            "http://h/x",
            "s3://b/a\0",
            "",
        ] {
            assert!(version_source(bad, "run_id").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_batch_names_the_place_and_one_thing_the_field() {
        let mut pair = Pair { key: "a;b".into(), value: String::new() };
        let text = |place, pair: &mut Pair| tag(pair, place).unwrap_err().to_string();
        assert!(text(Place::Alone, &mut pair).contains("parameter 'key'"));
        assert!(text(Place::At("tags", 2), &mut pair).contains("parameter 'tags[2].key'"));
        let mut long = Pair { key: "k".into(), value: "x".repeat(limits::MAX_TAG_VALUE + 1) };
        tag(&mut long, Place::Alone).unwrap();
        assert_eq!(long.value.len(), limits::MAX_TAG_VALUE);
    }
}
