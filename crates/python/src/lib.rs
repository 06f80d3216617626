//! The Python module: programs and predictors of the Rust runtime.
//!
//! Tensors cross as dtype name, sizes and a flat array of bytes: one form for every dtype, bf16 included, which NumPy
//! does not know. `highroad/_load.py` makes torch tensors and NumPy arrays of them.

use pyo3::prelude::*;

mod loader;
mod predictor;
mod program;
mod record;
mod tensors;

#[pymodule]
mod _highroad {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::errors::{DataError, LoadError};
    #[pymodule_export]
    use crate::loader::Loader;
    #[pymodule_export]
    use crate::predictor::Predictor;
    #[pymodule_export]
    use crate::program::Program;
    #[pymodule_export]
    use crate::record::{Recorder, create_run, sync_runs};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// Called as Python imports them.
mod errors {
    use pyo3::exceptions::PyValueError;

    pyo3::create_exception!(highroad, LoadError, PyValueError, "The file or package cannot be loaded.");
    pyo3::create_exception!(
        highroad.data,
        DataError,
        PyValueError,
        "Data that cannot be read, with the place of the fault."
    );
}

/// An error with everything that caused it, one clause after another.
fn load_error(error: &dyn std::error::Error) -> PyErr {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let text = causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    });
    errors::LoadError::new_err(text)
}
