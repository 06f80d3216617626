use std::process::ExitCode;

use highroad_package::registry::Rollback;

use super::promote::report;
use crate::tracking::{self, TrackingArgs};

/// `highroad rollback NAME`
#[derive(clap::Args)]
pub struct Args {
    /// Registered model.
    name: String,
    /// Alias to move back.
    #[arg(long, default_value = "champion")]
    alias: String,
    /// Who rolls back; git's user if left out.
    #[arg(long)]
    by: Option<String>,
    /// Why.
    #[arg(long, default_value = "rolled back by hand")]
    why: String,
    /// Print the record as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tracking: TrackingArgs,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.tracking)?;
        let by = self.by.unwrap_or_else(tracking::whoami);
        let rollback = Rollback { name: self.name, alias: self.alias, by, why: self.why };
        let moved = tracking.block_on(tracking.client().rollback(&rollback))?;
        report(&moved, self.json)
    }
}
