//! Which tracking server a command speaks to, and the one it starts itself where none is configured.

use std::collections::BTreeMap;
use std::fs::TryLockError;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use highroad_package::registry::{Credentials, RegistryClient, RunStatus};
use highroad_service::{Bound, Shell};
use highroad_track::{Artifacts, Database, Setup, Tracker, Transfers};

use crate::record::ERROR_TAG;
use crate::resolve::Home;
use crate::training::now_ms;

/// Where runs and models are tracked.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TrackingArgs {
    /// Tracking server; else HIGHROAD_TRACKING_URI, MLFLOW_TRACKING_URI, `[tracking] uri` of highroad.toml, else one is
    /// started inside this process over the local state.
    #[arg(long, value_name = "URL")]
    pub tracking_uri: Option<String>,
}

/// A connection to a tracking server, and the runtime it needs: commands are synchronous.
pub struct Tracking {
    runtime: tokio::runtime::Runtime,
    client: RegistryClient,
    embedded: Option<Embedded>,
}

/// The tracking server of this process. It stops when this is dropped.
struct Embedded {
    tracker: Tracker,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: tokio::task::JoinHandle<()>,
}

/// Opens the tracking server of this command.
pub fn client(args: &TrackingArgs) -> anyhow::Result<Tracking> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (uri, embedded) = match configured_uri(args)? {
        Some(uri) => (uri, None),
        None => {
            let home = Home::find();
            let (address, embedded) = runtime.block_on(Embedded::start(home.path()))?;
            let uri = format!("http://{address}");
            runtime.block_on(end_abandoned(&RegistryClient::new(&uri)?, home.path()));
            (uri, Some(embedded))
        }
    };
    let client = RegistryClient::new(&uri)?.with_credentials(credentials());
    Ok(Tracking { runtime, client, embedded })
}

/// Who runs this command, for the record: git's user, else the login name.
pub fn whoami() -> String {
    let git = |key: &str| {
        let output = std::process::Command::new("git").args(["config", "--get", key]).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let login = || ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok()).filter(|name| !name.is_empty());
    match (git("user.name"), git("user.email")) {
        (Some(name), Some(email)) => format!("{name} <{email}>"),
        (Some(name), None) => name,
        (None, email) => email.or_else(login).unwrap_or_else(|| "unknown".to_owned()),
    }
}

impl Tracking {
    /// The client.
    pub fn client(&self) -> &RegistryClient {
        &self.client
    }

    /// Whether the server lives inside this process, so that no other machine can reach it.
    pub fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// Waits for an answer.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        if let Some(mut embedded) = self.embedded.take() {
            drop(embedded.stop.take());
            self.runtime.block_on(async {
                // The server drains within its own limit; a panic in it was logged there.
                drop(embedded.server.await);
                embedded.tracker.close().await;
            });
        }
    }
}

impl Embedded {
    async fn start(home: &Path) -> anyhow::Result<(SocketAddr, Self)> {
        let setup = Storage::from_env()?.setup(home);
        let tracker = Tracker::open(setup).await.with_context(|| format!("local tracking in `{}`", home.display()))?;
        let bound = Bound::bind("127.0.0.1:0").await?;
        let address = bound.address();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let router = tracker.server();
        let shell = Shell { drain: std::time::Duration::from_secs(1), ..Shell::default() };
        let server = tokio::spawn(async move {
            if let Err(error) = bound.serve(router, shell, async { drop(stopped.await) }).await {
                tracing::error!(%error, "The embedded tracking server failed: {error}");
            }
        });
        Ok((address, Self { tracker, stop: Some(stop), server }))
    }
}

/// Held while this process answers for a run: a lock that the system drops when the process dies, however it does.
///
/// A server inside a killed process cannot end its run, so the next one here does.
pub struct Held {
    run_id: String,
    path: PathBuf,
    _lock: std::fs::File,
}

/// Folder of the home that holds a locked file for each run that a process here answers for.
const HELD: &str = "running";

impl Held {
    /// Answers for a run from here on.
    pub fn take(run_id: &str) -> anyhow::Result<Self> {
        Self::take_in(Home::find().path(), run_id)
    }

