use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Notify;

use crate::alerts::Alerts;
use crate::alerts::objectives::Objectives;
use crate::budget::keeper::Budgets;
use crate::budget::shared::Leases;
use crate::config::{MemberConfig, PortfolioConfig, RequestLimits};
use crate::definitions::Definitions;
use crate::deployment::{Deployment, LocalState, State, Status, Surroundings};
use crate::error::{AskError, DeployError};
use crate::hosted::{HostedMember, HostedMembers, Watching};
use crate::http::told;
use crate::monitor::Monitor;
use crate::pipeline::{IndexPlaces, Pipelines};
use crate::registry::Registry;
use crate::reload::FileStatus;
use crate::revision::{Revision, Unverified};
use crate::rollout::{Assigned, Key, RolloutSettings, RolloutStatus, Rollouts};
pub(crate) use crate::served::Served;

/// The models one process serves, by name.
///
/// Everything that `portfolio.toml` says is in one [`Served`], which [`Portfolio::reload`] replaces whole.
pub struct Portfolio {
    served: ArcSwap<Served>,
    unverified: Unverified,
    registry: Option<Arc<dyn Registry>>,
    local: LocalState,
    rollouts: Arc<RolloutSettings>,
    look_now: Arc<Notify>,
    monitor: Arc<Monitor>,
    alerts: Arc<Alerts>,
    objectives: Arc<ArcSwapOption<Objectives>>,
    /// Whether a reference that means nothing yet is waited for.
    waits: AtomicBool,
    reloading: tokio::sync::Mutex<()>,
    /// Who keeps the whole of budgets that are shared.
    keeper: Option<Arc<dyn Leases>>,
    pub(crate) file: ArcSwapOption<FileStatus>,
}

tokio::task_local! {
    static PINNED: Arc<Served>;
}

/// A portfolio that is loaded and could take the place of the one that serves.
pub struct Prepared {
    next: Served,
    opened_budgets: Option<Budgets>,
}

impl Portfolio {
    /// The members of `config`, none of them loaded yet.
    pub fn new(
        config: PortfolioConfig,
        unverified: Unverified,
        registry: Option<Arc<dyn Registry>>,
        local: LocalState,
    ) -> Self {
        let rollouts = Arc::new(RolloutSettings::new(config.rollouts, config.poll_interval.0));
        let alerts = Alerts::open(&config.alerts, None);
        let portfolio = Self {
            monitor: Monitor::new(local.monitor.clone(), local.baselines.clone()),
            objectives: Arc::new(ArcSwapOption::new(Some(alerts.objectives()))),
            alerts: Arc::new(alerts),
            served: ArcSwap::from_pointee(Served::default()),
            unverified,
            registry,
            local,
            rollouts,
            look_now: Arc::default(),
            waits: AtomicBool::new(false),
            reloading: tokio::sync::Mutex::default(),
            keeper: None,
            file: ArcSwapOption::empty(),
        };
        let served = portfolio.next(config, &Served::default());
        served.members.values().for_each(|member| member.enter(None));
        served.hosted.enter(&HostedMembers::default());
        portfolio.served.store(Arc::new(served));
        portfolio
    }

    /// The same with budgets that every request counts against.
    #[must_use]
    pub fn with_budgets(self, budgets: Option<Budgets>) -> Self {
        self.served.rcu(|served| Served { budgets: budgets.clone(), ..Served::clone(served) });
        self
    }

    /// The same with somebody who keeps the whole of shared budgets, should a later edit open them.
    #[must_use]
    pub fn with_keeper(self, keeper: Option<Arc<dyn Leases>>) -> Self {
        Self { keeper, ..self }
    }

    /// What is served now; within [`Portfolio::pinned`] what was served when that began.
    pub(crate) fn served(&self) -> Arc<Served> {
        PINNED.try_with(Arc::clone).unwrap_or_else(|_| self.served.load_full())
    }

    /// Answers a request by what is served now, whatever is edited meanwhile.
    pub(crate) async fn pinned<F: Future>(&self, answering: F) -> F::Output {
        PINNED.scope(self.served.load_full(), answering).await
    }

