use std::num::NonZeroUsize;
use std::path::PathBuf;

use highroad_package::Package;
use highroad_task::{Answer, Input, OutputTensor, PredictorOptions, Prompt, joined};
use numpy::PyArray1;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::load_error;

/// A package ready to answer; `highroad.Predictor` wraps it.
#[pyclass(frozen, module = "highroad._highroad")]
pub struct Predictor {
    predictor: highroad_task::Predictor,
}

/// The label, where the task has labels, and the scores or the vector.
type Answered = (Option<String>, Py<PyArray1<f32>>);

#[pymethods]
impl Predictor {
    /// Opens the package in `dir` after comparing every byte with its digest.
    #[staticmethod]
    fn open(py: Python<'_>, dir: PathBuf, threads: NonZeroUsize) -> PyResult<Self> {
        let options = PredictorOptions { threads, ..PredictorOptions::default() };
        let predictor = py.detach(|| {
            let package = Package::open(&dir).and_then(Package::verify).map_err(|error| load_error(&error))?;
            highroad_task::Predictor::open(&package, &options).map_err(|error| load_error(&error))
        })?;
        Ok(Self { predictor })
    }

    /// One answer for each text, after the prompt of this name or else the default, in order; other Python threads go on meanwhile.
    #[pyo3(signature = (texts, prompt_name = None))]
    fn predict(&self, py: Python<'_>, texts: Vec<String>, prompt_name: Option<String>) -> PyResult<Vec<Answered>> {
        let prompt = prompt_name.map(Prompt::Named);
        let input = |text| Input::Text(text).prompted(prompt.as_ref());
        let inputs: Vec<Input> = texts.into_iter().map(input).collect();
        let answers = py.detach(|| self.predictor.predict(&inputs));
        let answers = answers.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok(answers.into_iter().map(|answer| answered(py, answer)).collect())
    }

    /// Index and relevance score of each document, best first.
    fn rank(&self, py: Python<'_>, query: &str, documents: Vec<String>) -> PyResult<Vec<(usize, f32)>> {
        let ranked = py.detach(|| self.predictor.rank(query, &documents));
        let ranked = ranked.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok(ranked.into_iter().map(|document| (document.index, document.score)).collect())
    }

    /// The package's name.
    fn digest(&self) -> String {
        self.predictor.digest().to_string()
    }

    /// The package's manifest as JSON.
    fn manifest(&self) -> PyResult<String> {
        serde_json::to_string(self.predictor.manifest()).map_err(|error| PyRuntimeError::new_err(error.to_string()))
    }
}

fn answered(py: Python<'_>, answer: Answer) -> Answered {
    match answer {
        Answer::Class { label, scores } => (Some(label), PyArray1::from_vec(py, scores).unbind()),
        Answer::Labels { labels, scores } => (Some(joined(&labels)), PyArray1::from_vec(py, scores).unbind()),
        Answer::Embedding { vector } => (None, PyArray1::from_vec(py, vector).unbind()),
        Answer::Relevance { logit } => (None, PyArray1::from_vec(py, vec![logit]).unbind()),
        Answer::Tensors(outputs) => {
            let values = outputs.iter().filter_map(OutputTensor::values).flatten().map(|value| value as f32);
            (None, PyArray1::from_iter(py, values).unbind())
        }
    }
}
