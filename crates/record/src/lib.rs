//! What a run logs, kept in a journal on disk until a tracking server that speaks MLflow's REST API has it.
//!
//! A [`Recorder`] takes entries without waiting, writes them to the journal in groups, and delivers them from there; what a
//! killed process or an unreachable server leaves behind is delivered by [`sync`].

mod client;
mod entry;
mod journal;
mod recorder;
mod system;

pub use client::{Client, ClientError};
pub use entry::{Entry, Metric};
pub use journal::{Header, JournalError};
pub use recorder::{Recorder, RecorderOptions, Synced, sync};
pub use system::{Sampler, Usage};
