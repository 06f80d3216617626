//! What a portfolio serves at one moment: everything that an edit of `portfolio.toml` can change, in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use highroad_service::access::Principal;

use crate::budget::keeper::Budgets;
use crate::config::PortfolioConfig;
use crate::deployment::Deployment;
use crate::error::AskError;
use crate::hosted::{HostedMember, HostedMembers};
use crate::http;
use crate::pipeline::Pipelines;
use crate::revision::Revision;

/// Members, limits, pipelines and budgets that belong together.
#[derive(Clone, Default)]
pub(crate) struct Served {
    pub(crate) members: BTreeMap<String, Arc<Deployment>>,
    /// Members that no file names.
    pub(crate) added: BTreeSet<String>,
    pub(crate) hosted: Arc<HostedMembers>,
    /// The pipelines, once they are loaded.
    pub(crate) opened: Option<Arc<Pipelines>>,
    pub(crate) budgets: Option<Budgets>,
    pub(crate) config: Arc<PortfolioConfig>,
}

impl Served {
    /// Whether a member has this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name) || self.hosted.get(name).is_some()
    }

    /// Members of our own that `before` does not have as they are.
    pub(crate) fn new_members<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a Arc<Deployment>> {
        let is_in = |member: &Arc<Deployment>| {
            before.members.get(member.name()).is_some_and(|other| Arc::ptr_eq(other, member))
        };
        self.members.values().filter(move |member| !is_in(member))
    }

    /// The same with the members of `other` that no file names.
    pub(crate) fn with_added_of(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for name in other.added.iter().filter(|name| !self.has(name)) {
            all.members.extend(other.members.get(name).map(|member| (name.clone(), Arc::clone(member))));
            all.added.insert(name.clone());
        }
        all
    }

    pub(crate) fn deployments(&self) -> Vec<Arc<Deployment>> {
        let mine = self.members.iter().filter(|(name, _)| Principal::current_may_ask(name));
        mine.map(|(_, member)| Arc::clone(member)).collect()
    }

    pub(crate) fn deployment(&self, name: &str) -> Result<Arc<Deployment>, AskError> {
        match self.members.get(name) {
            Some(_) if !Principal::current_may_ask(name) => Err(AskError::NotAllowed { member: name.to_owned() }),
            Some(member) => Ok(Arc::clone(member)),
            None if self.hosted.get(name).is_some() && Principal::current_may_ask(name) => {
                Err(AskError::Elsewhere { member: name.to_owned() })
            }
            None => {
                let known = self.members.keys().filter(|known| Principal::current_may_ask(known)).cloned();
                let known = known.chain(self.hosted.names()).collect();
                Err(AskError::UnknownMember { name: name.to_owned(), known })
            }
        }
    }

    pub(crate) fn revision(&self, name: &str) -> Result<Arc<Revision>, AskError> {
        self.deployment(name)?.revision()
    }

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
}
