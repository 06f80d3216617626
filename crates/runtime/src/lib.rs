//! `torch.export` programs in pure Rust: `.pt2` archive to graph, passes, plan and run.
//!
//! Synchronous; hostile files give errors. Nothing pickled is ever read.

mod error;
pub mod graph;
pub mod op;
mod ops;
mod plan;
mod program;
mod rows;
mod run;

pub use error::LoadError;
pub use plan::PlanError;
pub use program::{Program, RunOptions, TensorSpec, numerics_id};
pub use rows::{RowIndependence, Rows};
pub use run::{NodeError, RunError};
