use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highroad_eval::Plan;
use highroad_serve::reload::PortfolioFile;
use highroad_testkit::TinyPackage;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::rig::{Options, Rig, Verdicted, header};
use crate::rollouts::deploy;

const MODERATION: &str = "poll_interval_ms = 50\n[members.moderation]\nmodel = 'moderation@champion'\nthreads = 1\n";

/// A rig that follows a file.
struct Site {
    rig: Arc<Rig>,
    path: PathBuf,
    now: Arc<Notify>,
}

impl Site {
    async fn new(text: &str) -> Self {
        let rig = Arc::new(Rig::new(&[], Options::default()).await);
        for (name, package) in [("moderation", TinyPackage::ClassifyA), ("embedder", TinyPackage::Embed)] {
            rig.registry.release(name, 1, package, Verdicted::Pass);
            rig.registry.promote(name, 1);
        }
        let path = rig.home.path().join("portfolio.toml");
        std::fs::write(&path, text).unwrap();
        let file = PortfolioFile::new(path.clone(), Box::new(|_| Ok(())));
        let first = file.read().unwrap();
        rig.portfolio.reload(first.config.clone()).await.unwrap();
        let (portfolio, now) = (Arc::clone(&rig.portfolio), Arc::new(Notify::new()));
        let notified = Arc::clone(&now);
        tokio::spawn(async move { file.follow(&portfolio, Some(first), notified).await });
        Self { rig, path, now }
    }

    /// Writes `text` and has it read at once.
    fn edit(&self, text: &str) {
        std::fs::write(&self.path, text).unwrap();
        self.now.notify_one();
    }

    async fn portfolio(&self) -> Value {
        let status: Value = self.rig.get("/v1/highroad/status").await.json().await.unwrap();
        status["portfolio"].clone()
    }

    async fn embeds(&self) -> u16 {
        let body = json!({ "model": "embedder", "input": "a" });
        self.rig.post_json("/v1/embeddings", body).await.status().as_u16()
    }

    async fn moderates(&self) -> String {
        header(&self.rig.post_json("/v1/moderations", json!({ "input": "a" })).await, "x-highroad-version")
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what}: it did not happen within ten seconds");
}

