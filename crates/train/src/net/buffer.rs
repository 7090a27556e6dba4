//! Cache-line aligned memory for feature maps, and the pool it is reused from.

use bytemuck::{Pod, Zeroable};

/// One cache line: a 512-bit load that starts at a pixel must not straddle two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Memory of at least `len` floats, aligned to 64 bytes. Its content is whatever its last owner left.
#[derive(Default)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    pub(crate) fn as_slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// Buffers nobody uses now. Taking and giving in the same order gives the same memory, so a step's peak is that of the
/// first step.
#[derive(Default)]
pub(crate) struct Pool {
    free: Vec<Vec<Line>>,
}

impl Pool {
    /// A buffer of `len` floats: the smallest free one that is not more than twice too large, or a new one.
    pub(crate) fn take(&mut self, len: usize) -> Buffer {
        let need = len.div_ceil(16);
        let fits = |l: &Vec<Line>| (need..=2 * need + 64).contains(&l.len());
        let best = (0..self.free.len()).filter(|&i| fits(&self.free[i])).min_by_key(|&i| self.free[i].len());
        let lines = match best {
            Some(i) => self.free.swap_remove(i),
            None => vec![Line([0.0; 16]); need],
        };
        Buffer { lines, len }
    }

    /// Gives a buffer back.
    pub(crate) fn give(&mut self, buffer: Buffer) {
        if !buffer.lines.is_empty() {
            self.free.push(buffer.lines);
        }
    }
}
