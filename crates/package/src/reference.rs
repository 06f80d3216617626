use std::fmt;
use std::str::FromStr;

use crate::{Digest, ParseDigestError};

/// A model in a registry: `name:7`, `name@champion` or `name@sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Registered model name.
    pub name: String,
    /// Which of its versions.
    pub selector: Selector,
}

/// Which version of a registered model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// A version number, as MLflow counts them from 1.
    Version(u64),
    /// A movable name such as `champion`.
    Alias(String),
    /// The package itself.
    Digest(Digest),
}

/// The text is not a reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ParseReferenceError {
    #[error("`{0}` is not a reference: expected `name:version`, `name@alias` or `name@sha256:…`")]
    Form(String),
    #[error(transparent)]
    Digest(#[from] ParseDigestError),
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseReferenceError::Form(text.to_owned());
        let (name, selector) = if let Some((name, alias)) = text.split_once('@') {
            let selector = if alias.starts_with("sha256:") {
                Selector::Digest(alias.parse()?)
            } else {
                Selector::Alias(alias.to_owned())
            };
            (name, selector)
        } else {
            let (name, version) = text.rsplit_once(':').ok_or_else(error)?;
            (name, Selector::Version(version.parse().map_err(|_| error())?))
        };
        let named = |text: &str| !text.is_empty() && !text.contains(['/', '\\', ' ', '@', ':']);
        let fits = named(name) && !matches!(&selector, Selector::Alias(alias) if !named(alias));
        fits.then(|| Self { name: name.to_owned(), selector }).ok_or_else(error)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Version(version) => write!(f, "{}:{version}", self.name),
            Selector::Alias(alias) => write!(f, "{}@{alias}", self.name),
            Selector::Digest(digest) => write!(f, "{}@{digest}", self.name),
        }
    }
}
