//! Runs golden sets through predictors, measures latency, writes verdicts.
