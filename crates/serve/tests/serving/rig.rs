use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use highroad_eval::{Outcome, Override, Verdict};
use highroad_package::registry::{Promotion, Rollback};
use highroad_package::{Digest, Reference, Selector, Store, Verdicts};
use highroad_serve::budget::BudgetsConfig;
use highroad_serve::budget::keeper::Budgets;
use highroad_serve::config::{MemberConfig, ModelSource, PollInterval, PortfolioConfig, RequestLimits, RolloutConfig};
use highroad_serve::request_log::{LogLimits, RequestLog};
use highroad_serve::{
    BoxFuture, Candidate, DeployError, LocalState, Overridden, Portfolio, Promoted, Registry, Resolved, Unverified,
    probes, router,
};
use highroad_service::{Bound, Shell};
use highroad_task::{Predictor, PredictorOptions};
use highroad_testkit::TinyPackage;
use serde_json::{Value, json};

/// A server on a free port with its own home and registry.
pub struct Rig {
    pub url: String,
    pub registry: Arc<FakeRegistry>,
    pub portfolio: Arc<Portfolio>,
    pub log: RequestLog,
    pub client: reqwest::Client,
    pub home: tempfile::TempDir,
    following: tokio::task::AbortHandle,
    options: Options,
}

/// How a rig differs from a plain one.
#[derive(Clone, Copy)]
pub struct Options {
    pub unverified: Unverified,
    pub limits: RequestLimits,
    pub queue_rows: usize,
    pub warm_s: u64,
    /// `[budgets]` of a portfolio; nothing is counted where it is empty.
    pub budgets: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            unverified: Unverified::Refuse,
            limits: RequestLimits::default(),
            queue_rows: 4096,
            warm_s: 600,
            budgets: "",
        }
    }
}

impl Rig {
    /// Serves the members, each the champion of a model of its own name. Loads nothing.
    pub async fn new(members: &[&str], options: Options) -> Self {
        let home = tempfile::tempdir().unwrap();
        let local = local_state(home.path());
        let registry = Arc::new(FakeRegistry::new(local.store.clone(), local.verdicts.clone()));
        let known: Arc<dyn Registry> = Arc::clone(&registry) as _;
        let portfolio = Portfolio::new(config(members, options), options.unverified, Some(known), local);
        let portfolio = Arc::new(portfolio.with_budgets(budgets(home.path(), options.budgets)));
        let log = RequestLog::open(&home.path().join("requests"), LogLimits::default()).unwrap();
        let (url, following) = serve(Arc::clone(&portfolio), log.clone()).await;
        Self { url, registry, portfolio, log, client: reqwest::Client::new(), home, following, options }
    }

    /// The same members in another process over the same disk and registry, which nobody asks anything; nothing is loaded.
    pub fn another_portfolio(&self, members: &[&str]) -> Portfolio {
        let known: Arc<dyn Registry> = Arc::clone(&self.registry) as _;
        let local = local_state(self.home.path());
        Portfolio::new(config(members, self.options), self.options.unverified, Some(known), local)
    }

    /// Looks at the registry no more.
    pub fn stop_following(&self) {
        self.following.abort();
    }

    /// Both tiny models, promoted and loaded.
    pub async fn ready() -> Self {
        Self::ready_with(Options::default()).await
    }

    pub async fn ready_with(options: Options) -> Self {
        let rig = Self::new(&["moderation", "embedder"], options).await;
        rig.registry.release("moderation", 1, TinyPackage::ClassifyA, Verdicted::Pass);
        rig.registry.release("embedder", 1, TinyPackage::Embed, Verdicted::Pass);
        rig.registry.promote("moderation", 1);
        rig.registry.promote("embedder", 1);
        let errors = rig.portfolio.load().await;
        assert!(errors.is_empty(), "{errors:?}");
        rig
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        self.client.post(format!("{}{path}", self.url)).body(body).send().await.unwrap()
    }

