//! The tracking server and model registry that MLflow clients speak to.
//!
//! MLflow's REST words at the edge ([`Tracker::router`]), SQL and plain files below. Two things are Highroad's own: an
//! alias of a Highroad package moves only on a verdict that admits it, and every move is recorded.

use std::path::Path;
use std::sync::Arc;

use axum::Router;

mod api;
mod dashboard;
mod error;
mod files;
pub mod filter;
mod gate;
pub mod limits;
mod source;
mod store;
pub mod wire;

pub use error::TrackError;
pub use files::{ArtifactPath, Artifacts, Content, Entry, Files, Transfers};
pub use gate::{Asked, Gate, Moments, OUTCOME_TAG, PACKAGE_TAG, VERDICT_TAG, package_of};
pub use store::{
    ArchiveOthers, Assessment, Backup, Batch, Database, DatasetSearch, EvaluationDataset, ExperimentSearch,
    ImportedVersion, LoggedModelSearch, Loss, Migrated, Millis, Mover, NewLoggedModel, NewRun, NewVersion, OrderField,
    Page, Previews, RunChange, RunEnd, RunSearch, Schema, Span, Store, Target, TraceInfo, TraceSearch, TracesToDelete,
    Upserted, View, back_up, check_backup, migrate, version_number,
};

/// Where the present comes from.
pub type Clock = Arc<dyn Fn() -> Millis + Send + Sync>;

/// Where a tracking server keeps what, and what time it is there.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Setup {
    pub database: Database,
    pub artifacts: Artifacts,
    /// How clients may move artifacts that are in a bucket.
    pub transfers: Transfers,
    pub clock: Clock,
}

impl Setup {
    /// `track.db` and `artifacts/` under `home`, and the system's clock.
    pub fn under(home: &Path) -> Self {
        let clock: Clock = Arc::new(|| Millis(jiff::Timestamp::now().as_millisecond()));
        let artifacts = Artifacts::Folder(home.join("artifacts"));
        Self { database: Database::Sqlite(home.join("track.db")), artifacts, transfers: Transfers::default(), clock }
    }
}

/// A tracking server: store, artifacts and gate. Cheap to clone.
#[derive(Clone)]
pub struct Tracker {
    store: Store,
    files: Arc<Files>,
    gate: Gate,
    clock: Clock,
}

impl Tracker {
    /// Opens or creates what `setup` names.
    pub async fn open(setup: Setup) -> Result<Self, TrackError> {
        let files = Arc::new(Files::open(setup.artifacts, setup.transfers).await?);
        if let Database::Sqlite(path) = &setup.database
            && let Some(folder) = path.parent()
        {
            let fail = |source| TrackError::Io { path: folder.to_owned(), source };
            tokio::fs::create_dir_all(folder).await.map_err(fail)?;
        }
        let store = Store::open(setup.database).await?;
        store.ensure_default_experiment((setup.clock)()).await?;
        Ok(Self { store, gate: Gate::new(Arc::clone(&files)), files, clock: setup.clock })
    }

    /// MLflow under `/api` and `/ajax-api`, `/version`, OpenTelemetry at `/v1/traces`, the dashboard under `/ui`. Has no fallback
    /// of its own, so that it merges with others.
    pub fn router(&self) -> Router {
        let api = api::routes(self.clone());
        api::root(self.clone())
            .nest("/api", api.clone())
            .nest("/ajax-api", api)
            .nest("/ui", dashboard::routes(self.clone()))
            // Not a part of what is nested.
            .route("/ui/", axum::routing::get(|| async { axum::response::Redirect::to("/ui") }))
    }

    /// A whole server: [`Tracker::router`], `/` to the pages, `/health`, `/metrics`, and MLflow's 404 for the rest.
    pub fn server(&self) -> Router {
        self.router()
            .route("/", axum::routing::get(|| async { axum::response::Redirect::to("/ui") }))
            .route("/health", axum::routing::get(|| async { "OK" }))
            .merge(highroad_service::metrics::route())
            .fallback(api::unknown_route)
            .method_not_allowed_fallback(api::unknown_route)
    }

    /// Closes the database, which folds its write-ahead log into the file.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// The database, for tests and for what runs in the same process.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The artifacts.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// What admits a package to an alias.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    fn now(&self) -> Millis {
        (self.clock)()
    }
}
