//! Programs that PyTorch runs, in Python processes of their own: one for an evaluation ([`TorchProcess`]), several that are watched and
//! started again for a server ([`Workers`]).
//!
//! Only tensors cross: tokens in and answers out of logits stay with `highroad_task::Predictor`. Nothing is unpickled on either side.

mod frame;
mod options;
mod process;
mod workers;

pub use options::{Compile, Device, TorchOptions, find_python};
pub use process::{Lines, TorchError, TorchProcess};
pub use workers::{Crew, Event, Ready, Tell, Workers};
