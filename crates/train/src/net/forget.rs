//! Maps that training forgets when the forward pass is through with them and makes again when the backward pass asks.
//!
//! What BatchNorm and activation put out takes one pass over what went in, which has to be kept anyway (Bulo et al., "In-place
//! activated BatchNorm for memory-optimized training of DNNs", 2018, with the roles of the two maps swapped). Half of the
//! activations need no memory of their own.

use super::plan::{Kind, Plan};

/// What to forget, and when.
#[derive(Debug, Default)]
pub(super) struct Forget {
    /// By buffer, the steps that fill it again; none for a buffer that is kept.
    makers: Vec<Vec<usize>>,
    /// By step, the buffers that nothing later in the forward pass reads.
    after: Vec<Vec<usize>>,
}

impl Forget {
    /// Buffers that only BatchNorms write, each reading what only convolutions wrote.
    pub(super) fn new(plan: &Plan) -> Self {
        let mut writers: Vec<Vec<usize>> = vec![vec![]; plan.buffers.len()];
        let mut last: Vec<usize> = vec![0; plan.buffers.len()];
        for (at, step) in plan.steps.iter().enumerate() {
            writers[step.output.buffer].push(at);
            last[step.output.buffer] = at;
            step.inputs.iter().for_each(|&i| last[plan.place(i).buffer] = at);
        }
        let convolved = |buffer: usize| {
            let by_convolution = |&at: &usize| matches!(plan.steps[at].kind, Kind::Conv { .. });
            !writers[buffer].is_empty() && writers[buffer].iter().all(by_convolution)
        };
        let cheap = |&at: &usize| {
            let step = &plan.steps[at];
            matches!(step.kind, Kind::BatchNorm { .. }) && convolved(plan.place(step.inputs[0]).buffer)
        };
        let leaves = |buffer: usize| plan.outputs.iter().any(|&id| plan.place(id).buffer == buffer);
        let forgotten = |buffer: &usize| {
            let writers = &writers[*buffer];
            !writers.is_empty() && writers.iter().all(cheap) && !leaves(*buffer)
        };
        let mut makers = vec![vec![]; plan.buffers.len()];
        let mut after = vec![vec![]; plan.steps.len()];
        for buffer in (0..plan.buffers.len()).filter(forgotten) {
            makers[buffer].clone_from(&writers[buffer]);
            after[last[buffer]].push(buffer);
        }
        Self { makers, after }
    }

    /// The steps that fill `buffer` again; none if it is kept.
    pub(super) fn makers(&self, buffer: usize) -> &[usize] {
        &self.makers[buffer]
    }

    /// What may be forgotten once step `at` of the forward pass has run.
    pub(super) fn after(&self, at: usize) -> &[usize] {
        &self.after[at]
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Mode;
    use super::*;

    #[test]
    fn a_third_of_a_yolov5_is_forgotten_and_nothing_the_head_or_a_sum_makes() -> graph::Result<()> {
        let graph =
            graph::build::Yolov5 { names: vec!["a".into()], imgsz: 64, width: 0.25, depth: 0.33, seed: 1 }.build()?;
        let plan = Plan::new(&graph, Mode::Train, 1, [64; 2])?;
        let forget = Forget::new(&plan);
        let forgotten = |b: &usize| !forget.makers(*b).is_empty();
        let floats: usize = (0..plan.buffers.len()).filter(forgotten).map(|b| plan.buffers[b]).sum();
        assert!(3 * floats > plan.buffers.iter().sum::<usize>(), "{floats}");
        for step in &plan.steps {
            let kept = !forgotten(&step.output.buffer);
            assert!(kept || matches!(step.kind, Kind::BatchNorm { .. }), "{:?}", step.kind);
        }
        assert!(plan.outputs.iter().all(|&id| !forgotten(&plan.place(id).buffer)));
        Ok(())
    }
}
