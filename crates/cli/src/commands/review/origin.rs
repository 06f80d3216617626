//! Where a package comes from: its commit and its training run, as far as both can be found from here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use highroad_assess::review::{CommitFact, RunFact};
use highroad_package::Provenance;
use highroad_package::registry::{RegistryError, Run, RunQuery};
use jiff::Timestamp;

use crate::record::{REPRODUCED_TAG, REPRODUCES_TAG};
use crate::repo::git;
use crate::tracking::{self, Tracking, TrackingArgs};

/// The commit, the run, and what was attached to it; absent with a warning on stderr where they cannot be found.
#[derive(Default)]
pub struct Origin {
    pub commit: Option<CommitFact>,
    pub run: Option<RunFact>,
    /// Files below `review/`, by the test they are evidence for.
    pub attached: BTreeMap<String, Vec<String>>,
}

/// Where evidence is attached to a run.
const FOLDER: &str = "review";
/// JUnit XML of the unit tests.
const UNIT_TESTS: &str = "review/I2.xml";
/// Names the pipeline run that trained, packed and gated.
const PIPELINE_TAG: &str = "highroad.pipeline";
/// Parameters that say what was tried rather than where.
const NOT_TUNED: [&str; 4] = ["seed", "output", "data", "processes"];
/// Runs of an experiment that are compared.
const MOST_RUNS: usize = 500;

impl Origin {
    pub fn find(place: &TrackingArgs, provenance: &Provenance, now: Timestamp) -> Self {
        let commit = provenance.git_commit.as_deref().and_then(commit);
        let mut origin = Self { commit, ..Self::default() };
        if let Some(id) = &provenance.run_id {
            match tracking::client(place).and_then(|tracking| Ok(origin.add_run(&tracking, id, now)?)) {
                Ok(()) => {}
                Err(error) => eprintln!("warning: run {id} cannot be looked up: {error:#}"),
            }
        }
        origin
    }

    fn add_run(&mut self, tracking: &Tracking, id: &str, now: Timestamp) -> Result<(), RegistryError> {
        let client = tracking.client();
        tracking.block_on(async {
            let run = client.get_run(id).await?;
            // A server may keep files where it does not hand them out.
            for file in client.run_files(&run, FOLDER).await.unwrap_or_default() {
                let name = file.path.rsplit('/').next().unwrap_or_default();
                let test: String = name.chars().take_while(char::is_ascii_alphanumeric).collect();
                self.attached.entry(test).or_default().push(format!("run {id}, {}", file.path));
            }
            let unit_tests = match self.attached.contains_key("I2") {
                true => count_tests(&client.run_file(&run, UNIT_TESTS).await?),
                false => None,
            };
            let reproductions = RunQuery {
                experiment_ids: vec![run.experiment_id.clone()],
                filter: format!("tags.`{REPRODUCES_TAG}` = '{id}'"),
                order_by: String::new(),
                limit: 1,
            };
            let reproduction = client.search_runs(&reproductions).await?.into_iter().next();
            let siblings =
                RunQuery { experiment_ids: vec![run.experiment_id.clone()], limit: MOST_RUNS, ..RunQuery::default() };
            let siblings = client.search_runs(&siblings).await?;
            self.run = Some(RunFact {
                id: run.id.clone(),
                ended_at: run.end_ms.and_then(at),
                age_days: run.end_ms.map(|end| (now.as_millisecond() - end) as f64 / 86_400_000.0),
                reproduced: reproduction.and_then(|again| {
                    let how = again.tags.get(REPRODUCED_TAG)?;
                    Some(format!("{how}, by run {}", again.id))
                }),
                tuned: tuned(&run, &siblings),
                unit_tests,
                pipeline: run.tags.get(PIPELINE_TAG).cloned(),
            });
            Ok(())
        })
    }
}

fn at(ms: i64) -> Option<String> {
    let at = Timestamp::from_millisecond(ms).ok()?;
    Some(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Parameters that other finished runs tried with other values, and how many runs did; reproductions tried nothing.
fn tuned(run: &Run, siblings: &[Run]) -> (Vec<String>, usize) {
    let differing = |other: &Run| -> Vec<String> {
        let tried = run.params.iter().filter(|(name, _)| !NOT_TUNED.contains(&name.as_str()));
        tried
            .filter(|(name, value)| other.params.get(*name).is_some_and(|theirs| theirs != *value))
            .map(|(name, _)| name.clone())
            .collect()
    };
    let others = siblings.iter().filter(|other| other.id != run.id && !other.tags.contains_key(REPRODUCES_TAG));
    let tried: Vec<Vec<String>> = others.map(differing).filter(|params| !params.is_empty()).collect();
    let params: BTreeSet<String> = tried.iter().flatten().cloned().collect();
    (params.into_iter().collect(), tried.len())
}

/// Passed and failed tests of a JUnit file; `None` if it is none.
fn count_tests(xml: &[u8]) -> Option<(usize, usize)> {
    let report = quick_junit::Report::deserialize_from_str(std::str::from_utf8(xml).ok()?).ok()?;
    let tests = || report.test_suites.iter().flat_map(|suite| &suite.test_cases);
    let passed = tests().filter(|test| matches!(test.status, quick_junit::TestCaseStatus::Success { .. })).count();
    let failed = tests().filter(|test| matches!(test.status, quick_junit::TestCaseStatus::NonSuccess { .. })).count();
    Some((passed, failed))
}

/// The commit as the repository in this folder knows it.
fn commit(named: &str) -> Option<CommitFact> {
    let (id, dirty) = named.strip_suffix("-dirty").map_or((named, false), |id| (id, true));
    // What a manifest says becomes an argument of git: a commit's hash, and nothing else.
    if id.len() < 7 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let here = Path::new(".");
    let format = "--format=%an <%ae>%x1f%(trailers:key=Reviewed-by,valueonly,separator=%x1e)";
    let shown = git(here, &["log", "-1", format, id]).ok()?;
    let (author, reviewed) = shown.split_once('\u{1f}')?;
    let mut reviewers: Vec<String> = reviewed.split('\u{1e}').map(|name| name.trim().to_owned()).collect();
    // The merge that brought the commit in was made by somebody who looked at it.
    let range = format!("{id}..HEAD");
    let merges = git(here, &["log", "--merges", "--ancestry-path", "--reverse", "--format=%an <%ae>", &range]);
    reviewers.extend(merges.unwrap_or_default().lines().next().map(str::to_owned));
    reviewers.retain(|name| !name.is_empty() && name != author);
    reviewers.dedup();
    Some(CommitFact { id: id.to_owned(), dirty, author: author.to_owned(), reviewers })
}
