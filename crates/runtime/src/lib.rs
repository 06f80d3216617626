//! `torch.export` programs in pure Rust: `.pt2` archive to graph, passes, plan and run.
//!
//! Synchronous; hostile files give errors. Nothing pickled is ever read.

pub mod archive;
mod error;
pub mod graph;
pub mod import;
pub mod op;
mod ops;
pub mod passes;
mod plan;
mod program;
mod rows;
mod run;
mod symbol;
mod text;
pub mod treespec;
pub mod verify;

pub use error::LoadError;
pub use passes::missing::MissingOp;
pub use plan::PlanError;
pub use program::{NodeTime, Program, RunOptions, TensorSpec, numerics_id};
pub use rows::{RowIndependence, Rows};
pub use run::{NodeError, RunError};
pub use text::TextError;

/// Operators that the program in `path` uses and that have no kernel, most used first; empty if it can run.
pub fn missing_ops(path: &std::path::Path) -> Result<Vec<MissingOp>, LoadError> {
    let mut graph = import::exported(&archive::Archive::open(path)?)?.graph;
    passes::canonical(&mut graph)?;
    Ok(passes::missing::missing_ops(&graph))
}
