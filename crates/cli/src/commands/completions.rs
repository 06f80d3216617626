use std::process::ExitCode;

/// `highroad completions SHELL`
#[derive(clap::Args)]
pub struct Args {
    shell: clap_complete::Shell,
}

impl Args {
    pub fn run(self, mut command: clap::Command) -> anyhow::Result<ExitCode> {
        clap_complete::generate(self.shell, &mut command, "highroad", &mut std::io::stdout());
        Ok(ExitCode::SUCCESS)
    }
}
