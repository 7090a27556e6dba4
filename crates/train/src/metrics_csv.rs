//! The `results.csv` of a training run.
