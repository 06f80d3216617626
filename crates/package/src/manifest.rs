use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// What a package is, file by file. Its canonical JSON (RFC 8785) is `manifest.json`, and the SHA-256 of those bytes
/// is the package's digest: two packages with one digest hold the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format version, 1.
    pub highroad_package: u32,
    /// The model's name, a suggestion for the registry.
    pub name: String,
    /// What the model is for.
    pub task: Task,
    /// Every other file of the package, sorted by path.
    pub files: Vec<FileEntry>,
    /// Parity cases recorded from eager PyTorch.
    pub parity: Parity,
    /// Where the package comes from.
    pub provenance: Provenance,
    /// SPDX licence expression of the weights.
    pub licence: String,
    /// Who answers for the model.
    pub owner: String,
}

/// One file of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Relative path with `/`: `program.pt2`, `tokenizer.json`, `parity.safetensors`.
    pub path: String,
    /// Length of the content.
    pub size_bytes: u64,
    /// Digest of the content.
    pub digest: Digest,
}

/// The task signature: what goes in, what comes out, and the parameters between text and tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// What the model is for, with what only that task needs.
    #[serde(flatten)]
    pub kind: TaskKind,
    /// Longest input in tokens, special tokens included; longer ones are truncated at the end.
    pub max_tokens: u32,
}

/// A task and its own parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskKind {
    /// One label of several; the program returns logits `[B, labels]` and the scores are their softmax.
    Classify {
        /// Label of each logit.
        labels: Vec<String>,
        /// The label that `/v1/moderations` flags, where the model moderates.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        flagged: Option<String>,
    },
    /// A vector; the program returns it pooled, `[B, dimensions]`.
    Embed {
        /// Width of the vector.
        dimensions: u32,
        /// Whether the program already returns vectors of length 1.
        normalized: bool,
    },
}

/// Cases whose outputs eager PyTorch computed at export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parity {
    /// The safetensors file: case `i` has `i.input.0`, … and `i.output.0`, ….
    pub file: String,
    /// Number of cases.
    pub n_cases: u32,
    /// What agreement means.
    pub check: Check,
}

/// Agreement between two tensors: root mean square of the difference over that of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Largest accepted relative root mean square; 1e-5 for f32.
    pub relative_rms: f64,
}

/// The chain behind a package, from run to data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Run in the tracking server that trained it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// Commit of the training code; `-dirty` appended if the tree had changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_commit: Option<String>,
    /// Digest of the environment's lock file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Digest>,
    /// Digest of every data file that trained it, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, Digest>,
    /// Version of torch that exported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch: Option<String>,
}
