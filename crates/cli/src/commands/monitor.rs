use std::process::ExitCode;

mod baseline;
mod label;
mod page;
mod server;
mod show;
mod tensors;

pub use baseline::{keep_of_golden, keep_of_hosted, keep_of_training, send_newest};

/// Tell whether what members meet is as in their baselines, make a baseline, or give right answers that came later.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Command {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    show: show::Args,
}

#[derive(clap::Subcommand)]
enum Action {
    Baseline(baseline::Args),
    Label(label::Args),
}

impl Command {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Some(Action::Baseline(args)) => args.run(),
            Some(Action::Label(args)) => args.run(),
            None => self.show.run(),
        }
    }
}