    /// The run.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    fn take_in(home: &Path, run_id: &str) -> anyhow::Result<Self> {
        let folder = home.join(HELD);
        let context = || format!("cannot note in {} that a run is under way", folder.display());
        std::fs::create_dir_all(&folder).with_context(context)?;
        let path = folder.join(run_id);
        if let Ok(other) = std::fs::File::open(&path)
            && let Err(TryLockError::WouldBlock) = other.try_lock()
        {
            bail!("another process trains run {run_id} at this moment");
        }
        // It has its name only once it is locked: without a lock it is one of a process that is gone.
        let unnamed = folder.join(format!(".{run_id}"));
        let lock = std::fs::File::create(&unnamed).with_context(context)?;
        lock.lock().with_context(context)?;
        std::fs::rename(&unnamed, &path).with_context(context)?;
        Ok(Self { run_id: run_id.to_owned(), path, _lock: lock })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.path);
    }
}

/// Ends the runs whose processes are gone; what cannot be ended now is left to the next.
async fn end_abandoned(client: &RegistryClient, home: &Path) {
    for entry in std::fs::read_dir(home.join(HELD)).into_iter().flatten().flatten() {
        let Ok(file) = std::fs::File::open(entry.path()) else { continue };
        let Some(run_id) = entry
            .file_name()
            .to_str()
            .map(str::to_owned)
            .filter(|name| !name.starts_with('.') && file.try_lock().is_ok())
        else {
            continue;
        };
        match client.get_run(&run_id).await {
            Ok(run) if run.status == RunStatus::Running => {
                let error = "the command that trained it was killed".to_owned();
                let tags = BTreeMap::from([(ERROR_TAG.to_owned(), error)]);
                let told = client.tag_run(&run_id, &tags).await;
                if told.is_err() || client.update_run(&run_id, RunStatus::Killed, Some(now_ms())).await.is_err() {
                    continue;
                }
            }
            // It ended, or is tracked elsewhere, where its own process told of it.
            _ => {}
        }
        _ = std::fs::remove_file(entry.path());
    }
}

/// Where a tracking server of ours keeps its tables and its artifacts.
#[derive(clap::Args)]
pub struct Storage {
    /// `postgres://USER:PASSWORD@HOST/NAME` or the path of a SQLite file; else `track.db` in the home folder.
    #[arg(long, value_name = "URL", env = DATABASE_URL, hide_env_values = true, global = true)]
    database: Option<Database>,
    /// `s3://BUCKET/PREFIX` or a folder; else `artifacts` in the home folder. Credentials, region and endpoint of a
    /// bucket come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL.
    #[arg(long, value_name = "URL", env = ARTIFACTS_URL, global = true)]
    artifacts: Option<Artifacts>,
    /// How clients may move artifacts that are in a bucket: `presigned` gives those that ask signed addresses of the
    /// store itself, `proxied` lets every byte through the server, for a store that clients cannot reach.
    #[arg(long, value_name = "HOW", env = ARTIFACT_TRANSFERS, global = true)]
    artifact_transfers: Option<Transfers>,
}

const DATABASE_URL: &str = "HIGHROAD_DATABASE_URL";
const ARTIFACTS_URL: &str = "HIGHROAD_ARTIFACTS_URL";
const ARTIFACT_TRANSFERS: &str = "HIGHROAD_ARTIFACT_TRANSFERS";

impl Storage {
    /// For servers that have no options of their own.
    pub fn from_env() -> anyhow::Result<Self> {
        Ok(Self {
            database: from_env(DATABASE_URL)?,
            artifacts: from_env(ARTIFACTS_URL)?,
            artifact_transfers: from_env(ARTIFACT_TRANSFERS)?,
        })
    }

    /// What a server is opened with where `home` is the folder of everything that is not named.
    pub fn setup(&self, home: &Path) -> Setup {
        let mut setup = Setup::under(home);
        if let Some(database) = &self.database {
            setup.database = database.clone();
        }
        if let Some(artifacts) = &self.artifacts {
            setup.artifacts = artifacts.clone();
        }
        setup.transfers = self.artifact_transfers.unwrap_or_default();
        setup
    }
}

