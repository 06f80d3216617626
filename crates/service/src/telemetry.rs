//! Logs: `tracing` to stderr, for people or as JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::ServiceError;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One line a person reads, coloured on a terminal unless `NO_COLOR` is set.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl LogFormat {
    /// `HIGHROAD_LOG_FORMAT=json` asks for JSON; anything else is text.
    pub fn from_env() -> Self {
        match std::env::var("HIGHROAD_LOG_FORMAT") {
            Ok(format) if format.eq_ignore_ascii_case("json") => Self::Json,
            _ => Self::Text,
        }
    }
}

/// Starts logging for this process; the second and later calls change nothing.
///
/// The filter is `HIGHROAD_LOG` (`debug`, `highroad_track=trace,warn`, …), else `default_filter`. Errors if the filter is
/// not understood.
pub fn init(format: LogFormat, default_filter: &str) -> Result<(), ServiceError> {
    let filter = std::env::var("HIGHROAD_LOG").ok().filter(|f| !f.is_empty()).unwrap_or_else(|| default_filter.into());
    let parsed = EnvFilter::try_new(&filter)
        .map_err(|error| ServiceError::LogFilter { filter: filter.clone(), reason: error.to_string() })?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(BoxMakeWriter::new(std::io::stderr))
        .with_ansi(colour);
    // A second server in one process (`highroad up`) finds logging already started, which is what it wants.
    let _already_started = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
