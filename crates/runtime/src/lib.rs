//! `torch.export` programs in pure Rust: `.pt2` archive to graph, passes, plan and run.
//!
//! Synchronous; hostile files give errors. Nothing pickled is ever read.

pub mod graph;
