use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use highroad_service::access::Principal;
use tokio::sync::Notify;

use crate::alerts::Alerts;
use crate::alerts::objectives::Objectives;
use crate::budget::keeper::Budgets;
use crate::config::{MemberConfig, PortfolioConfig, RequestLimits, RolloutConfig};
use crate::deployment::{Deployment, LocalState, State, Status};
use crate::error::{AskError, DeployError};
use crate::hosted::{HostedMember, HostedMembers};
use crate::http;
use crate::pipeline::{IndexConfig, PipelineConfig, Pipelines};
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
    pipelines: BTreeMap<String, PipelineConfig>,
    indexes: BTreeMap<String, IndexConfig>,
    opened: ArcSwapOption<Pipelines>,
    hosted: HostedMembers,
    budgets: Option<Budgets>,
    alerts: Arc<Alerts>,
    objectives: Arc<ArcSwapOption<Objectives>>,
}

impl Portfolio {
    /// The members of `config`, none of them loaded yet.
    pub fn new(
        config: PortfolioConfig,
        unverified: Unverified,
        registry: Option<Arc<dyn Registry>>,
        local: LocalState,
    ) -> Self {
        let hosted = HostedMembers::new(config.hosted, unverified, &local);
        let alerts = Alerts::open(&config.alerts, None);
        let portfolio = Self {
            hosted,
            budgets: None,
            objectives: Arc::new(ArcSwapOption::new(Some(Arc::clone(alerts.objectives())))),
            alerts: Arc::new(alerts),
            members: Mutex::default(),
            limits: config.limits,
            poll_interval: config.poll_interval.0,
            unverified,
            registry,
            local,
            rollouts: config.rollouts,
            look_now: Arc::default(),
            pipelines: config.pipelines,
            indexes: config.indexes,
            opened: ArcSwapOption::empty(),
        };
        for (name, member) in config.members {
            portfolio.add(name, member);
        }
        portfolio
    }

    /// The same with budgets that every request counts against.
    #[must_use]
    pub fn with_budgets(self, budgets: Option<Budgets>) -> Self {
        Self { budgets, ..self }
    }

    /// The same with objectives and alerts that survive it.
    #[must_use]
    pub fn with_alerts(self, alerts: Alerts) -> Self {
        self.objectives.store(Some(Arc::clone(alerts.objectives())));
        Self { alerts: Arc::new(alerts), ..self }
    }

    /// What is promised, and what fires.
    pub fn alerts(&self) -> &Alerts {
        &self.alerts
    }

    /// What may be spent, where anything is limited.
    pub fn budgets(&self) -> Option<&Budgets> {
        self.budgets.as_ref()
    }

    /// The members that somebody else hosts.
    pub fn hosted(&self) -> &HostedMembers {
        &self.hosted
    }

    /// The hosted member `name`. Errors if there is none, or, within a request, if its key may not ask it.
    pub(crate) fn hosted_member(&self, name: &str) -> Result<Arc<HostedMember>, AskError> {
        match self.hosted.get(name) {
            Some(_) if !Principal::current_may_ask(name) => Err(AskError::NotAllowed { member: name.to_owned() }),
            Some(member) => Ok(Arc::clone(member)),
            // A package is for another task, and its own routes know which.
            None => match self.deployment(name) {
                Ok(own) => Err(AskError::WrongTask {
                    member: name.to_owned(),
                    task: http::task_name(&*own.revision()?),
                    wanted: "generation",
                }),
                Err(error) => Err(error),
            },
        }
    }

    /// Adds a member, not loaded yet; one of that name stays as it is.
    pub fn add(&self, name: String, config: MemberConfig) {
        let deployment = || {
            let (registry, local) = (self.registry.clone(), self.local.clone());
            let (wake, objectives) = (Arc::clone(&self.look_now), Arc::clone(&self.objectives));
            let rollouts = Rollouts::new(&name, self.rollouts, self.poll_interval, wake, objectives);
            Arc::new(Deployment::new(name.clone(), config, self.unverified, registry, local, rollouts))
        };
        self.members().entry(name.clone()).or_insert_with(deployment);
    }

    /// What a single request may ask.
    pub fn limits(&self) -> &RequestLimits {
        &self.limits
    }

    /// All members, sorted by name; within a request those that its key may ask.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        let members = self.members();
        members.iter().filter(|(name, _)| Principal::current_may_ask(name)).map(|(_, member)| member.clone()).collect()
    }

    /// The member `name`. Errors if there is none, or, within a request, if its key may not ask it.
    pub fn deployment(&self, name: &str) -> Result<Arc<Deployment>, AskError> {
        let members = self.members();
        match members.get(name) {
            Some(_) if !Principal::current_may_ask(name) => Err(AskError::NotAllowed { member: name.to_owned() }),
            Some(member) => Ok(Arc::clone(member)),
            None if self.hosted.get(name).is_some() && Principal::current_may_ask(name) => {
                Err(AskError::Elsewhere { member: name.to_owned() })
            }
            None => {
                let known = members.keys().filter(|known| Principal::current_may_ask(known)).cloned();
                let known = known.chain(self.hosted.names()).collect();
                Err(AskError::UnknownMember { name: name.to_owned(), known })
            }
        }
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
        let own = self.deployments().into_iter().map(|deployment| deployment.status());
        let mut statuses: Vec<Status> = own.chain(self.hosted.all().iter().map(|member| member.status())).collect();
        statuses.sort_by(|left, right| left.member.cmp(&right.member));
        statuses
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
        for member in self.hosted.all() {
            if let Err(error) = member.refresh().await {
                errors.push((member.name().to_owned(), error));
            }
        }
        if errors.is_empty() {
            errors.extend(self.open_pipelines().await.err());
        }
        errors
    }

    /// The pipelines, once they are loaded.
    pub fn pipelines(&self) -> Option<Arc<Pipelines>> {
        self.opened.load_full()
    }

    async fn open_pipelines(&self) -> Result<(), (String, DeployError)> {
        let (pipelines, indexes) = (self.pipelines.clone(), self.indexes.clone());
        let opened = tokio::task::spawn_blocking(move || Pipelines::open(&pipelines, &indexes)).await;
        let named = |error: DeployError| ("pipelines".to_owned(), error);
        let opened = opened.map_err(|_| named(DeployError::Panicked))?.map_err(|error| named(error.into()))?;
        match opened.problems(self) {
            problems if problems.is_empty() => {}
            problems => return Err(named(DeployError::Pipeline(problems.join("; ")))),
        }
        self.opened.store(Some(Arc::new(opened)));
        Ok(())
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
    /// [`Portfolio::look_now`]. Looks beside it for what somebody should be told.
    pub async fn follow(&self) {
        tokio::join!(self.follow_registry(), self.alerts.run(self));
    }

    async fn follow_registry(&self) {
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
            for member in self.hosted.all() {
                // Told where it happened, as the others are.
                let _told = member.refresh().await;
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
