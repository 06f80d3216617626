/// Why a program could not be loaded.
///
/// The text is one clause about the file; the caller names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file could not be opened or mapped.
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),

    /// The graph contradicts itself.
    #[error("the graph is not well formed: {0}")]
    Malformed(String),
}
