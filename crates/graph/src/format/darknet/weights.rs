//! The numbers of a Darknet `.weights`: a short header, then floats in the order of the convolutions.

use std::path::Path;

use crate::{Error, Result};

/// Where a convolution's numbers come from.
pub(super) enum Source<'a> {
    File {
        floats: &'a [u8],
        path: &'a Path,
    },
    /// No file: every number is 0.
    Zeros,
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

    /// The next `count` numbers; `layer` is named where the file ends first.
    pub fn take(&mut self, count: usize, layer: &str) -> Result<Vec<f32>> {
        match self {
            Self::Zeros => Ok(vec![0.0; count]),
            Self::File { floats, path } => {
                let have = floats.len() / 4;
                let Some(missing) = count.checked_sub(have).filter(|n| *n > 0) else {
                    let (mine, rest) = floats.split_at(4 * count);
                    *floats = rest;
                    return Ok(mine.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
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