/// What a variable says, if it says something.
fn from_env<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(name: &str) -> anyhow::Result<Option<T>> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.map(|value| value.parse()).transpose().with_context(|| format!("{name} cannot be used"))
}

/// The server that flag, environment or standard name. Errors if a file that the standard extends cannot be had.
pub fn configured_uri(args: &TrackingArgs) -> anyhow::Result<Option<String>> {
    let env = |name: &str| std::env::var(name).ok().filter(|uri| !uri.is_empty());
    let named = args
        .tracking_uri
        .clone()
        .or_else(|| env("HIGHROAD_TRACKING_URI"))
        // MLflow also takes folders and databases here, which only its own Python code can open.
        .or_else(|| env("MLFLOW_TRACKING_URI").filter(|uri| uri.starts_with("http://") || uri.starts_with("https://")));
    match named {
        Some(uri) => Ok(Some(uri)),
        None => uri_of_standard(Path::new(".")),
    }
}

fn uri_of_standard(root: &Path) -> anyhow::Result<Option<String>> {
    let uri = crate::standard::effective::value(root, "tracking.uri")?;
    Ok(uri.and_then(|uri| uri.as_str().map(str::to_owned)).filter(|uri| !uri.is_empty()))
}

/// `request` with the login of this environment.
pub fn login(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    match credentials() {
        Some(Credentials::Bearer(token)) => request.bearer_auth(token),
        Some(Credentials::Basic(user, password)) => request.basic_auth(user, Some(password)),
        _ => request,
    }
}

/// MLflow's own variables for a login.
pub fn credentials() -> Option<Credentials> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (env("MLFLOW_TRACKING_TOKEN"), env("MLFLOW_TRACKING_USERNAME")) {
        (Some(token), _) => Some(Credentials::Bearer(token)),
        (None, Some(user)) => Some(Credentials::Basic(user, env("MLFLOW_TRACKING_PASSWORD").unwrap_or_default())),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use highroad_package::registry::NewRun;

    use super::*;

    #[test]
    fn the_flag_wins_and_an_empty_uri_in_the_file_means_embedded() {
        let args = TrackingArgs { tracking_uri: Some("http://a".into()) };
        assert_eq!(configured_uri(&args).unwrap().as_deref(), Some("http://a"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("highroad.toml");
        std::fs::write(&path, "[tracking]\nuri = \"\"\n").unwrap();
        assert_eq!(uri_of_standard(dir.path()).unwrap(), None);
        std::fs::write(&path, "[tracking]\nuri = \"http://b\"\n").unwrap();
        assert_eq!(uri_of_standard(dir.path()).unwrap().as_deref(), Some("http://b"));
    }

    #[test]
    fn a_run_whose_process_is_gone_is_ended_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (address, embedded) = runtime.block_on(Embedded::start(dir.path())).unwrap();
        let client = RegistryClient::new(&format!("http://{address}")).unwrap();
        let tracking = Tracking { runtime, client, embedded: Some(embedded) };
        let client = tracking.client();
        let status = |id: &str| tracking.block_on(client.get_run(id)).unwrap().status;
        let new = NewRun { experiment: "e".into(), start_ms: now_ms(), ..NewRun::default() };
        let [held, gone] = [(), ()].map(|()| tracking.block_on(client.create_run(&new)).unwrap());
        let lives = Held::take_in(dir.path(), &held).unwrap();
        assert!(Held::take_in(dir.path(), &held).is_err());
        // As a killed process leaves it.
        std::fs::write(dir.path().join(HELD).join(&gone), "").unwrap();
        tracking.block_on(end_abandoned(client, dir.path()));
        assert_eq!((status(&held), status(&gone)), (RunStatus::Running, RunStatus::Killed));
        assert!(!dir.path().join(HELD).join(&gone).exists() && lives.path.exists());
    }

    #[test]
    fn an_embedded_server_answers_and_stops() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (address, embedded) = runtime.block_on(Embedded::start(dir.path())).unwrap();
        let client = RegistryClient::new(&format!("http://{address}")).unwrap();
        let tracking = Tracking { runtime, client, embedded: Some(embedded) };
        assert!(tracking.block_on(tracking.client().audit("")).unwrap().is_empty());
        drop(tracking);
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}
