use std::fmt;

use highroad_package::TaskKind;
use serde::{Deserialize, Serialize};

/// What a member is for, by its name in a package's manifest: an assertion, as the package has it anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Task {
    Classify,
    Embed,
    Rerank,
    Recommend,
    Tensors,
}

impl Task {
    /// Of a package; `None` for one that this build does not know.
    pub fn of(kind: &TaskKind) -> Option<Self> {
        match kind {
            TaskKind::Classify { .. } => Some(Self::Classify),
            TaskKind::Embed { .. } => Some(Self::Embed),
            TaskKind::Rerank => Some(Self::Rerank),
            TaskKind::Recommend { .. } => Some(Self::Recommend),
            TaskKind::Tensors => Some(Self::Tensors),
            _ => None,
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classify => "classify",
            Self::Embed => "embed",
            Self::Rerank => "rerank",
            Self::Recommend => "recommend",
            Self::Tensors => "tensors",
        })
    }
}
