use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::{Redirect, Response};
use axum::routing::get;
use highroad_package::registry::{Credentials, RegistryClient};
use highroad_package::{Reference, Selector};
use highroad_serve::config::{MemberConfig, ModelSource, is_member_name};
use highroad_serve::{Portfolio, in_development, probes, router};
use highroad_service::{Bound, Shell, access, stop_signal};
use highroad_track::Tracker;
use tokio::sync::Notify;

use crate::access::Guard;
use crate::pages::{self, Servers};
use crate::resolve::Home;
use crate::serving::{self, Asked, Members};
use crate::tracking::Storage;

/// `highroad up [MODEL…]`: tracking, registry, pages and serving in one process on one port.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    members: Members,
    #[command(flatten)]
    storage: Storage,
    #[command(flatten)]
    guard: Guard,
    /// Where to listen; port 0 takes a free one. The first line of stdout is the address.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    listen: String,
}

/// Pause between two looks for models that have a champion for the first time. A promotion through this process is seen at
/// once; this is for commands that write to the same state themselves.
const DISCOVER_EVERY: Duration = Duration::from_secs(5);

/// The alias that production follows.
const CHAMPION: &str = "champion";

/// Who wants to know that an alias may have moved.
#[derive(Clone)]
struct Listeners {
    portfolio: Arc<Portfolio>,
    discovery: Arc<Notify>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        serving::start_telemetry()?;
        let asked = self.members.asked(&self.guard)?;
        serving::runtime()?.block_on(self.up(asked))
    }

    async fn up(self, mut asked: Asked) -> anyhow::Result<ExitCode> {
        asked.listen();
        let home = Home::find();
        let tracker = Tracker::open(self.storage.setup(home.path())).await?;
        let bound = Bound::bind(&self.listen).await?;
        let url = bound.url(self.guard.scheme());
        let own_key = self.guard.asks_for_keys().then(access::new_key).transpose()?.map(|(key, _digest)| key);
        let shell = self.guard.shell(own_key.clone())?;
        // The process asks itself without a certificate: on a loopback port of its own where the public one has one.
        let inner = if shell.tls.is_some() { Some(Bound::bind("127.0.0.1:0").await?) } else { None };
        let client = RegistryClient::new(&own_url(inner.as_ref().unwrap_or(&bound)))?;
        let client = client.with_credentials(own_key.map(Credentials::Bearer));
        let registry = serving::registry(&client, &home)?;
        let config = asked.config.take();
        let discovers = config.is_none();
        let config = config.unwrap_or_default();
        let (portfolio, log) = serving::open(&home, config, self.members.unverified(), Some(registry), Some(&client))?;

        let listeners = Listeners { portfolio: Arc::clone(&portfolio), discovery: Arc::default() };
        let tracking = tracker.router().layer(middleware::from_fn_with_state(listeners.clone(), tell));
        let app = router(Arc::clone(&portfolio), log.clone())
            .merge(tracking)
            .merge(pages::routes(tracker.clone(), Servers::This))
            .merge(probes(Arc::clone(&portfolio)))
            .merge(highroad_service::metrics::route())
            .route("/", get(|| async { Redirect::to("/ui") }));
        let shell = Shell { headers: in_development(&portfolio), ..shell };
        // The registry is this very process, so it has to answer before members can load.
        let address = bound.address();
        if let Some(inner) = inner {
            let plain = Shell { tls: None, ..shell.clone() };
            tokio::spawn(inner.serve(app.clone(), plain, stop_signal()));
        }
        let server = tokio::spawn(bound.serve(app, shell, stop_signal()));
        if discovers {
            discover(&client, &portfolio).await;
        }
        // What does not load is told in the log and the status; the registry must stay reachable to repair it.
        let _told = portfolio.load_what_exists().await;
        let following = asked.follow(&portfolio);
        serving::announce(&url, &portfolio)?;
        self.guard.warn_if_open(address);
        eprintln!("tracking and registry at {url}, dashboard at {url}/ui");
        tokio::select! {
            served = server => served??,
            () = portfolio.follow() => {}
            () = serving::keep_leases(&portfolio) => {}
            () = serving::release_memory() => {}
            () = following => {}
            () = keep_discovering(&client, &listeners), if discovers => {}
        }
        serving::close(&listeners.portfolio, &log);
        tracker.close().await;
        Ok(ExitCode::SUCCESS)
    }
}

/// Where this process reaches itself: an unspecified address is listened on, not connected to.
fn own_url(bound: &Bound) -> String {
    let mut address = bound.address();
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

async fn keep_discovering(client: &RegistryClient, listeners: &Listeners) {
    loop {
        let _either = tokio::time::timeout(DISCOVER_EVERY, listeners.discovery.notified()).await;
        discover(client, &listeners.portfolio).await;
    }
}

/// Makes every model that has a champion a member, if the champion is a package: other MLflow models are not ours to serve.
async fn discover(client: &RegistryClient, portfolio: &Portfolio) {
    let named = match client.models_with(CHAMPION).await {
        Ok(named) => named,
        Err(error) => return tracing::warn!("Cannot look for champions: {error}"),
    };
    for name in named.into_iter().filter(|name| is_member_name(name) && portfolio.deployment(name).is_err()) {
        let reference = Reference { name: name.clone(), selector: Selector::Alias(CHAMPION.to_owned()) };
        if client.resolve(&reference).await.is_ok() {
            portfolio.add(name, MemberConfig::new(ModelSource::Registry(reference)));
            portfolio.look_now();
        }
    }
}

/// After a write that may have moved an alias, members look at once instead of at their next interval.
async fn tell(State(listeners): State<Listeners>, request: Request, next: Next) -> Response {
    let moves_alias = request.method() != Method::GET
        && ["alias", "promote", "rollback", "registered-models", "model-versions"]
            .iter()
            .any(|part| request.uri().path().contains(part));
    let response = next.run(request).await;
    if moves_alias && response.status().is_success() {
        listeners.portfolio.look_now();
        listeners.discovery.notify_one();
    }
    response
}
