use std::process::ExitCode;
use std::time::Duration;

use highroad_package::registry::{RegistryError, Rollback};
use highroad_serve::admission;
use highroad_serve::rollout::End;
use serde_json::json;

use super::promote::{MoverArgs, report};
use super::push::print;
use crate::following::{self, Server, State};
use crate::tracking;

/// A server did not follow.
const NOT_FOLLOWED: u8 = 1;

/// `highroad rollback NAME`
#[derive(clap::Args)]
pub struct Args {
    /// Registered model.
    name: String,
    /// Return as soon as the alias has moved, whether or not servers follow.
    #[arg(long)]
    no_wait: bool,
    /// Longest wait for the servers that follow the alias, in seconds.
    #[arg(long, value_name = "S", default_value_t = 60.0, value_parser = parse_seconds, conflicts_with = "no_wait")]
    wait: f64,
    #[command(flatten)]
    mover: MoverArgs,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("expected 0.1 to 3600 seconds".to_owned()) }
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
        if self.no_wait {
            return report(&moved, self.mover.json);
        }
        if !self.mover.json {
            report(&moved, false)?;
        }
        let servers = following::wait(&tracking, &moved, Duration::from_secs_f64(self.wait))?;
        if self.mover.json {
            let mut told = serde_json::to_value(&moved)?;
            told["servers"] = json!(servers);
            print(&told.to_string());
        }
        tell(&servers, &rollback, moved.to);
        let stays = servers.iter().any(|server| matches!(server.state, State::Refused | State::Behind));
        Ok(if stays { ExitCode::from(NOT_FOLLOWED) } else { ExitCode::SUCCESS })
    }
}

/// Says of each server whether it followed, and what helps where one did not.
fn tell(servers: &[Server], rollback: &Rollback, to: Option<u64>) {
    let Rollback { name, alias, .. } = rollback;
    if servers.is_empty() {
        eprintln!(
            "no server tells the registry that it follows `{name}@{alias}`, so none is known to have followed\nhint: `highroad deploy status --server URL` asks one"
        );
        return;
    }
    servers.iter().for_each(|server| eprintln!("{}", server.in_words(name)));
    if servers.iter().any(|server| server.state == State::Refused) {
        let refused = to.map_or("no version".to_owned(), |number| format!("`{name}:{number}`"));
        eprintln!(
            "hint: a server that refuses {refused} tries it again by itself once the cause is mended; `highroad promote {name} VERSION` moves `{name}@{alias}` to a version that loads, `highroad audit {name}` lists those that served"
        );
    } else if servers.iter().any(|server| server.state == State::Behind) {
        eprintln!("hint: `highroad deploy status --server URL` tells what a server does; --wait S waits longer");
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
