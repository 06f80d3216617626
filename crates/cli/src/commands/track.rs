use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use highroad_service::telemetry::{self, LogFormat};
use highroad_service::{Bound, Shell, stop_signal};
use highroad_track::Tracker;

use crate::resolve::Home;

/// `highroad track`
#[derive(clap::Args)]
pub struct Args {
    /// Address to listen on; port 0 takes a free one. The bound address is the first line of stdout.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5000")]
    listen: String,
    /// Folder of the database and the artifacts; else HIGHROAD_HOME, else `.highroad`.
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        telemetry::init(LogFormat::from_env(), "info")?;
        tokio::runtime::Runtime::new()?.block_on(self.serve())
    }

    async fn serve(self) -> anyhow::Result<ExitCode> {
        let home = self.home.unwrap_or_else(|| Home::find().path().to_owned());
        let tracker = Tracker::open(&home).await.with_context(|| format!("cannot track in `{}`", home.display()))?;
        let bound = Bound::bind(&self.listen).await?;
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{}", bound.url())?;
        stdout.flush()?;
        eprintln!("tracking in `{}`; pages at {}/ui", home.display(), bound.url());
        let result = bound.serve(tracker.server(), Shell::default(), stop_signal()).await;
        tracker.close().await;
        result?;
        Ok(ExitCode::SUCCESS)
    }
}
