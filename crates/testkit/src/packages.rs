use std::path::PathBuf;

/// A tiny package source made by `conformance/make_packages.py`, ready for `highroad pack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TinyPackage {
    /// Classifies into `benign` and `injection`.
    ClassifyA,
    /// The same task with other weights: other answers, another digest.
    ClassifyB,
    /// Embeds into 16 dimensions, normalised.
    Embed,
}

impl TinyPackage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ClassifyA, Self::ClassifyB, Self::Embed];

    /// The directory with its `package.toml`; tests copy from it and never write there.
    pub fn source(self) -> PathBuf {
        let name = match self {
            Self::ClassifyA => "classify-a",
            Self::ClassifyB => "classify-b",
            Self::Embed => "embed",
        };
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/packages")).join(name)
    }
}
