//! Python processes beside this one: started without its secrets, spoken to in frames of checked length, ended where they hang or take too
//! much memory ([`Process`]), and several of them watched and started again for a server ([`Pool`]).
//!
//! What they run, and what the frames mean, is said by who starts them. Nothing is unpickled on either side.

mod error;
mod frame;
mod pool;
mod process;
mod python;

pub use error::WorkerError;
pub use frame::{MAX_FRAME_BYTES, metadata};
pub use pool::{Crew, Event, Pool, Tell};
pub use process::{Hello, Launch, Lines, Process, without_secrets};
pub use python::find_python;
