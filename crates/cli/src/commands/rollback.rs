use std::process::ExitCode;

use highroad_package::registry::{RegistryError, Rollback};
use highroad_serve::admission;
use highroad_serve::rollout::End;

use super::promote::{MoverArgs, report};
use super::push::print;
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
        let aliased = [self.name.as_str(), self.mover.alias.as_str()];
        // Where a candidate is being tried, the way back is to end that: the alias never moved.
        if let Some(end) = tracking.block_on(super::deploy::abort(tracking.client(), aliased, [&by, &why]))? {
            return stopped(&end, aliased, self.mover.json);
        }
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

fn stopped(end: &End, [name, alias]: [&str; 2], as_json: bool) -> anyhow::Result<ExitCode> {
    if as_json {
        print(&serde_json::to_string(end)?);
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!("{} aborted", end.rollout));
    eprintln!(
        "`{name}:{}` was being tried and takes no more traffic; `{name}@{alias}` stays where it was",
        end.candidate
    );
    Ok(ExitCode::SUCCESS)
}
