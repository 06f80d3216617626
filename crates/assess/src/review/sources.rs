//! What the lines of a review cite, with what is known of it, so that a review holds its evidence.

use highroad_eval::Verdict;
use highroad_package::Manifest;
use serde::{Deserialize, Serialize};

use super::{Facts, Line};

/// Something that lines cite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// As lines cite it.
    pub name: String,
    /// What it says, one fact a line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<String>,
    /// Where the whole of it is: below the home of Highroad, or what shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub find: Option<String>,
}

/// Everything that `lines` cite, each once, in the order of the first citation.
pub(super) fn cited<'a>(facts: &Facts<'_>, lines: impl Iterator<Item = &'a Line>) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for name in lines.flat_map(|line| &line.evidence) {
        if sources.iter().all(|source| source.name != *name) {
            let (told, find) = known(facts, name).unwrap_or_default();
            sources.push(Source { name: name.clone(), facts: told, find });
        }
    }
    sources
}

/// What is known of one citation and where the whole is; `None` where the citation is all there is.
fn known(facts: &Facts<'_>, name: &str) -> Option<(Vec<String>, Option<String>)> {
    let (kind, rest) = name.split_once(' ')?;
    let packages = || [Some(facts.package), facts.baseline].into_iter().flatten();
    match kind {
        "package" => {
            let artifact = packages().find(|artifact| artifact.digest.to_string() == rest)?;
            Some((of_package(artifact.manifest), Some(format!("store/{}/", artifact.digest.hex()))))
        }
        "verdict" => {
            let kept = [facts.verdict, facts.against_trivial].into_iter().flatten();
            let kept = kept.into_iter().find(|kept| kept.digest.to_string() == rest)?;
            let package = kept.verdict.package.trim_start_matches("sha256:");
            Some((of_verdict(kept.verdict), Some(format!("verdicts/{package}/{}.json", kept.digest.hex()))))
        }
        "golden" => {
            let set = &facts.rerun.as_ref()?.golden_set;
            Some((vec![format!("{}: {} cases, digest {}", set.name, set.n_cases, set.digest)], None))
        }
        "commit" => {
            let commit = facts.commit.as_ref()?;
            let by = format!("by {}; reviewed by {}", commit.author, or_nobody(&commit.reviewers));
            Some((vec![by], Some(format!("git show {}", commit.id))))
        }
        "run" => {
            let run = facts.run.as_ref().filter(|run| rest.starts_with(&run.id))?;
            let ended = run.ended_at.iter().map(|at| format!("ended {at}"));
            let again = run.reproduced.iter().map(|how| format!("repeated: {how}"));
            Some((ended.chain(again).collect(), Some(format!("highroad runs show {}", run.id))))
        }
        "rollout" => {
            let canary = facts.canary.as_ref()?;
            let told = [format!("{}: {}", canary.version, canary.told)];
            Some((told.into_iter().chain(canary.checks.iter().cloned()).collect(), None))
        }
        "monitoring" => {
            let met = facts.monitored.as_ref()?;
            let seen = format!("{} requests since {}", met.n_requests, met.since);
            Some((
                [seen].into_iter().chain(met.findings.iter().cloned()).collect(),
                Some("highroad monitor".to_owned()),
            ))
        }
        "lock" => Some((vec!["named by the manifest of the package".to_owned()], None)),
        _ => {
            let data = &facts.package.manifest.provenance.data;
            let cites = |file: &String| name.starts_with(&format!("{file} ")) || name.ends_with(&format!(": {file}"));
            let (file, digest) = data.iter().find(|(file, _)| cites(file))?;
            Some((vec![format!("{file} is {digest} in the manifest of the package")], None))
        }
    }
}

fn of_package(manifest: &Manifest) -> Vec<String> {
    let Manifest { name, owner, licence, provenance, .. } = manifest;
    let about = format!("{name}, of {owner}, {licence}");
    let files = manifest.files.iter().map(|file| format!("{}: {} bytes, {}", file.path, file.size_bytes, file.digest));
    let told =
        [("trained by run", &provenance.run_id), ("commit", &provenance.git_commit), ("torch", &provenance.torch)];
    let told = told.into_iter().filter_map(|(what, value)| Some(format!("{what} {}", value.as_ref()?)));
    let data = provenance.data.iter().map(|(file, digest)| format!("data {file}: {digest}"));
    [about].into_iter().chain(told).chain(data).chain(files).collect()
}

fn of_verdict(verdict: &Verdict) -> Vec<String> {
    let set = &verdict.golden_set;
    let head = format!(
        "{} against {} on {} ({} cases, {}), {} by {}",
        verdict.outcome,
        verdict.baseline.in_words(),
        set.name,
        set.n_cases,
        set.digest,
        verdict.created_at,
        verdict.created_by
    );
    let by = format!("rules {}, {} on {}", verdict.gates, verdict.evidence, verdict.numerics_id);
    let checks = verdict.checks.iter().map(|check| format!("{}: {} ({})", check.outcome, check.rule, check.reason));
    let flips = verdict.flips.iter().filter(|flip| flip.regression).map(|flip| format!("lost: {}", flip.case));
    let waivers = verdict.waivers.iter().map(|one| format!("accepted: {} by {}: {}", one.case, one.by, one.why));
    [head, by].into_iter().chain(checks).chain(flips).chain(waivers).collect()
}

fn or_nobody(names: &[String]) -> String {
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}
