use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use highroad_package::registry::RegistryClient;
use highroad_serve::config::{ModelSource, PortfolioConfig};
use highroad_serve::{RemoteRates, in_development, probes, router};
use highroad_service::{Bound, Shell, stop_signal};

use crate::access::Guard;
use crate::resolve::Home;
use crate::serving::{self, Asked, Members, PORTFOLIO};
use crate::tracking::{self, TrackingArgs};

/// `highroad serve [MODEL…]`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    members: Members,
    #[command(flatten)]
    tracking: TrackingArgs,
    #[command(flatten)]
    guard: Guard,
    /// Where to listen; port 0 takes a free one. The first line of stdout is the address.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    listen: String,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut asked = self.members.asked(&self.guard)?;
        let Some(config) = asked.config.take() else {
            bail!("nothing to serve: name a model (`highroad serve moderation@champion`) or write a `{PORTFOLIO}`");
        };
        // Logging first, so that an embedded tracking server logs in the same form.
        serving::start_telemetry()?;
        let follows_registry = config.members.values().any(|member| matches!(member.source, ModelSource::Registry(_)));
        // What is shared has somebody who keeps the whole of it.
        let is_shared = config.budgets.shared.is_some() || self.guard.rates_pool()?.is_some();
        let needs_registry = follows_registry || is_shared;
        let tracking = needs_registry.then(|| tracking::client(&self.tracking)).transpose()?;
        let client = tracking.as_ref().map(|tracking| tracking.client().clone());
        // Not on the client's runtime, which has two threads, as commands need.
        serving::runtime()?.block_on(self.serve(config, asked, client))
    }

    async fn serve(
        &self,
        config: PortfolioConfig,
        mut asked: Asked,
        client: Option<RegistryClient>,
    ) -> anyhow::Result<ExitCode> {
        asked.listen();
        let home = Home::find();
        let rates = self.guard.rates_pool()?;
        let pools = [("[budgets]", config.budgets.shared.as_deref()), ("[rates]", rates.as_deref())];
        serving::check_keeper(pools, client.as_ref()).await?;
        let bound = Bound::bind(&self.listen).await?;
        let url = bound.url(self.guard.scheme());
        let shell = self.guard.shell(None)?;
        if let Some((access, client)) = shell.access.as_ref().zip(client.as_ref()) {
            access.share_with(Arc::new(RemoteRates::new(client.clone())));
        }
        let registry = client.as_ref().map(|client| serving::registry(client, &home)).transpose()?;
        let (portfolio, log) = serving::open(&home, config, self.members.unverified(), registry, client.as_ref())?;
        let errors = portfolio.load().await;
        if !errors.is_empty() {
            let reasons: Vec<String> =
                errors.iter().map(|(name, error)| format!("{name}: {}", error.with_causes())).collect();
            bail!("not every member can serve\n  {}", reasons.join("\n  "));
        }
        let app = router(Arc::clone(&portfolio), log.clone())
            .merge(probes(Arc::clone(&portfolio)))
            .merge(highroad_service::metrics::route());
        let shell = Shell { headers: in_development(&portfolio), ..shell };
        let following = asked.follow(&portfolio);
        serving::announce(&url, &portfolio)?;
        self.guard.warn_if_open(bound.address());
        tokio::select! {
            served = bound.serve(app, shell, stop_signal()) => served?,
            () = portfolio.follow() => {}
            () = serving::keep_leases(&portfolio) => {}
            () = serving::release_memory() => {}
            () = following => {}
        }
        serving::close(&portfolio, &log);
        portfolio.withdraw().await;
        Ok(ExitCode::SUCCESS)
    }
}
