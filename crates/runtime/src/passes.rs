//! The passes that turn a raw graph into the one that runs, in order.

use crate::graph::Graph;

pub mod missing;

/// Runs every pass on a raw graph.
pub fn run(_graph: &mut Graph) -> Result<(), PassError> {
    Ok(())
}

/// Why a pass could not put a graph into the form that runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// The graph does something that no pass can express.
    #[error("{what} is not supported{}", location.as_ref().map(|at| format!(", at {at}")).unwrap_or_default())]
    Unsupported {
        /// What it is.
        what: String,
        /// Where the user's Python asked for it.
        location: Option<String>,
    },
}
