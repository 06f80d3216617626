use highroad_tensor::TensorError;

use crate::passes::PassError;

/// Why a program could not be loaded.
///
/// The text is one clause about the file; the caller names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file could not be opened or mapped.
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),

    /// The file is something else than a `.pt2` of torch 2.9 or newer; `found` says what, `help` what to do.
    #[error("this is {found}, not a program saved by `torch.export.save` of torch 2.9 or newer; {help}")]
    NotAProgram {
        /// What the file seems to be.
        found: &'static str,
        /// What the user can do.
        help: &'static str,
    },

    /// The zip structure is broken.
    #[error("the archive is damaged: {0}")]
    Zip(String),

    /// A record of the archive is missing, damaged or of a kind that is not read.
    #[error("record `{record}` {reason}")]
    Record {
        /// Name below the root folder.
        record: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A JSON record does not say what the schema of torch.export says.
    #[error("record `{record}` is not understood: {source}")]
    Json {
        /// Name below the root folder.
        record: String,
        /// Where and what.
        source: serde_json::Error,
    },

    /// The program was serialized under another major version of torch's schema.
    #[error(
        "the program has export schema {major}.{minor} (torch {torch}) and Highroad reads major version \
         {supported}; export the model again with torch 2.9 to 2.15",
        supported = crate::import::SCHEMA_MAJOR
    )]
    Schema {
        /// Major version found.
        major: u64,
        /// Minor version found.
        minor: u64,
        /// Version of torch that wrote the file.
        torch: String,
    },

    /// A weight or constant is stored in a form that is not read.
    #[error("weight `{name}` {reason}")]
    Weight {
        /// Fully qualified name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A weight's sizes and strides do not fit its payload.
    #[error("weight `{name}`: {source}")]
    WeightLayout {
        /// Fully qualified name.
        name: String,
        /// What does not fit.
        source: TensorError,
    },

    /// The graph uses something that this reader does not support.
    #[error("{what} is not supported{at}", at = at(location))]
    Unsupported {
        /// What it is.
        what: String,
        /// Where the user's Python asked for it.
        location: Option<String>,
    },

    /// The graph contradicts itself.
    #[error("the graph is not well formed: {0}")]
    Malformed(String),

    /// The file asks for more than this reader is willing to hold.
    #[error("{found} {what} exceed the limit of {limit}")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// How many were found.
        found: u64,
        /// How many are allowed.
        limit: u64,
    },

    /// A pass could not put the graph into the form that runs.
    #[error(transparent)]
    Pass(#[from] PassError),

    /// Operators without a kernel; the text lists all of them, most used first.
    #[error("{}", crate::passes::missing::describe(.0))]
    MissingOps(Vec<crate::passes::missing::MissingOp>),
}

fn at(location: &Option<String>) -> String {
    location.as_ref().map(|location| format!(", at {location}")).unwrap_or_default()
}

impl LoadError {
    pub(crate) fn record(record: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Record { record: record.into(), reason: reason.into() }
    }

    pub(crate) fn weight(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Weight { name: name.into(), reason: reason.into() }
    }
}