    pub async fn post_json(&self, path: &str, body: Value) -> reqwest::Response {
        self.post(path, body.to_string()).await
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    /// The package in process, beside the server.
    pub fn predictor(&self, package: TinyPackage) -> Predictor {
        let verified = self.registry.store.get(&self.registry.add(package)).unwrap();
        Predictor::open(&verified, &PredictorOptions::default()).unwrap()
    }
}

fn budgets(home: &Path, text: &str) -> Option<Budgets> {
    let mut problems = Vec::new();
    let config = BudgetsConfig::parse(&text.parse().unwrap(), &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    (!config.is_empty()).then(|| Budgets::open(&home.join("budgets"), config).unwrap())
}

fn config(members: &[&str], options: Options) -> PortfolioConfig {
    let member = |name: &&str| {
        let mut config = MemberConfig::new(format!("{name}@champion").parse::<ModelSource>().unwrap());
        config.threads = NonZeroUsize::MIN;
        config.batching.queue_rows = NonZeroUsize::new(options.queue_rows).unwrap();
        (name.to_string(), config)
    };
    PortfolioConfig {
        members: members.iter().map(member).collect(),
        limits: options.limits,
        poll_interval: PollInterval(Duration::from_millis(50)),
        rollouts: RolloutConfig {
            keep: 1.0,
            queue: NonZeroUsize::new(4096).unwrap(),
            warm_s: options.warm_s,
            ..RolloutConfig::default()
        },
        ..PortfolioConfig::default()
    }
}

pub fn header(response: &reqwest::Response, name: &str) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

pub fn local_state(home: &Path) -> LocalState {
    let (store, verdicts) = (Store::open(home.join("store")), Verdicts::open(home.join("verdicts")));
    LocalState::under(home, store.unwrap(), verdicts.unwrap())
}

async fn serve(portfolio: Arc<Portfolio>, log: RequestLog) -> (String, tokio::task::AbortHandle) {
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let url = bound.url("http");
    let app = router(Arc::clone(&portfolio), log)
        .merge(probes(Arc::clone(&portfolio)))
        .merge(highroad_service::metrics::route());
    highroad_serve::telemetry::describe();
    tokio::spawn(bound.serve(app, Shell::default(), std::future::pending()));
    let following = tokio::spawn(async move { portfolio.follow().await });
    (url, following.abort_handle())
}

/// What a released version brings along.
#[derive(Clone, Copy)]
pub enum Verdicted {
    None,
    Pass,
    Fail,
    /// A pass that was measured on another machine.
    PassElsewhere,
    /// A pass that rests on an acceptance, which expired on 2026-01-01.
    PassWaivedUntil2026,
}

/// A registry in memory.
pub struct FakeRegistry {
    pub store: Store,
    verdicts: Verdicts,
    sources: tempfile::TempDir,
    versions: Mutex<BTreeMap<(String, u64), Release>>,
    champions: Mutex<BTreeMap<String, u64>>,
    moves: Mutex<BTreeMap<String, Vec<u64>>>,
    /// While set, nobody answers.
    pub away: Mutex<bool>,
    /// When it says that its versions were promoted.
    pub admitted_at: Mutex<Option<String>>,
    /// What it says of every version it is asked for.
    pub overridden: Mutex<Option<Override>>,
    /// Tags of all models, by model.
    pub tags: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    /// Why the gate lets nothing through, where it does not.
    pub gate: Mutex<Option<String>>,
}

#[derive(Clone)]
struct Release {
    package: Digest,
    verdict: Option<(Digest, Verdict)>,
}

impl FakeRegistry {
    fn new(store: Store, verdicts: Verdicts) -> Self {
        let sources = tempfile::tempdir().unwrap();
        Self {
            store,
            verdicts,
            sources,
            versions: Mutex::default(),
            champions: Mutex::default(),
            moves: Mutex::default(),
            away: Mutex::new(false),
            admitted_at: Mutex::default(),
            overridden: Mutex::default(),
            tags: Mutex::default(),
            gate: Mutex::default(),
        }
    }

    /// Lets `package` through as champion of `model` from `created_at` to `expires_at`.
    pub fn override_gate(&self, model: &str, package: Digest, [created_at, expires_at]: [&str; 2]) {
        let given = json!({
            "highroad_override": 1, "package": package, "model": model, "alias": "champion", "by": "ann",
            "why": "an outage", "missing": { "reason": "it has no verdict" },
            "created_at": created_at, "expires_at": expires_at,
        });
        *self.overridden.lock().unwrap() = Some(serde_json::from_value(given).unwrap());
    }

    pub fn add(&self, package: TinyPackage) -> Digest {
        self.store.add(&self.packed(package)).unwrap()
    }

    /// The package's directory, packed once.
    pub fn packed(&self, package: TinyPackage) -> PathBuf {
        let out = self.sources.path().join(format!("{package:?}"));
        if !out.exists() {
            highroad_package::pack(&package.source(), &out).unwrap();
        }
        out
    }

    pub fn release(&self, name: &str, version: u64, package: TinyPackage, verdicted: Verdicted) -> Digest {
        let package = self.add(package);
        let verdict = verdict(package, verdicted).map(|verdict| {
            let bytes = serde_json::to_vec(&verdict).unwrap();
            (Digest::of(&bytes), verdict)
        });
        self.versions.lock().unwrap().insert((name.to_owned(), version), Release { package, verdict });
        package
    }

    /// The package with room for 8 tokens only, and a verdict that passes.
    pub fn release_cut(&self, name: &str, version: u64, package: TinyPackage) -> Digest {
        let source = self.sources.path().join("cut");
        std::fs::create_dir(&source).unwrap();
        for entry in std::fs::read_dir(package.source()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, source.join(path.file_name().unwrap())).unwrap();
        }
        let told = std::fs::read_to_string(source.join("package.toml")).unwrap();
        assert!(told.contains("max_tokens = 48"));
        std::fs::write(source.join("package.toml"), told.replace("max_tokens = 48", "max_tokens = 8")).unwrap();
        let out = self.sources.path().join("cut-packed");
        highroad_package::pack(&source, &out).unwrap();
        let package = self.store.add(&out).unwrap();
        let verdict = verdict(package, Verdicted::Pass).map(|verdict| {
            let bytes = serde_json::to_vec(&verdict).unwrap();
            (Digest::of(&bytes), verdict)
        });
        self.versions.lock().unwrap().insert((name.to_owned(), version), Release { package, verdict });
        package
    }

    pub fn promote(&self, name: &str, version: u64) {
        self.moves.lock().unwrap().entry(name.to_owned()).or_default().push(version);
        self.champions.lock().unwrap().insert(name.to_owned(), version);
    }

    pub fn undeploy(&self, name: &str) {
        self.champions.lock().unwrap().remove(name);
    }
}

impl Registry for FakeRegistry {
    fn resolve<'a>(&'a self, reference: &'a Reference) -> BoxFuture<'a, Result<Resolved, DeployError>> {
        Box::pin(async move {
            self.answers()?;
            let not_found = || DeployError::NotFound(reference.clone());
            let version = match &reference.selector {
                Selector::Alias(_) => *self.champions.lock().unwrap().get(&reference.name).ok_or_else(not_found)?,
                Selector::Version(version) => *version,
                Selector::Digest(_) => return Err(not_found()),
            };
            let versions = self.versions.lock().unwrap();
            let release = versions.get(&(reference.name.clone(), version)).ok_or_else(not_found)?;
            let verdict = release.verdict.as_ref().map(|(digest, _)| *digest);
            let overridden = self.overridden.lock().unwrap().as_ref().map(digest_of);
            Ok(Resolved { name: reference.name.clone(), version, package: release.package, verdict, overridden })
        })
    }

