//! One file per subcommand.

pub mod completions;
pub mod inspect;
pub mod pack;
pub mod eval;
pub mod gate;
