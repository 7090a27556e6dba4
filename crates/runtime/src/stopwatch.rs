//! Timing of models of any outputs: parts of detectors, single operators.

use std::sync::Arc;
use std::time::Instant;

use rten::{Dimension, Model, NodeId, RunOptions, ThreadPool, ValueOrView, ValueView};

use crate::{Error, Result};

/// The threads that timed models share. Threads of several pools would get into each other's way.
pub struct Stopwatch {
    pool: Arc<ThreadPool>,
    /// What every model is shown, as many values as the largest takes.
    values: Vec<f32>,
}

/// A model ready to be timed on an input of its own size.
pub struct Timed {
    name: String,
    model: Model,
    input: NodeId,
    outputs: Vec<NodeId>,
    shape: [usize; 4],
}

impl Stopwatch {
    /// A stopwatch for models that run on `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self { pool: Arc::new(ThreadPool::with_num_threads(threads)), values: vec![] }
    }

    /// Readies an ONNX model with one input of four fixed axes; `name` is for messages.
    ///
    /// # Errors
    /// The runtime does not take the model, or its input is another.
    pub fn model(&mut self, name: &str, bytes: Vec<u8>) -> Result<Timed> {
        let cannot = |what: String| Error::Load { path: name.into(), what };
        let model = Model::load(bytes).map_err(|e| cannot(e.to_string()))?;
        let &[input] = model.input_ids() else {
            return Err(cannot(format!("it has {} inputs, not 1", model.input_ids().len())));
        };
        let axes = model.node_info(input).and_then(|info| info.shape()).unwrap_or_default();
        let sizes: Vec<usize> =
            axes.iter().filter_map(|d| if let Dimension::Fixed(size) = d { Some(*size) } else { None }).collect();
        let shape: [usize; 4] = sizes
            .try_into()
            .map_err(|sizes: Vec<_>| cannot(format!("{} axes of its input are fixed, not 4", sizes.len())))?;
        let outputs = model.output_ids().to_vec();
        let count = shape.iter().product();
        self.values.resize(self.values.len().max(count), 0.5);
        Ok(Timed { name: name.into(), model, input, outputs, shape })
    }

    /// Nanoseconds of one run of `timed`.
    ///
    /// # Errors
    /// The model cannot be run.
    pub fn run(&self, timed: &Timed) -> Result<f64> {
        let failed = |what: String| Error::Load { path: timed.name.clone(), what };
        let values = &self.values[..timed.shape.iter().product()];
        let view = ValueView::from_shape(timed.shape, values).map_err(|e| failed(e.to_string()))?;
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&self.pool)));
        let start = Instant::now();
        let outputs = timed
            .model
            .run(vec![(timed.input, ValueOrView::from(view))], &timed.outputs, Some(options))
            .map_err(|e| failed(e.to_string()))?;
        let spent = start.elapsed().as_secs_f64() * 1e9;
        drop(outputs);
        Ok(spent)
    }

    /// Nanoseconds of each of `models`, the median of `rounds` in which all have their turns one after the other, each turn
    /// the middle of `runs` runs: so a disturbance hits all of them alike, and none of them for good. `turned` is called after
    /// every turn.
    ///
    /// # Errors
    /// A model cannot be run.
    pub fn alternate(
        &self,
        models: &[Timed],
        [rounds, runs]: [usize; 2],
        mut turned: impl FnMut(),
    ) -> Result<Vec<f64>> {
        for model in models {
            self.run(model)?;
        }
        let mut turns: Vec<Vec<f64>> = vec![Vec::with_capacity(rounds); models.len()];
        for _ in 0..rounds {
            for (model, turns) in models.iter().zip(&mut turns) {
                let times = (0..runs).map(|_| self.run(model)).collect::<Result<Vec<_>>>()?;
                turns.push(median(times));
                turned();
            }
        }
        Ok(turns.into_iter().map(median).collect())
    }
}

/// The middle of `times`; NaN of none.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