    fn fetch<'a>(
        &'a self,
        _reference: &'a Reference,
        resolved: &'a Resolved,
    ) -> BoxFuture<'a, Result<Candidate, DeployError>> {
        Box::pin(async move {
            let release = self.versions.lock().unwrap()[&(resolved.name.clone(), resolved.version)].clone();
            let package = self.store.get(&release.package)?;
            if let Some((_, verdict)) = &release.verdict {
                self.verdicts.put(&release.package, &serde_json::to_vec(verdict).unwrap())?;
            }
            let given = self.overridden.lock().unwrap().clone();
            let (model, alias) = (resolved.name.clone(), "champion".to_owned());
            Ok(Candidate {
                overridden: given.map(|given| Overridden { digest: digest_of(&given), given, model, alias }),
                version: resolved.label(),
                package,
                verdict: release.verdict,
                admitted_at: self.admitted_at.lock().unwrap().clone(),
            })
        })
    }

    fn way_back<'a>(&'a self, reference: &'a Reference) -> BoxFuture<'a, Result<Option<Promoted>, DeployError>> {
        Box::pin(async move {
            self.answers()?;
            let moves: Vec<u64> = self.moves.lock().unwrap().get(&reference.name).cloned().unwrap_or_default();
            let Some(&before) = moves.iter().rev().nth(1) else { return Ok(None) };
            let reference = Reference { selector: Selector::Version(before), ..reference.clone() };
            Ok(Some(Promoted { resolved: self.resolve(&reference).await?, at: None }))
        })
    }

    fn tags<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<BTreeMap<String, String>, DeployError>> {
        Box::pin(async move {
            self.answers()?;
            Ok(self.tags.lock().unwrap().get(name).cloned().unwrap_or_default())
        })
    }

    fn set_tag<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        value: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DeployError>> {
        Box::pin(async move {
            self.answers()?;
            let mut tags = self.tags.lock().unwrap();
            let tags = tags.entry(name.to_owned()).or_default();
            match value {
                Some(value) => drop(tags.insert(key.to_owned(), value.to_owned())),
                None => drop(tags.remove(key)),
            }
            Ok(())
        })
    }

    fn promote<'a>(&'a self, promotion: &'a Promotion) -> BoxFuture<'a, Result<Result<(), String>, DeployError>> {
        Box::pin(async move {
            self.answers()?;
            if let Some(refusal) = self.gate.lock().unwrap().clone() {
                return Ok(Err(refusal));
            }
            assert_eq!(promotion.rehearsal["passed"], true);
            Self::promote(self, &promotion.name, promotion.version);
            Ok(Ok(()))
        })
    }

    fn roll_back<'a>(&'a self, rollback: &'a Rollback) -> BoxFuture<'a, Result<Result<(), String>, DeployError>> {
        Box::pin(async move {
            self.answers()?;
            if let Some(refusal) = self.gate.lock().unwrap().clone() {
                return Ok(Err(refusal));
            }
            let moves: Vec<u64> = self.moves.lock().unwrap().get(&rollback.name).cloned().unwrap_or_default();
            let Some(&before) = moves.iter().rev().nth(1) else { return Ok(Err("nothing was before".to_owned())) };
            Self::promote(self, &rollback.name, before);
            Ok(Ok(()))
        })
    }
}

