//! The run logger; `highroad.run` wraps it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use highroad_record::{Client, Entry, Header, Metric, RecorderOptions, Synced, Usage};
use pyo3::exceptions::{PyConnectionError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// Waits of this class are of minutes at most.
const LONGEST_S: f64 = 1e9;

/// Takes what a run logs; one for each process and run.
#[pyclass(frozen, module = "highroad._highroad")]
pub struct Recorder {
    /// Shared, so that one thread's `flush` does not hold up another's `log`.
    recorder: Mutex<Option<Arc<highroad_record::Recorder>>>,
    usage: Mutex<Usage>,
}

/// Run, folder, entries refused, and why it was not delivered.
type Outcome = (String, PathBuf, u64, Option<String>);

#[pymethods]
impl Recorder {
    /// Makes a journal in `root`; `sample_every` is in seconds.
    #[staticmethod]
    fn start(
        py: Python<'_>,
        root: PathBuf,
        server: String,
        run_id: String,
        sample_every: Option<f64>,
    ) -> PyResult<Self> {
        let options = RecorderOptions {
            root,
            header: Header { server, run_id },
            sample_every: sample_every.map(|seconds| Duration::from_secs_f64(seconds.clamp(0.001, LONGEST_S))),
        };
        let recorder = py.detach(|| highroad_record::Recorder::start(options));
        let recorder = recorder.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok(Self { recorder: Mutex::new(Some(Arc::new(recorder))), usage: Mutex::new(Usage::new()) })
    }

    /// Queues points of metrics; waits for neither disk nor network.
    fn log_metrics(&self, metrics: Vec<(String, f64)>, timestamp: i64, step: i64) -> PyResult<()> {
        let metric = |(key, value)| Metric { key, value, timestamp, step };
        self.log(Entry::Metrics(metrics.into_iter().map(metric).collect()))
    }

    fn log_params(&self, params: Vec<(String, String)>) -> PyResult<()> {
        self.log(Entry::Params(params))
    }

    fn set_tags(&self, tags: Vec<(String, String)>) -> PyResult<()> {
        self.log(Entry::Tags(tags))
    }

    /// `datasets` is the JSON of MLflow's `log-inputs`.
    fn log_inputs(&self, datasets: &str) -> PyResult<()> {
        let datasets = serde_json::from_str(datasets).map_err(|error| PyValueError::new_err(error.to_string()))?;
        self.log(Entry::Inputs(datasets))
    }

    fn log_artifact(&self, py: Python<'_>, source: PathBuf, path: String) -> PyResult<()> {
        py.detach(|| self.with(|recorder| recorder.log_artifact(&source, &path)))
    }

    fn end(&self, status: String, end_time: i64) -> PyResult<()> {
        self.log(Entry::End { status, end_time })
    }

    /// Waits until everything that was logged is on the disk.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.with(highroad_record::Recorder::flush))
    }

    /// Delivers what is left for at most `patience` seconds.
    fn close(&self, py: Python<'_>, patience: f64) -> Option<Outcome> {
        let recorder = self.lock().take()?;
        let patience = Duration::from_secs_f64(patience.clamp(0.0, LONGEST_S));
        Some(outcome(py.detach(|| recorder.close(patience))))
    }

    /// Joules that this machine has used since the start; `None` where nothing tells.
    fn energy_joules(&self, py: Python<'_>) -> Option<f64> {
        py.detach(|| self.usage.lock().unwrap_or_else(PoisonError::into_inner).energy_j())
    }
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<highroad_record::Recorder>>> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, entry: Entry) -> PyResult<()> {
        self.with(|recorder| recorder.log(entry))
    }

    fn with(&self, call: impl FnOnce(&highroad_record::Recorder) -> Result<(), String>) -> PyResult<()> {
        let recorder = self.lock().clone().ok_or_else(|| PyRuntimeError::new_err("the run has ended"))?;
        call(&recorder).map_err(|reason| PyRuntimeError::new_err(format!("cannot record: {reason}")))
    }
}

/// Starts a run at a server; gives its id.
#[pyfunction]
pub fn create_run(
    py: Python<'_>,
    server: &str,
    experiment: &str,
    name: Option<&str>,
    tags: Vec<(String, String)>,
    start_time: i64,
) -> PyResult<String> {
    let create = || {
        let client = Client::new(server)?;
        client.create_run(&client.experiment(experiment)?, name, &tags, start_time)
    };
    py.detach(create).map_err(|error| PyConnectionError::new_err(error.to_string()))
}

/// Delivers what killed or cut-off processes left in `root`, each for at most `patience` seconds.
#[pyfunction]
pub fn sync_runs(py: Python<'_>, root: PathBuf, patience: f64) -> PyResult<Vec<Outcome>> {
    let patience = Duration::from_secs_f64(patience.clamp(0.0, LONGEST_S));
    let synced = py.detach(|| highroad_record::sync(&root, patience))?;
    Ok(synced.into_iter().map(outcome).collect())
}

fn outcome(synced: Synced) -> Outcome {
    (synced.run_id, synced.dir, synced.n_refused, synced.trouble)
}
