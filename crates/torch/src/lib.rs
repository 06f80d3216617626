//! Programs that PyTorch runs, in Python processes of their own: one for an evaluation ([`TorchProcess`]), several that are watched and
//! started again for a server ([`Workers`]).
//!
//! Only tensors cross: tokens in and answers out of logits stay with `highroad_task::Predictor`. Nothing is unpickled on either side.

mod frame;
mod options;
mod process;
mod workers;

pub use highroad_worker::{Crew, Event, Lines, Tell, WorkerError, find_python, without_secrets};
pub use options::{Compile, Device, TorchOptions};
pub use process::{TorchProcess, worker_error};
pub use workers::{Ready, Workers};
