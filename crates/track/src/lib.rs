//! The tracking server and model registry that MLflow clients speak to.