fn with_embedder(more: &str) -> String {
    format!("{MODERATION}[members.embedder]\nmodel = 'embedder@champion'\nthreads = 1\n{more}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_change_and_go_while_requests_are_answered() {
    let site = Site::new(MODERATION).await;
    let (rig, stop) = (Arc::clone(&site.rig), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let client = tokio::spawn(async move {
        let mut n = 0;
        while !stopped.load(Ordering::Relaxed) {
            let body = json!({ "model": "moderation", "input": format!("hello {n}") });
            assert_eq!(rig.post_json("/v1/moderations", body).await.status(), 200);
            n += 1;
        }
        n
    });
    assert_eq!(site.embeds().await, 404);
    let before = site.rig.portfolio.revision("moderation").unwrap();
    site.edit(&with_embedder("[pipelines.p]\nsteps = [{ name = 'v', embed = 'embedder' }]\n"));
    eventually("a member comes", async || site.embeds().await == 200).await;
    assert_eq!(site.rig.post_json("/v1/pipelines/p", json!({ "input": "a" })).await.status(), 200);
    assert!(Arc::ptr_eq(&before, &site.rig.portfolio.revision("moderation").unwrap()), "what is as it was stays");

    let released = Arc::downgrade(&site.rig.portfolio.revision("embedder").unwrap());
    let changed = Arc::downgrade(&before);
    drop(before);
    site.edit(&MODERATION.replace("threads = 1", "threads = 1\nreplicas = 2\nqueue_rows = 9"));
    eventually("a member goes, and its memory", async || {
        site.embeds().await == 404 && released.upgrade().is_none() && changed.upgrade().is_none()
    })
    .await;
    assert_eq!(site.rig.post_json("/v1/pipelines/p", json!({ "input": "a" })).await.status(), 404);
    assert_eq!(site.portfolio().await["settings"]["members"]["moderation"]["replicas"], 2);
    let page = site.rig.get("/metrics").await.text().await.unwrap();
    assert!(page.contains("highroad_member_ready{member=\"embedder\"} 0"), "{page}");
    assert!(page.contains("highroad_portfolio_reloads_total{outcome=\"ok\"}"), "{page}");
    stop.store(true, Ordering::Relaxed);
    assert!(client.await.unwrap() > 0);
    assert!(!site.rig.home.path().join("serving/embedder.json").exists());
}

#[tokio::test]
async fn an_edit_that_cannot_serve_changes_nothing_and_is_told_with_its_line() {
    let site = Site::new(MODERATION).await;
    let before = site.portfolio().await;
    assert!(before["last_error"].is_null() && before["digest"].as_str().unwrap().starts_with("sha256:"), "{before}");
    let served = site.rig.portfolio.revision("moderation").unwrap();
    site.rig.registry.release("worse", 1, TinyPackage::ClassifyB, Verdicted::Fail);
    site.rig.registry.promote("worse", 1);
    for (text, line, reason) in [
        (MODERATION.replace("threads", "thread"), 4, "did you mean `threads`?"),
        (format!("{MODERATION}secret hunter2\n"), 5, "expected"),
        (with_embedder("[members.worse]\nmodel = 'worse@champion'\n"), 8, "the verdict is fail"),
        (MODERATION.replace("threads", "task = 'embed'\nthreads"), 4, "`moderation:1` is for the task `classify`"),
        (with_embedder("[members.none]\nmodel = 'none@champion'\n"), 8, "does not exist in the registry"),
        (with_embedder("[pipelines.p]\nsteps = [{ name = 'v', embed = 'moderation' }]\n"), 8, "for another task"),
        (with_embedder("[limits]\ninputs = 'many'\n"), 9, "invalid type"),
    ] {
        site.edit(&text);
        eventually(reason, async || {
            let told = site.portfolio().await;
            let problems = told["last_error"]["problems"].as_array().cloned().unwrap_or_default();
            assert!(!told.to_string().contains("hunter2"), "{told}");
            problems.iter().any(|p| p["reason"].as_str().unwrap().contains(reason) && p["line"].as_u64() == Some(line))
        })
        .await;
        let told = site.portfolio().await;
        assert_eq!((&told["digest"], &told["settings"]), (&before["digest"], &before["settings"]), "{told}");
        assert_eq!(site.embeds().await, 404, "nothing of it serves");
        assert!(Arc::ptr_eq(&served, &site.rig.portfolio.revision("moderation").unwrap()));
        assert_eq!(site.rig.get("/ready").await.status(), 200);
    }
    let page = site.rig.get("/metrics").await.text().await.unwrap();
    assert!(page.contains("highroad_portfolio_last_reload_success 0"), "{page}");
    assert!(page.contains("highroad_portfolio_reloads_total{outcome=\"failed\"}"), "{page}");
    // What was only not there yet is taken up without another edit.
    site.edit(&with_embedder("[members.none]\nmodel = 'none@champion'\n"));
    site.rig.registry.release("none", 1, TinyPackage::ClassifyB, Verdicted::Pass);
    site.rig.registry.promote("none", 1);
    eventually("it is tried again", async || site.embeds().await == 200).await;
    assert!(site.portfolio().await["last_error"].is_null());
}

#[tokio::test]
async fn limits_change_at_once_and_files_that_are_renamed_or_linked_anew_are_seen() {
    let site = Site::new(MODERATION).await;
    let home = site.rig.home.path();
    let limited = |n: usize| format!("{MODERATION}[limits]\ninputs = {n}\nbody_bytes = 4096\n");
    let ask = async |n: usize| {
        let body = json!({ "model": "moderation", "input": vec!["a"; n] });
        site.rig.post_json("/v1/moderations", body).await.status().as_u16()
    };
    assert_eq!(ask(5).await, 200);
    // As editors do: another file takes the name.
    std::fs::write(home.join("new"), limited(4)).unwrap();
    std::fs::rename(home.join("new"), &site.path).unwrap();
    eventually("a rename is seen", async || ask(5).await == 400 && ask(4).await == 200).await;
    assert_eq!(ask(4000).await, 413, "bodies too");
    // As Kubernetes does: the file is a link through `..data`, which is set to another folder.
    let folder = |name: &str, n: usize| {
        std::fs::create_dir(home.join(name)).unwrap();
        std::fs::write(home.join(name).join("portfolio.toml"), limited(n)).unwrap();
    };
    let link = |to: &str, at: &Path| {
        let new = home.join("link");
        std::os::unix::fs::symlink(to, &new).unwrap();
        std::fs::rename(&new, at).unwrap();
    };
    folder("one", 3);
    folder("two", 2);
    link("one", &home.join("..data"));
    link("..data/portfolio.toml", &site.path);
    eventually("a link is seen", async || ask(4).await == 400 && ask(3).await == 200).await;
    link("two", &home.join("..data"));
    eventually("a link set anew is seen", async || ask(3).await == 400 && ask(2).await == 200).await;
    // A file that is gone changes nothing.
    std::fs::remove_file(&site.path).unwrap();
    site.now.notify_one();
    eventually("it is told", async || !site.portfolio().await["last_error"].is_null()).await;
    assert_eq!((ask(2).await, site.moderates().await), (200, "moderation:1".to_owned()));
}

#[tokio::test]
async fn a_rollout_goes_on_through_edits() {
    let site = Site::new(MODERATION).await;
    let rig = &site.rig;
    let stable = rig.portfolio.revision("moderation").unwrap().facts().package;
    let candidate = rig.registry.release("moderation", 2, TinyPackage::ClassifyB, Verdicted::Fail);
    let rollout = deploy(rig, "moderation", Plan::Shadow { percent: 100.0 }, [stable, candidate]);
    let seen = || {
        let status = rig.portfolio.deployment("moderation").unwrap().rollout();
        status.filter(|status| status.percent > 0.0)
    };
    eventually("it begins", async || seen().is_some()).await;
    assert_eq!(site.moderates().await, "moderation:1");
    eventually("it is asked", async || seen().is_some_and(|status| status.here.n_asked == 1)).await;
    site.edit(&with_embedder("[rollouts]\nkeep_inputs = true\n"));
    eventually("a member comes", async || site.embeds().await == 200).await;
    assert_eq!(seen().unwrap().here.n_asked, 1, "what was as it was goes on");
    site.edit(&MODERATION.replace("threads = 1", "threads = 1\nreplicas = 2"));
    eventually("it goes on beside the new replicas", async || {
        let replicas = site.rig.portfolio.config().members["moderation"].batching.replicas.get();
        replicas == 2 && seen().is_some_and(|status| status.rollout.id == rollout.id)
    })
    .await;
}

#[tokio::test]
async fn how_versions_are_tried_is_edited_and_no_model_loaded_anew() {
    let site = Site::new(MODERATION).await;
    let served = site.rig.portfolio.revision("moderation").unwrap();
    site.edit(&format!("{MODERATION}[members.moderation.rollout]\nshadow = 20\n"));
    let plan = async || site.portfolio().await["settings"]["plans"]["moderation"].clone();
    eventually("it is taken up", async || plan().await == json!({ "shadow": 20.0 })).await;
    assert!(Arc::ptr_eq(&served, &site.rig.portfolio.revision("moderation").unwrap()));
    assert!(site.rig.portfolio.deployment("moderation").unwrap().rollout().is_none(), "a server begins none");
}

#[tokio::test]
async fn what_was_spent_stays_spent_and_members_that_no_file_names_stay() {
    let site = Site::new(MODERATION).await;
    let limit = |n: usize| format!("{MODERATION}[budgets.members.moderation]\ntokens_per_day = {n}\n");
    let ask = async || {
        let body = json!({ "model": "moderation", "input": "hello" });
        site.rig.post_json("/v1/moderations", body).await.status().as_u16()
    };
    let used = async || {
        let view: Value = site.rig.get("/v1/highroad/budgets").await.json().await.unwrap();
        let rows = view["budgets"].as_array().cloned().unwrap_or_default();
        let row = rows.into_iter().find(|row| row["limit"] == "tokens_per_day");
        row.map(|row| (row["most"].as_u64(), row["used"].as_u64().unwrap()))
    };
    site.edit(&limit(1000));
    eventually("a budget begins", async || used().await.is_some_and(|(most, _)| most == Some(1000))).await;
    assert_eq!(ask().await, 200);
    let (_, spent) = used().await.unwrap();
    assert!(spent > 0);
    site.edit(&limit(usize::try_from(spent).unwrap()));
    eventually("it is narrowed", async || used().await == Some((Some(spent), spent))).await;
    assert_eq!(ask().await, 429);

    let found = site.rig.portfolio.config().members["moderation"].clone();
    site.rig.registry.release("found", 1, TinyPackage::ClassifyB, Verdicted::Pass);
    site.rig.registry.promote("found", 1);
    let source = "found@champion".parse().unwrap();
    site.rig.portfolio.add("found".to_owned(), highroad_serve::config::MemberConfig { source, ..found });
    eventually("one is found", async || site.rig.portfolio.revision("found").is_ok()).await;
    site.edit(&limit(100_000));
    eventually("it is widened", async || ask().await == 200).await;
    assert_eq!(used().await.unwrap().0, Some(100_000));
    assert!(used().await.unwrap().1 > spent);
    assert!(site.rig.portfolio.revision("found").is_ok(), "and is not taken away by an edit");
}
