//! Cache-line aligned memory for feature maps, and the pool it is reused from.

/// Floats of a cache line: a 512-bit load that starts at a pixel must not straddle two.
const LINE: usize = 16;

/// Memory of `len` floats that begins a cache line. Its content is whatever its last owner left.
#[derive(Default)]
pub(crate) struct Buffer {
    /// A line's worth more than asked for.
    floats: Vec<f32>,
    start: usize,
    len: usize,
}

impl Buffer {
    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.floats[self.start..][..self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.floats[self.start..][..self.len]
    }
}

/// Buffers nobody uses now. Taking and giving in the same order gives the same memory, so a step's peak is that of the
/// first step.
#[derive(Default)]
pub(crate) struct Pool {
    free: Vec<Vec<f32>>,
}

impl Pool {
    /// A buffer of `len` floats: the smallest free one that is not more than twice too large, or a new one.
    pub(crate) fn take(&mut self, len: usize) -> Buffer {
        let need = len.next_multiple_of(LINE) + LINE;
        let fits = |floats: &Vec<f32>| (need..=2 * need + 64 * LINE).contains(&floats.len());
        let best = (0..self.free.len()).filter(|&i| fits(&self.free[i])).min_by_key(|&i| self.free[i].len());
        let floats = match best {
            Some(i) => self.free.remove(i),
            // Memory that asks for no more than a float's alignment comes zeroed from the system, a page when somebody writes there.
            None => vec![0.0; need],
        };
        Buffer { start: floats.as_ptr().align_offset(4 * LINE), floats, len }
    }

    /// Gives a buffer back.
    pub(crate) fn give(&mut self, buffer: Buffer) {
        if !buffer.floats.is_empty() {
            self.free.push(buffer.floats);
        }
    }

    /// Lets go of those that have waited longest, until the rest is `floats` at most.
    pub(crate) fn keep_at_most(&mut self, floats: usize) {
        let mut held: usize = self.free.iter().map(Vec::len).sum();
        while held > floats {
            held -= self.free.remove(0).len();
        }
    }
}
