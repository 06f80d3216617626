//! One file per subcommand.

pub mod bench;
pub mod completions;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod gate;
pub mod inspect;
pub mod load;
pub mod new;
pub mod ops;
pub mod pack;
pub mod profile_train;
pub mod promote;
pub mod push;
pub mod replay;
pub mod reproduce;
pub mod rollback;
pub mod run;
pub mod runs;
pub mod serve;
pub mod standard;
pub mod track;
pub mod train;
pub mod up;
pub mod update;
pub mod verify;
