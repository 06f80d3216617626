//! What the registry is told of a verdict on a pipeline, so that whoever promotes a member hears that it is due again.

use highroad_eval::{Outcome, Verdict};
use highroad_package::registry::dependents::JudgedPipeline;
use highroad_package::{Digest, Reference, Selector};

use crate::commands::eval::Pipeline;
use crate::tracking::{self, TrackingArgs};

/// Tells the registry with which packages the members that follow an alias were judged. The verdict stands whether or not the
/// registry can be told, so what fails is told and no error.
pub fn tell(args: &TrackingArgs, pipeline: &Pipeline, verdict: &Verdict, digest: Digest) {
    let judged = judged(pipeline, verdict.outcome, digest);
    if judged.is_empty() {
        return;
    }
    let told = tracking::client(args).and_then(|tracking| {
        judged
            .iter()
            .try_for_each(|(model, judged)| Ok(tracking.block_on(tracking.client().declare_pipeline(model, judged))?))
    });
    if let Err(error) = told {
        eprintln!("warning: the registry does not know of this verdict: {}", crate::describe(&error));
    }
}

fn judged(pipeline: &Pipeline, outcome: Outcome, verdict: Digest) -> Vec<(String, JudgedPipeline)> {
    let composition = pipeline.composition();
    let of = |member: &String| {
        let part = &composition.members[member];
        let Ok(Reference { name, selector: Selector::Alias(alias) }) = part.source.parse() else { return None };
        let judged = JudgedPipeline {
            highroad_pipeline: 1,
            pipeline: pipeline.name().to_owned(),
            alias,
            member: member.clone(),
            package: part.package,
            feeds: composition.feeds.get(member).cloned().unwrap_or_default(),
            composition: composition.digest,
            verdict,
            outcome: serde_json::to_value(outcome)
                .ok()
                .and_then(|word| Some(word.as_str()?.to_owned()))
                .unwrap_or_default(),
        };
        Some((name, judged))
    };
    composition.members.keys().filter_map(of).collect()
}
