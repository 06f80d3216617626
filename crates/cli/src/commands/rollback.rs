use std::process::ExitCode;

use highroad_package::registry::Rollback;

use super::promote::{MoverArgs, report};
use crate::tracking;

/// `highroad rollback NAME`
#[derive(clap::Args)]
pub struct Args {
    /// Registered model.
    name: String,
    #[command(flatten)]
    mover: MoverArgs,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.mover.tracking)?;
        let (by, why) = (self.mover.by(), self.mover.why());
        let rollback = Rollback { name: self.name, alias: self.mover.alias, by, why };
        let moved = tracking.block_on(tracking.client().rollback(&rollback))?;
        report(&moved, self.mover.json)
    }
}
