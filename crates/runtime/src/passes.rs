//! The passes that turn a raw graph into the one that runs: one visible list.
//!
//! A pass is a function that either changes the graph or leaves it, keeps its meaning, and says which it did. Up to
//! [`functionalise`] a value may be written to and may share memory with others; after it every value is defined once
//! and never changes, and sharing memory means nothing.

use crate::LoadError;
use crate::graph::Graph;
use crate::verify::{self, Fault};

mod canonicalise;
mod defaults;
mod functionalise;
mod fuse_conv;
mod fuse_linear;
mod fuse_norm;
mod inline;
mod mask;
pub mod missing;
mod rewrite;
mod simplify;
mod strip;
#[cfg(test)]
mod test;
mod unused;

/// What a pass did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Changed {
    Yes,
    No,
}

/// A pass.
pub type Pass = fn(&mut Graph) -> Result<Changed, PassError>;

/// The passes that every program goes through, in order.
const ONCE: &[(&str, Pass)] = &[
    ("inline", inline::inline),
    ("functionalise", functionalise::functionalise),
    ("strip", strip::strip),
    ("canonicalise", canonicalise::canonicalise),
    ("defaults", defaults::fill_defaults),
];

/// Run again and again, until none changes anything: each makes work for the others.
const REPEATED: &[(&str, Pass)] = &[
    ("simplify", simplify::simplify),
    ("mask", mask::simplify_masks),
    ("shared", unused::share_equal_nodes),
    ("unused", unused::remove_unused),
];

/// Last, on the canonical graph: operators that kernels do together.
const FUSION: &[(&str, Pass)] = &[
    ("fuse_activations", fuse_linear::fuse_activations),
    ("fuse_shared_inputs", fuse_linear::fuse_shared_inputs),
    ("fuse_add_layer_norm", fuse_norm::fuse_add_layer_norm),
    ("fuse_conv_norm", fuse_conv::fuse_conv_norm),
];

/// Most rounds of [`REPEATED`]; each round that changes something removes nodes or replaces one by a cheaper one.
const MAX_ROUNDS: usize = 64;

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
    /// A pass broke the graph: a mistake in Highroad. Only looked for in debug builds.
    #[error("pass `{pass}` broke the graph: {fault}")]
    Broken {
        /// Which.
        pass: &'static str,
        /// How.
        fault: Fault,
    },
}

impl PassError {
    fn unsupported(what: impl Into<String>, location: &Option<String>) -> Self {
        Self::Unsupported { what: what.into(), location: location.clone() }
    }
}

/// Brings a raw graph into canonical form: functional, complete arguments, only operators that exist.
///
/// Errors with all operators that are not supported, if there are any.
pub fn run(graph: &mut Graph) -> Result<(), LoadError> {
    canonical(graph)?;
    let missing = missing::missing_ops(graph);
    if !missing.is_empty() {
        return Err(LoadError::MissingOps(missing));
    }
    run_list(FUSION, graph)?;
    run_list(REPEATED, graph)?;
    Ok(())
}

/// The same without fusion, and operators that are not supported left in.
pub fn canonical(graph: &mut Graph) -> Result<(), PassError> {
    run_list(ONCE, graph)?;
    for _ in 0..MAX_ROUNDS {
        if run_list(REPEATED, graph)? == Changed::No {
            break;
        }
        run_list(&[("defaults", defaults::fill_defaults)], graph)?;
    }
    Ok(())
}

fn run_list(passes: &[(&'static str, Pass)], graph: &mut Graph) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    for &(name, pass) in passes {
        if pass(graph)? == Changed::Yes {
            changed = Changed::Yes;
        }
        if cfg!(debug_assertions) {
            verify::verify(graph).map_err(|fault| PassError::Broken { pass: name, fault })?;
        }
    }
    Ok(changed)
}
