//! Exponential moving average of a model.
