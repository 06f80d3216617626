use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use highroad_service::telemetry::{self, LogFormat};
use highroad_service::{Bound, stop_signal};
use highroad_track::{Loss, Schema, Setup, Tracker};

use crate::access::Guard;
use crate::pages::{self, Servers};
use crate::resolve::Home;
use crate::tracking::Storage;

mod import;

/// `highroad track`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Address to listen on; port 0 takes a free one. The bound address is the first line of stdout.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5000")]
    listen: String,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    guard: Guard,
    /// A `highroad serve` that the pages look into, read only and with the key of who looks; may be given several times.
    #[arg(long, value_name = "URL")]
    serving: Vec<String>,
}

/// What else there is to do with a tracking database.
#[derive(clap::Subcommand)]
enum Command {
    /// Bring the tables to a version; a server does this by itself as it starts.
    Migrate(Migrate),
    /// Copy the SQLite database to a file, also while it is served, and read the copy to the end.
    Backup(BackupArgs),
    /// Take over what an MLflow server holds; what was taken before is not taken again.
    Import(import::Import),
}

/// Where tracking keeps what.
#[derive(clap::Args)]
struct Places {
    /// Folder of the database and the artifacts; else HIGHROAD_HOME, else `.highroad`.
    #[arg(long, value_name = "DIR", global = true)]
    home: Option<PathBuf>,
    #[command(flatten)]
    storage: Storage,
}

#[derive(clap::Args)]
struct Migrate {
    /// The version to go to; without it the newest. Going back drops what the newer tables hold.
    #[arg(long, value_name = "N", conflicts_with = "down")]
    to: Option<i64>,
    /// One version back.
    #[arg(long)]
    down: bool,
    /// Drop what only the newer tables hold, where it goes back
    #[arg(long)]
    yes: bool,
}

#[derive(clap::Args)]
struct BackupArgs {
    /// The file to make; it must not exist.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Make nothing: read a backup that exists and tell whether it is whole.
    #[arg(long)]
    check: bool,
    /// Tell what it holds as JSON.
    #[arg(long)]
    json: bool,
}

impl Places {
    fn home(&self) -> PathBuf {
        self.home.clone().unwrap_or_else(|| Home::find().path().to_owned())
    }

    fn setup(&self) -> Setup {
        self.storage.setup(&self.home())
    }
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        telemetry::init(LogFormat::from_env(), "info")?;
        let runtime = tokio::runtime::Runtime::new()?;
        match self.command {
            None => {
                let servers = Servers::others(&self.serving)?;
                runtime.block_on(serve(&self.listen, self.places, &self.guard, servers))
            }
            Some(Command::Migrate(migrate)) => runtime.block_on(migrate.run(self.places)),
            Some(Command::Import(import)) => {
                runtime.block_on(async { import.run(Tracker::open(self.places.setup()).await?).await })
            }
            Some(Command::Backup(backup)) => runtime.block_on(backup.run(self.places)),
        }
    }
}

async fn serve(listen: &str, places: Places, guard: &Guard, servers: Servers) -> anyhow::Result<ExitCode> {
    let setup = places.setup();
    let (database, artifacts) = (setup.database.clone(), setup.artifacts.clone());
    let tracker =
        Tracker::open(setup).await.with_context(|| format!("cannot track in `{}`", places.home().display()))?;
    let shell = guard.shell(None)?;
    let bound = Bound::bind(listen).await?;
    let url = bound.url(guard.scheme());
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{url}")?;
    stdout.flush()?;
    guard.warn_if_open(bound.address());
    eprintln!("tracking in `{database}`, artifacts in `{artifacts}`; dashboard at {url}/ui");
    let app = tracker.server().merge(pages::routes(tracker.clone(), servers));
    let result = bound.serve(app, shell, stop_signal()).await;
    tracker.close().await;
    result?;
    Ok(ExitCode::SUCCESS)
}

impl Migrate {
    async fn run(self, places: Places) -> anyhow::Result<ExitCode> {
        let schema = match self.to {
            Some(version) => Schema::Version(version),
            None if self.down => Schema::Down,
            None => Schema::Newest,
        };
        let loss = if self.yes { Loss::Accepted } else { Loss::Refused };
        let database = places.setup().database;
        let moved = highroad_track::migrate(&database, schema, loss).await?;
        writeln!(std::io::stdout(), "{}", moved.to)?;
        match moved.from == moved.to {
            true => eprintln!("the tables of `{database}` are at version {}", moved.to),
            false => eprintln!("the tables of `{database}` went from version {} to {}", moved.from, moved.to),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl BackupArgs {
    async fn run(self, places: Places) -> anyhow::Result<ExitCode> {
        let backup = match self.check {
            true => highroad_track::check_backup(&self.file).await?,
            false => highroad_track::back_up(&places.setup().database, &self.file).await?,
        };
        let mut stdout = std::io::stdout();
        if self.json {
            writeln!(stdout, "{}", serde_json::to_string(&backup)?)?;
        } else {
            writeln!(stdout, "{}", self.file.display())?;
            eprintln!(
                "whole: {} bytes, tables of version {}, {} experiments, {} runs, {} points, {} model versions",
                backup.size_bytes,
                backup.schema,
                backup.n_experiments,
                backup.n_runs,
                backup.n_points,
                backup.n_model_versions
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
