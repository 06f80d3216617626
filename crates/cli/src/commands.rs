//! One file per subcommand.

pub mod completions;
pub mod eval;
pub mod gate;
pub mod inspect;
pub mod pack;
