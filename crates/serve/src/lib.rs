//! Batching, deployments and the inference protocols around a task predictor.
//!
//! The core knows no transport: a [`Portfolio`] has [`Deployment`]s, each serving a [`Revision`] that answers inputs. The
//! protocols are thin conversions to and from it, and [`router`] puts them on HTTP.

pub mod admission;
pub mod alerts;
mod attestation;
pub mod batcher;
pub mod budget;
pub mod cache;
pub mod case;
pub mod config;
pub mod definitions;
mod deployment;
mod engine;
mod error;
pub mod hosted;
mod http;
pub mod index;
mod model;
pub mod monitor;
pub mod openapi;
mod overview;
pub mod pipeline;
mod portfolio;
pub mod protocol;
mod registry;
pub mod reload;
mod remote;
pub mod replay;
pub mod request_log;
mod revision;
pub mod rollout;
mod saved;
mod served;
pub mod telemetry;
mod traced;
pub mod traffic;
mod urgency;
mod way_back;

pub use attestation::{Attestation, path as attestation_path};
pub use deployment::{Deployment, Failure, LocalState, Refreshed, State, Status, is_bare_program, read_verdict};
pub use engine::{EngineConfig, TorchConfig};
pub use error::{AskError, DeployError};
pub use hosted::router;
pub use http::probes;
pub use http::told::in_development;
pub use portfolio::{Portfolio, Prepared};
pub use protocol::error_shape;
pub use registry::{BoxFuture, Promoted, Registry, Resolved};
pub use remote::{RemoteRates, RemoteRegistry};
pub use revision::{Asked, Candidate, Facts, Overridden, OverrideFacts, Revision, Terms, Unverified};
pub use way_back::WayBackStatus;
