//! Where the time of a training step goes.

use std::time::Instant;

/// What a kernel call was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// Packing of weights and the convolution itself.
    ConvForward,
    /// Gradient of a convolution's weights and bias.
    ConvWeight,
    /// Gradient of a convolution's input.
    ConvInput,
    /// Mean and variance of a batch.
    Statistics,
    /// BatchNorm and the activation after it.
    NormForward,
    NormBackward,
    /// The forward pass again, for the backward pass to read.
    NormAgain,
    /// Everything else, forward and backward: pooling, upsampling, attention, sums, copies, lone activations.
    Glue,
}

impl Work {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConvForward => "convolution, forward",
            Self::ConvWeight => "convolution, weight gradient",
            Self::ConvInput => "convolution, input gradient",
            Self::Statistics => "BatchNorm statistics",
            Self::NormForward => "BatchNorm and activation, forward",
            Self::NormBackward => "BatchNorm and activation, backward",
            Self::NormAgain => "BatchNorm and activation, once more",
            Self::Glue => "pooling, upsampling, attention, sums, copies",
        }
    }
}

/// Time spent on one kind of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    pub work: Work,
    pub seconds: f64,
    /// Multiply-accumulates done meanwhile; nought where the work is not made of them.
    pub macs: u64,
}

/// Adds up time by kind of work. Two clock readings a kernel call cost nothing beside it, so it always runs.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    spent: Vec<Spent>,
}

impl Clock {
    /// Runs `f` on the clock.
    pub fn time<R>(&mut self, work: Work, macs: u64, f: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = f();
        let seconds = start.elapsed().as_secs_f64();
        match self.spent.iter_mut().find(|s| s.work == work) {
            Some(s) => (s.seconds, s.macs) = (s.seconds + seconds, s.macs + macs),
            None => self.spent.push(Spent { work, seconds, macs }),
        }
        result
    }

    /// What was spent since the last call, by kind.
    pub fn take(&mut self) -> Vec<Spent> {
        let mut spent = std::mem::take(&mut self.spent);
        spent.sort_by_key(|s| s.work);
        spent
    }
}