impl FakeRegistry {
    fn answers(&self) -> Result<(), DeployError> {
        let away = *self.away.lock().unwrap();
        if away { Err(DeployError::Registry("connection refused".to_owned())) } else { Ok(()) }
    }
}

fn digest_of(given: &Override) -> Digest {
    Digest::of(&serde_json::to_vec(given).unwrap())
}

fn verdict(package: Digest, verdicted: Verdicted) -> Option<Verdict> {
    let (outcome, numerics_id) = match verdicted {
        Verdicted::None => return None,
        Verdicted::Pass | Verdicted::PassWaivedUntil2026 => (Outcome::Pass, highroad_task::raw::numerics_id()),
        Verdicted::Fail => (Outcome::Fail, highroad_task::raw::numerics_id()),
        Verdicted::PassElsewhere => (Outcome::Pass, "highroad-0/abacus/f32".to_owned()),
    };
    // Through JSON, as verdicts arrive.
    let digest = Digest::of(b"").to_string();
    let waivers = match verdicted {
        Verdicted::PassWaivedUntil2026 => {
            json!([{ "case": "c7", "by": "eve", "why": "rare", "expires_at": "2026-01-01T00:00:00Z" }])
        }
        _ => json!([]),
    };
    let verdict = json!({
        "highroad_verdict": 1,
        "outcome": outcome,
        "package": package,
        "baseline": { "kind": "trivial", "name": "majority" },
        "golden_set": { "name": "golden", "digest": digest, "n_cases": 100 },
        "gates": digest,
        "numerics_id": numerics_id,
        "evidence": "bit-exact",
        "answers": digest,
        "checks": [{
            "rule": "accuracy at least 0.9", "outcome": outcome, "n_cases": 100, "candidate": 0.95,
            "reason": "0.95 is above 0.9",
        }],
        "flips": [],
        "waivers": waivers,
        "created_at": "2026-11-23T09:00:00Z",
        "created_by": "test",
    });
    Some(serde_json::from_value(verdict).unwrap())
}
