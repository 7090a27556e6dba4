//! The input of a convolution as its inner loops want it: rows without padding's edge cases, in place or copied.

use std::cell::RefCell;

use crate::View;

/// The positions of a map that output `(0, 0)`, `(0, 1)`, ... of a convolution read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub kernel: [usize; 2],
    /// Source pixels from one output to the next.
    pub stride: [usize; 2],
    /// Source row and column of output (0, 0)'s first tap; negative inside the padding.
    pub origin: [isize; 2],
}

impl Window {
    /// Source rows or columns (`axis` 0 or 1) that `count` outputs in a row read.
    pub fn span(&self, axis: usize, count: usize) -> usize {
        (count - 1) * self.stride[axis] + self.kernel[axis]
    }
}

/// Rows and columns of one image, as a convolution reads them: channels of (r, c) at `r * row + c * pixel`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub pixel: usize,
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` floats of this thread's scratch memory, with whatever was last written there.
///
/// `f` must not borrow it again, nor wait for other rayon tasks: a task stolen meanwhile would.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        f(&mut scratch[..len])
    })
}

/// Rows `origin[0]..origin[0] + size[0]` and columns `origin[1]..origin[1] + size[1]` of the single image `x`, zero outside
/// it. Read in place where all of it lies inside, else copied to the front of `scratch`, without gaps between pixels.
#[inline]
pub(crate) fn source<'a>(x: View<'a>, origin: [isize; 2], size: [usize; 2], scratch: &'a mut [f32]) -> Source<'a> {
    let l = x.layout;
    if origin[0] >= 0 && origin[1] >= 0 && origin[0] as usize + size[0] <= l.h && origin[1] as usize + size[1] <= l.w {
        let at = l.offset + (origin[0] as usize * l.w + origin[1] as usize) * l.pitch;
        return Source { data: &x.data[at..l.end()], row: l.w * l.pitch, pixel: l.pitch };
    }
    let row = size[1] * l.c;
    let scratch = &mut scratch[..size[0] * row];
    copy_padded(x, origin, size, scratch);
    Source { data: scratch, row, pixel: l.c }
}

/// The copying half of [`source`].
pub(crate) fn copy_padded(x: View, origin: [isize; 2], size: [usize; 2], to: &mut [f32]) {
    let l = x.layout;
    // Columns of the window that lie in the map, and where they start in it.
    let left = usize::try_from(-origin[1]).unwrap_or(0).min(size[1]);
    let first = usize::try_from(origin[1]).unwrap_or(0);
    let inside = (size[1] - left).min(l.w.saturating_sub(first));
    for (r, to) in to.chunks_exact_mut(size[1] * l.c).enumerate() {
        let y = origin[0] + r as isize;
        if inside == 0 || y < 0 || y as usize >= l.h {
            to.fill(0.0);
            continue;
        }
        let (before, rest) = to.split_at_mut(left * l.c);
        let (middle, after) = rest.split_at_mut(inside * l.c);
        before.fill(0.0);
        after.fill(0.0);
        let at = l.offset + (y as usize * l.w + first) * l.pitch;
        if l.pitch == l.c {
            middle.copy_from_slice(&x.data[at..at + inside * l.c]);
        } else {
            for (to, from) in middle.chunks_exact_mut(l.c).zip(x.data[at..].chunks(l.pitch)) {
                to.copy_from_slice(&from[..l.c]);
            }
        }
    }
}
