use std::process::ExitCode;

use highroad_package::registry::{RegistryError, Rollback};

use super::promote::{MoverArgs, report};
use crate::{admission, tracking};

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
        let client = tracking.client();
        let moved = match tracking.block_on(client.rollback(&rollback)) {
            Err(RegistryError::NoGate(_)) => {
                tracking.block_on(admission::roll_back(client, &rollback))?.map_err(anyhow::Error::msg)?
            }
            moved => moved?,
        };
        report(&moved, self.mover.json)
    }
}
