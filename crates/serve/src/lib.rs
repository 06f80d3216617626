//! Batching, deployments and the inference protocols around a task predictor.
