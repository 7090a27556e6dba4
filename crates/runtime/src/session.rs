//! One loaded model: its shapes, and running, timing and checking it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use graph::format::onnx::{Metadata, read_metadata};
use rten::{Dimension, Model, NodeId, RunOptions, ThreadPool, Value, ValueOrView, ValueView};

use crate::{Error, Result};

/// What a model returned, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Of boxes (N, rows, columns) or (N, columns, rows), see [`graph::format::onnx::export`].
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// A detector ready to run.
pub struct Session {
    model: Model,
    input: NodeId,
    /// Boxes first.
    outputs: Vec<NodeId>,
    pool: Arc<ThreadPool>,
    metadata: Metadata,
    input_shape: [Option<usize>; 4],
}

impl Session {
    /// Loads an ONNX detector to run on `threads` threads.
    ///
    /// # Errors
    /// The file cannot be read, is no ONNX model, or is no detector: one 4-D input, a 3-D output first.
    pub fn load(path: &Path, threads: usize) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.display().to_string(), source })?;
        Self::from_bytes(path, bytes, threads)
    }

    /// The same from memory; `path` is for messages.
    ///
    /// # Errors
    /// As [`Session::load`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>, threads: usize) -> Result<Self> {
        let name = || path.display().to_string();
        let metadata = read_metadata(path, &bytes)?;
        let model = Model::load(bytes).map_err(|e| Error::Load { path: name(), what: e.to_string() })?;
        let not = |what: String| Error::NotADetector { path: name(), what };
        let (&[input], &[output, ..]) = (model.input_ids(), model.output_ids()) else {
            let (inputs, outputs) = (model.input_ids().len(), model.output_ids().len());
            return Err(not(format!("it has {inputs} inputs and {outputs} outputs")));
        };
        let shape = |id| model.node_info(id).and_then(|info| info.shape());
        let sizes = |shape: Vec<Dimension>| -> Vec<Option<usize>> {
            shape.into_iter().map(|d| if let Dimension::Fixed(size) = d { Some(size) } else { None }).collect()
        };
        let input_shape = shape(input).map(sizes).unwrap_or_default();
        let input_shape: [Option<usize>; 4] =
            input_shape.try_into().map_err(|axes: Vec<_>| not(format!("its input has {} axes, not 4", axes.len())))?;
        match shape(output) {
            Some(axes) if axes.len() != 3 => return Err(not(format!("its output has {} axes, not 3", axes.len()))),
            // An output without a declared shape is checked when it is there.
            _ => {}
        }
        let pool = Arc::new(ThreadPool::with_num_threads(threads));
        let outputs = model.output_ids().to_vec();
        Ok(Self { model, input, outputs, pool, metadata, input_shape })
    }

    /// What the file states of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// (N, C, H, W) of the input; `None` where the file leaves an axis open.
    pub fn input_shape(&self) -> [Option<usize>; 4] {
        self.input_shape
    }

    /// Runs the model on `images`, (N, C, H, W), RGB in 0..1; returns its first output, the boxes.
    ///
    /// # Errors
    /// `images` are not of `shape`, or the model does not take that shape.
    pub fn run(&self, images: &[f32], shape: [usize; 4]) -> Result<Output> {
        Ok(self.run_all(images, shape)?.swap_remove(0))
    }

    /// [`Session::run`] with every output: one at least.
    ///
    /// # Errors
    /// As [`Session::run`]; the first output is not of three axes, or another of more than four.
    pub fn run_all(&self, images: &[f32], shape: [usize; 4]) -> Result<Vec<Output>> {
        let refused = |what: String| Error::Input { shape, what };
        for (axis, (given, wanted)) in
            ["images", "channels", "rows", "columns"].iter().zip(shape.iter().zip(self.input_shape))
        {
            if let Some(wanted) = wanted.filter(|w| w != given) {
                return Err(refused(format!("the model takes {wanted} {axis}, not {given}")));
            }
        }
        let view =
            ValueView::from_shape(shape, images).map_err(|e| refused(format!("{} values given: {e}", images.len())))?;
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&self.pool)));
        let values = self
            .model
            .run(vec![(self.input, ValueOrView::from(view))], &self.outputs, Some(options))
            .map_err(|e| refused(e.to_string()))?;
        let axes = std::iter::once(3).chain(std::iter::repeat(4));
        let read = |(value, axes): (Value, usize)| match axes {
            3 => value.into_shape_vec::<f32, 3>().map(|(shape, data)| Output { shape: shape.to_vec(), data }),
            _ => value.into_shape_vec::<f32, 4>().map(|(shape, data)| Output { shape: shape.to_vec(), data }),
        };
        values
            .into_iter()
            .zip(axes)
            .map(|pair| {
                let axes = pair.1;
                read(pair).map_err(|e| refused(format!("an output is not an f32 array of {axes} axes: {e}")))
            })
            .collect()
    }

    /// Milliseconds of each of `runs` runs on grey images of `shape`, after `warmup` runs that do not count.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn latency(&self, shape: [usize; 4], warmup: usize, runs: usize) -> Result<Vec<f64>> {
        let images = vec![0.5; shape.iter().product()];
        for _ in 0..warmup {
            self.run(&images, shape)?;
        }
        let timed = |_| {
            let start = Instant::now();
            self.run(&images, shape)?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        };
        (0..runs).map(timed).collect()
    }

    /// Largest absolute difference between the outputs on `images`, one after another, and `expected`, in the units of the
    /// output (pixels for boxes).
    ///
    /// # Errors
    /// It exceeds `tolerance`, the lengths differ, a value is not finite, or [`Session::run`] fails.
    pub fn verify(&self, images: &[f32], shape: [usize; 4], expected: &[f32], tolerance: f32) -> Result<f32> {
        let outputs = self.run_all(images, shape)?;
        let shapes: Vec<&[usize]> = outputs.iter().map(|o| &o.shape[..]).collect();
        let data: Vec<f32> = outputs.iter().flat_map(|o| &o.data).copied().collect();
        if data.len() != expected.len() {
            let what = format!("{shapes:?} values, {} were expected", expected.len());
            return Err(Error::Differs { what });
        }
        let mut worst = (0, 0.0f32);
        for (i, (a, b)) in data.iter().zip(expected).enumerate() {
            let difference = (a - b).abs();
            // A NaN compares as the worst of all.
            if difference.is_nan() || difference > worst.1 {
                worst = (i, if difference.is_nan() { f32::INFINITY } else { difference });
            }
        }
        let (at, difference) = worst;
        if difference > tolerance {
            let what = format!("value {at} is {}, expected {} (tolerance {tolerance})", data[at], expected[at]);
            return Err(Error::Differs { what });
        }
        Ok(difference)
    }
}