    /// The same with objectives and alerts that survive it.
    #[must_use]
    pub fn with_alerts(self, alerts: Alerts) -> Self {
        self.objectives.store(Some(alerts.objectives()));
        Self { alerts: Arc::new(alerts), ..self }
    }

    /// What is promised, and what fires.
    pub fn alerts(&self) -> &Alerts {
        &self.alerts
    }

    /// What may be spent, where anything is limited.
    pub fn budgets(&self) -> Option<Budgets> {
        self.served().budgets.clone()
    }

    /// What may serve here.
    pub(crate) fn unverified(&self) -> Unverified {
        self.unverified
    }

    /// What its own members meet.
    pub fn monitor(&self) -> &Arc<Monitor> {
        &self.monitor
    }

    /// What pipelines and hosted members were, by digest.
    pub fn definitions(&self) -> &Definitions {
        &self.local.definitions
    }

    /// What is kept on this machine.
    pub(crate) fn local(&self) -> &LocalState {
        &self.local
    }

    /// The members that somebody else hosts.
    pub fn hosted(&self) -> Arc<HostedMembers> {
        Arc::clone(&self.served().hosted)
    }

    /// The hosted member `name`. Errors if there is none, or, within a request, if its key may not ask it.
    pub(crate) fn hosted_member(&self, name: &str) -> Result<Arc<HostedMember>, AskError> {
        self.served().hosted_member(name)
    }

    /// Adds a member that no file names, not loaded yet; one of that name stays as it is. It outlives edits of the file.
    pub fn add(&self, name: String, config: MemberConfig) {
        let places = IndexPlaces::of(&name, &self.served().config.indexes);
        let new = self.deployment_of(&name, config, places, None);
        let before = self.served.rcu(|served| {
            let mut served = Served::clone(served);
            if !served.has(&name) {
                served.members.insert(name.clone(), Arc::clone(&new));
                served.added.insert(name.clone());
            }
            served
        });
        if !before.has(&name) {
            new.enter(None);
        }
    }

    fn deployment_of(
        &self,
        name: &str,
        config: MemberConfig,
        indexes: IndexPlaces,
        before: Option<&Deployment>,
    ) -> Arc<Deployment> {
        let (registry, local, monitor) = (self.registry.clone(), self.local.clone(), Arc::clone(&self.monitor));
        let around = Surroundings { registry, local, monitor };
        let rollouts =
            Rollouts::new(Arc::clone(&self.rollouts), Arc::clone(&self.look_now), Arc::clone(&self.objectives));
        let new = Deployment::new(name.to_owned(), config, self.unverified, around, rollouts, before);
        Arc::new(new.with_indexes(indexes))
    }

    /// What `config` says, with what `before` has that is as it was. Nothing that is new in it is loaded.
    fn next(&self, config: PortfolioConfig, before: &Served) -> Served {
        let indexes = config.indexes.clone();
        let member = |(name, config): (&String, &MemberConfig)| {
            let before = before.members.get(name);
            let places = IndexPlaces::of(name, &indexes);
            // An index belongs to the revision that embeds: where it is another, so is the member.
            let same = before.filter(|member| member.config() == config && member.has_indexes(&places));
            let new = || self.deployment_of(name, config.clone(), places.clone(), before.map(Arc::as_ref));
            (name.clone(), same.map_or_else(new, Arc::clone))
        };
        Served {
            members: config.members.iter().map(member).collect(),
            hosted: Arc::new(HostedMembers::new(
                &config.hosted,
                &before.hosted,
                self.unverified,
                &self.local,
                config.rollouts,
                &Watching { monitor: Arc::clone(&self.monitor), config: config.monitor.clone() },
            )),
            budgets: before.budgets.clone(),
            config: Arc::new(config),
            ..Served::default()
        }
    }

