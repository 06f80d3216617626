//! Serving over real sockets with small real packages.
#![allow(clippy::unwrap_used, reason = "tests")]

mod caching;
mod deployments;
mod protocols;
mod reloads;
mod rig;
mod rollouts;
mod swap;
mod urgency;
