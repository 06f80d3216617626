use std::collections::BTreeMap;
use std::process::ExitCode;

use highroad_package::registry::dependents::{due, indexes};
use highroad_package::registry::{RegisteredModel, RegistryError};
use highroad_package::{Reference, Selector};
use serde_json::{Value, json};

use super::eval::print_json;
use crate::outln;
use crate::tracking::{self, Tracking, TrackingArgs};

/// Something is due.
const DUE: u8 = 1;

/// `highroad status`
#[derive(clap::Args)]
pub struct Args {
    /// One registered model; all of them unless told.
    name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tracking: TrackingArgs,
}

/// What rests on one alias.
struct Standing {
    alias: String,
    version: String,
    /// Indexes, and whether the package that the alias names embedded them.
    indexes: BTreeMap<String, bool>,
    due: Vec<String>,
    /// What the newest verdict on it says.
    outcome: Option<String>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.tracking)?;
        let models = tracking.block_on(tracking.client().models())?;
        let wanted: Vec<RegisteredModel> =
            models.into_iter().filter(|model| self.name.as_ref().is_none_or(|name| *name == model.name)).collect();
        if let Some(name) = self.name.filter(|_| wanted.is_empty()) {
            return Err(RegistryError::NotFound(name).into());
        }
        let mut standings = Vec::new();
        for model in &wanted {
            for alias in model.aliases.keys() {
                standings.extend(standing(&tracking, model, alias)?);
            }
        }
        if self.json {
            print_json(&standings.iter().map(Standing::json).collect::<Vec<Value>>())?;
        } else {
            standings.iter().for_each(Standing::print);
        }
        let is_due = standings.iter().any(|one| !one.due.is_empty() || one.indexes.values().any(|fits| !fits));
        Ok(if is_due { ExitCode::from(DUE) } else { ExitCode::SUCCESS })
    }
}

/// `None` where the alias names no package of ours.
fn standing(tracking: &Tracking, model: &RegisteredModel, alias: &str) -> anyhow::Result<Option<Standing>> {
    let reference = Reference { name: model.name.clone(), selector: Selector::Alias(alias.to_owned()) };
    let version = match tracking.block_on(tracking.client().resolve(&reference)) {
        Ok(version) => version,
        Err(RegistryError::NotAPackage(_) | RegistryError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let tags = || model.tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let fits = indexes(tags(), alias).into_iter().map(|index| {
        let fits = index.builds.iter().any(|build| build.package == version.package);
        (index.index, fits)
    });
    let mut due = due(tags(), alias, &version.package);
    let refused = version.outcome.as_deref().filter(|outcome| *outcome != "pass");
    if let Some(outcome) = refused.filter(|_| !version.overrides.contains_key(alias)) {
        due.push(format!(
            "the newest verdict on {} is {outcome}: it goes on serving by what admitted it; gate it anew or roll back",
            version.label()
        ));
    }
    Ok(Some(Standing {
        alias: reference.to_string(),
        version: version.label(),
        indexes: fits.collect(),
        due,
        outcome: version.outcome,
    }))
}

impl Standing {
    fn json(&self) -> Value {
        let Self { alias, version, indexes, due, outcome } = self;
        json!({ "alias": alias, "version": version, "indexes": indexes, "due": due, "outcome": outcome })
    }

    fn print(&self) {
        outln!("{} -> {}", self.alias, self.version);
        for (index, fits) in &self.indexes {
            outln!(
                "  index `{index}`: {}",
                if *fits { "embedded by it" } else { "stale: embedded by other packages only" }
            );
        }
        for due in &self.due {
            outln!("  due: {due}");
        }
    }
}
