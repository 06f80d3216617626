//! One file per subcommand.

pub mod completions;
pub mod inspect;
pub mod pack;
