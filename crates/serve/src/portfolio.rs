use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::config::{MemberConfig, PortfolioConfig, RequestLimits, RolloutConfig};
use crate::deployment::{Deployment, LocalState, State, Status};
use crate::error::{AskError, DeployError};
use crate::registry::Registry;
use crate::revision::{Revision, Unverified};
use crate::rollout::{Assigned, Key, RolloutStatus, Rollouts};

/// The models one process serves, by name.
pub struct Portfolio {
    members: Mutex<BTreeMap<String, Arc<Deployment>>>,
    limits: RequestLimits,
    poll_interval: Duration,
    unverified: Unverified,
    registry: Option<Arc<dyn Registry>>,
    local: LocalState,
    rollouts: RolloutConfig,
    look_now: Arc<Notify>,
}

impl Portfolio {
    /// The members of `config`, none of them loaded yet.
    pub fn new(
        config: PortfolioConfig,
        unverified: Unverified,
        registry: Option<Arc<dyn Registry>>,
        local: LocalState,
    ) -> Self {
        let portfolio = Self {
            members: Mutex::default(),
            limits: config.limits,
            poll_interval: config.poll_interval.0,
            unverified,
            registry,
            local,
            rollouts: config.rollouts,
            look_now: Arc::default(),
        };
        for (name, member) in config.members {
            portfolio.add(name, member);
        }
        portfolio
    }

    /// Adds a member, not loaded yet; one of that name stays as it is.
    pub fn add(&self, name: String, config: MemberConfig) {
        let deployment = || {
            let (registry, local) = (self.registry.clone(), self.local.clone());
            let rollouts = Rollouts::new(&name, self.rollouts, self.poll_interval, Arc::clone(&self.look_now));
            Arc::new(Deployment::new(name.clone(), config, self.unverified, registry, local, rollouts))
        };
        self.members().entry(name.clone()).or_insert_with(deployment);
    }

    /// What a single request may ask.
    pub fn limits(&self) -> &RequestLimits {
        &self.limits
    }

    /// All members, sorted by name.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        self.members().values().cloned().collect()
    }

    /// The member `name`. Errors if there is none.
    pub fn deployment(&self, name: &str) -> Result<Arc<Deployment>, AskError> {
        let members = self.members();
        members
            .get(name)
            .cloned()
            .ok_or_else(|| AskError::UnknownMember { name: name.to_owned(), known: members.keys().cloned().collect() })
    }

    /// What serves `name` now.
    pub fn revision(&self, name: &str) -> Result<Arc<Revision>, AskError> {
        self.deployment(name)?.revision()
    }

    /// Who answers a request for `name`: what serves now, or the candidate of a rollout that the request's key has a part in.
    pub fn assign(&self, name: &str, key: &Key) -> Result<Assigned, AskError> {
        self.deployment(name)?.assign(key)
    }

    /// The rollouts that go on here and the last ones of other members, sorted by member.
    pub fn rollouts(&self) -> Vec<RolloutStatus> {
        self.deployments().iter().filter_map(|deployment| deployment.rollout()).collect()
    }

    /// Where every member stands, sorted by name.
    pub fn statuses(&self) -> Vec<Status> {
        self.deployments().iter().map(|deployment| deployment.status()).collect()
    }

    /// Whether every member serves what it should, apart from those that should serve nothing.
    pub fn is_ready(&self) -> bool {
        self.statuses().iter().all(|status| status.state != State::Starting)
    }

    /// Loads every member that is not loaded, one after the other, and gives the errors of those that did not.
    pub async fn load(&self) -> Vec<(String, DeployError)> {
        let mut errors = Vec::new();
        for deployment in self.deployments() {
            if let Err(error) = deployment.refresh().await {
                errors.push((deployment.name().to_owned(), error));
            }
        }
        errors
    }

    /// [`Portfolio::load`] for servers that wait for their models: a reference that means nothing yet is no error, its
    /// member is undeployed until it does.
    pub async fn load_what_exists(&self) -> Vec<(String, DeployError)> {
        let mut errors = self.load().await;
        errors.retain(|(name, error)| {
            let absent = matches!(error, DeployError::NotFound(_));
            if absent && let Ok(deployment) = self.deployment(name) {
                deployment.undeploy();
            }
            !absent
        });
        errors
    }

    /// Follows the registry for as long as the future is polled: every poll interval, and at once after
    /// [`Portfolio::look_now`].
    pub async fn follow(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.poll_interval) => {}
                () = self.look_now.notified() => {}
            }
            for deployment in self.deployments() {
                // Other errors are told where they happened: in the log, the metrics and the status.
                if let Err(DeployError::NotFound(_)) = deployment.refresh().await {
                    deployment.undeploy();
                }
            }
        }
    }

    /// Wakes [`Portfolio::follow`]: the registry has just changed.
    pub fn look_now(&self) {
        self.look_now.notify_one();
    }

    fn members(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Deployment>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
