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
pub use plan::PlanError;
pub use program::{Program, RunOptions, TensorSpec, numerics_id};
pub use rows::{RowIndependence, Rows};
pub use run::{NodeError, RunError};
pub use text::TextError;