    /// Loads everything that `config` has and that does not serve yet, and changes nothing of what serves.
    ///
    /// Errors with everything that keeps it from serving, each with its place in the file in front.
    pub async fn prepare(&self, config: PortfolioConfig) -> Result<Prepared, Vec<String>> {
        let before = self.served.load_full();
        let mut next = self.next(config, &before);
        let mut problems = Vec::new();
        for deployment in next.new_members(&before) {
            match deployment.refresh().await {
                Ok(_) => {}
                Err(DeployError::NotFound(_)) if self.waits.load(Ordering::Relaxed) => {
                    deployment.undeploy();
                }
                Err(error) => problems.push(format!("[members.{}] {}", deployment.name(), error.with_causes())),
            }
        }
        for member in next.hosted.new_to(&before.hosted) {
            if let Err(error) = member.refresh().await {
                problems.push(format!("[members.{}] {}", member.name(), error.with_causes()));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        match open_pipelines(&next) {
            Ok(opened) => next.opened = Some(opened),
            Err(error) => return Err(vec![error.with_causes()]),
        }
        Ok(Prepared { next, opened_budgets: None })
    }

    /// Serves what `config` says from now on, all of it at once, or changes nothing and says why.
    ///
    /// What is as it was goes on as it was: its queue, its rollout, what was spent. Requests finish on what they began with.
    pub async fn reload(&self, config: PortfolioConfig) -> Result<(), Vec<String>> {
        let _one_at_a_time = self.reloading.lock().await;
        let mut prepared = self.prepare(config).await?;
        self.open_budgets(&mut prepared).await.map_err(|reason| vec![format!("[budgets] {reason}")])?;
        self.take_up(prepared);
        Ok(())
    }

    async fn open_budgets(&self, prepared: &mut Prepared) -> Result<(), String> {
        let budgets = &prepared.next.config.budgets;
        let is_other = self.served.load().config.budgets.shared != budgets.shared;
        if is_other && (prepared.next.budgets.is_some() || self.keeper.is_none()) {
            return Err("`shared` is taken up by a restart, not by an edit".to_owned());
        }
        if prepared.next.budgets.is_some() || budgets.is_empty() {
            return Ok(());
        }
        let (dir, config, keeper) = (self.local.budgets.clone(), budgets.clone(), self.keeper.clone());
        let opening = tokio::task::spawn_blocking(move || Budgets::open_shared(&dir, config, keeper)).await;
        let opened = opening.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        prepared.opened_budgets = Some(opened);
        Ok(())
    }

    fn take_up(&self, prepared: Prepared) {
        let Prepared { next, opened_budgets } = prepared;
        let next = Served { budgets: opened_budgets.or(next.budgets.clone()), ..next };
        let before = self.served.rcu(|now| next.with_added_of(now));
        let now = self.served.load_full();
        for (name, member) in &before.members {
            if !now.members.contains_key(name) {
                member.remove();
            }
        }
        now.hosted.enter(&before.hosted);
        for member in now.new_members(&before) {
            member.enter(before.members.get(member.name()).map(Arc::as_ref));
        }
        if let Some(budgets) = &now.budgets {
            budgets.set_config(now.config.budgets.clone());
        }
        self.rollouts.set(now.config.rollouts, now.config.poll_interval.0);
        self.alerts.take_up(&now.config.alerts);
        self.objectives.store(Some(self.alerts.objectives()));
        self.look_now.notify_one();
    }

    /// What `portfolio.toml` says, as it is served.
    pub fn config(&self) -> Arc<PortfolioConfig> {
        Arc::clone(&self.served().config)
    }

    /// What a single request may ask.
    pub fn limits(&self) -> RequestLimits {
        self.served().config.limits
    }

    /// All members, sorted by name; within a request those that its key may ask.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        self.served().deployments()
    }

    /// The member `name`. Errors if there is none, or, within a request, if its key may not ask it.
    pub fn deployment(&self, name: &str) -> Result<Arc<Deployment>, AskError> {
        self.served().deployment(name)
    }

    /// What serves `name` now.
    pub fn revision(&self, name: &str) -> Result<Arc<Revision>, AskError> {
        let revision = self.served().revision(name)?;
        told::asked(revision.facts());
        Ok(revision)
    }

    /// Who answers a request for `name`: what serves now, or the candidate of a rollout that the request's key has a part in.
    pub fn assign(&self, name: &str, key: &Key) -> Result<Assigned, AskError> {
        let assigned = self.deployment(name)?.assign(key)?;
        told::asked(assigned.revision().facts());
        Ok(assigned)
    }

    /// The rollouts that go on here and the last ones of other members, sorted by member.
    pub fn rollouts(&self) -> Vec<RolloutStatus> {
        let members = self.hosted();
        let hosted = members.all();
        let hosted = hosted.iter().filter_map(|member| Some(members.trial(member.name())?.status()));
        let own = self.deployments().into_iter().filter_map(|deployment| deployment.rollout());
        let mut all: Vec<RolloutStatus> = own.chain(hosted).collect();
        all.sort_by(|left, right| left.member.cmp(&right.member));
        all
    }

    /// The rollout of one member that goes on here, or its last one.
    pub fn rollout(&self, name: &str) -> Result<Option<RolloutStatus>, AskError> {
        let hosted = self.hosted();
        if hosted.get(name).is_some() {
            let member = self.hosted_member(name)?;
            return Ok(hosted.trial(member.name()).map(|trial| trial.status()));
        }
        Ok(self.deployment(name)?.rollout())
    }

    /// Where every member stands, sorted by name.
    pub fn statuses(&self) -> Vec<Status> {
        let served = self.served();
        let own = served.deployments().into_iter().map(|deployment| deployment.status());
        let mut statuses: Vec<Status> = own.chain(served.hosted.all().iter().map(|member| member.status())).collect();
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
        for member in self.hosted().all() {
            if let Err(error) = member.refresh().await {
                errors.push((member.name().to_owned(), error));
            }
        }
        if errors.is_empty() {
            match open_pipelines(&self.served()) {
                Ok(opened) => {
                    let opened = Some(opened);
                    self.served.rcu(|served| Served { opened: opened.clone(), ..Served::clone(served) });
                }
                Err(error) => errors.push(("pipelines".to_owned(), error)),
            }
        }
        errors
    }

    /// What serves `member` now, whatever a request's key may ask: for what a pipeline is made of.
    pub(crate) fn embedded_by(&self, member: &str) -> Option<Arc<Revision>> {
        self.served().members.get(member)?.revision().ok()
    }

    /// Why `member` does not serve what it should, whatever a request's key may ask.
    pub(crate) fn failure_of(&self, member: &str) -> Option<String> {
        Some(self.served().members.get(member)?.status().failure?.reason)
    }

    /// The pipelines, once they are loaded.
    pub fn pipelines(&self) -> Option<Arc<Pipelines>> {
        self.served().opened.clone()
    }

    /// [`Portfolio::load`] for servers that wait for their models: a reference that means nothing yet is no error, its
    /// member is undeployed until it does.
    pub async fn load_what_exists(&self) -> Vec<(String, DeployError)> {
        self.waits.store(true, Ordering::Relaxed);
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
            let pause = self.config().poll_interval.0;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.look_now.notified() => {}
            }
            for deployment in self.deployments() {
                // Other errors are told where they happened: in the log, the metrics and the status.
                if let Err(DeployError::NotFound(_)) = deployment.refresh().await {
                    deployment.undeploy();
                }
            }
            for member in self.hosted().all() {
                // Told where it happened, as the others are.
                let _told = member.refresh().await;
            }
        }
    }

    /// Tells the registry that this process follows nothing any more, within two seconds.
    pub async fn withdraw(&self) {
        futures_util::future::join_all(self.deployments().iter().map(|deployment| deployment.withdraw())).await;
    }

    /// Wakes [`Portfolio::follow`]: the registry has just changed.
    pub fn look_now(&self) {
        self.look_now.notify_one();
    }
}

fn open_pipelines(served: &Served) -> Result<Arc<Pipelines>, DeployError> {
    let opened = Pipelines::new(served.config.pipelines.clone(), served.config.indexes.clone());
    match opened.problems(served) {
        problems if problems.is_empty() => Ok(Arc::new(opened)),
        problems => Err(DeployError::Pipeline(problems.join("; "))),
    }
}
