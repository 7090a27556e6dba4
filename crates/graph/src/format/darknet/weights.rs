//! The numbers of a Darknet `.weights`: a short header, then floats in the order of the convolutions.

use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{BN_EPS, MAX_WEIGHTS};
use crate::{BatchNorm, Error, Result};

/// Where a convolution's numbers come from.
pub(super) enum Source<'a> {
    File {
        floats: &'a [u8],
        path: &'a Path,
    },
    /// No file: the detector starts untrained.
    Untrained {
        rng: Box<ChaCha8Rng>,
        /// Numbers it may still ask for; without a file nothing else bounds what a `.cfg` costs.
        left: usize,
    },
}

/// What an untrained detector's numbers are.
#[derive(Clone, Copy)]
pub(super) enum Start {
    Zero,
    One,
    /// One; a file's must be no less than nothing.
    Variance,
    /// Uniform with the variance `2 / inputs`, which keeps the size of maps under rectifiers (He et al., 2015).
    He {
        inputs: usize,
    },
}

impl<'a> Source<'a> {
    /// Skips the header: i32 major, minor, revision, then the images seen, u64 since version 0.2 and u32 before.
    pub fn open(bytes: &'a [u8], path: &'a Path) -> Result<Self> {
        let short = || Error::format(path, "too short for the header of a Darknet .weights").at("byte 0");
        let word = |i: usize| -> Result<i32> {
            let b = bytes.get(4 * i..4 * i + 4).ok_or_else(short)?;
            Ok(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        };
        let version = i64::from(word(0)?) * 10 + i64::from(word(1)?);
        let floats = bytes.get(if version >= 2 { 20 } else { 16 }..).ok_or_else(short)?;
        Ok(Self::File { floats, path })
    }

    /// An untrained detector's numbers, the same for the same seed.
    pub fn untrained(seed: u64) -> Self {
        Self::Untrained { rng: Box::new(ChaCha8Rng::seed_from_u64(seed)), left: MAX_WEIGHTS }
    }

    /// The next `count` numbers; `layer` is named where the file ends first or holds what is no weight, or where the detector is
    /// too large to start untrained.
    pub fn take(&mut self, count: usize, start: Start, layer: &str, cfg: &Path) -> Result<Vec<f32>> {
        match self {
            Self::Untrained { rng, left } => {
                *left = left.checked_sub(count).ok_or_else(|| {
                    Error::format(cfg, format!("asks for over {MAX_WEIGHTS} numbers so far"))
                        .at(layer)
                        .hint("no detector is as large; one of its `filters` or `size` is mistyped")
                })?;
                Ok(match start {
                    Start::Zero => vec![0.0; count],
                    Start::One | Start::Variance => vec![1.0; count],
                    Start::He { inputs } => {
                        let bound = (6.0 / inputs as f32).sqrt();
                        (0..count).map(|_| rng.random_range(-bound..bound)).collect()
                    }
                })
            }
            Self::File { floats, path } => {
                let have = floats.len() / 4;
                let Some(missing) = count.checked_sub(have).filter(|n| *n > 0) else {
                    let (mine, rest) = floats.split_at(4 * count);
                    *floats = rest;
                    let numbers: Vec<f32> = mine.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
                    return match numbers.iter().find_map(|&v| odd(v, start)) {
                        None => Ok(numbers),
                        Some(what) => Err(Error::format(path, what)
                            .at(layer)
                            .hint("the file is damaged, belongs to another .cfg, or its training diverged")),
                    };
                };
                Err(Error::format(path, format!("ends {missing} floats early"))
                    .at(layer)
                    .hint("the file is cut short, or belongs to another .cfg"))
            }
        }
    }

    /// Refuses numbers no layer has asked for; `last` is the last layer that did.
    pub fn finish(self, last: &str) -> Result<()> {
        match self {
            Self::File { floats, path } if !floats.is_empty() => {
                let what = match floats.len() {
                    n if n.is_multiple_of(4) => format!("{} floats are left over", n / 4),
                    n => format!("{n} bytes are left over"),
                };
                Err(Error::format(path, what)
                    .at(format!("after {last}"))
                    .hint("the file belongs to another .cfg, often one of another number of classes"))
            }
            _ => Ok(()),
        }
    }
}

/// What is wrong with a number of a file.
fn odd(value: f32, start: Start) -> Option<String> {
    match start {
        _ if !value.is_finite() => Some(format!("holds {value}")),
        Start::Variance if value + BN_EPS <= 0.0 => Some(format!("holds a variance of {value}")),
        _ => None,
    }
}

/// gamma, mean and variance that do with Darknet's eps, and no bias, what `bn` does after `bias`.
pub(super) fn statistics(bn: &BatchNorm, bias: Option<&[f32]>) -> [Vec<f32>; 3] {
    let [mut gamma, mut mean, mut var] = [bn.gamma.clone(), bn.mean.clone(), bn.var.clone()];
    for (mean, bias) in mean.iter_mut().zip(bias.unwrap_or_default()) {
        *mean = (f64::from(*mean) - f64::from(*bias)) as f32;
    }
    if bn.eps != BN_EPS {
        for (gamma, var) in gamma.iter_mut().zip(&mut var) {
            let due = f64::from(*var) + f64::from(bn.eps);
            let without = due - f64::from(BN_EPS);
            // A variance below 0 is none: its scale goes into gamma instead.
            if without < 0.0 {
                *gamma = (f64::from(*gamma) * (f64::from(BN_EPS) / due).sqrt()) as f32;
            }
            *var = without.max(0.0) as f32;
        }
    }
    [gamma, mean, var]
}
