//! The two register tiles that all dense convolution arithmetic happens in: inner products and outer products.

use super::panels::Panel;
use crate::isa::{MAX_TILE, Simd};

/// Consecutive floats every pixel of a tile reads, at `offset` from its own start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub offset: usize,
    pub len: usize,
}

/// Where a pixel's inputs start in the source, and its outputs in the destination.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pixel {
    pub from: usize,
    pub to: usize,
}

/// What sums start from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a> {
    Zero,
    /// One value per output channel of the convolution.
    Bias(&'a [f32]),
    /// What the destination holds.
    Destination,
}

/// One stretch of depth of one block of output channels, to be applied to many pixels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a> {
    runs: &'a [Run],
    weights: Panel<'a>,
    /// Floats from a pixel's start to the end of its furthest run.
    reach: usize,
    start: Start<'a>,
}

impl<'a> Product<'a> {
    pub fn new(runs: &'a [Run], weights: Panel<'a>, start: Start<'a>) -> Self {
        let reach = runs.iter().map(|r| r.offset + r.len).max().unwrap_or(0);
        Self { runs, weights, reach, start }
    }

    /// `destination[pixel] = start + sum over depth of source[pixel] * weights` for all pixels.
    #[inline(always)]
    pub fn apply<S: Simd>(&self, s: S, source: &[f32], pixels: &[Pixel], destination: &mut [f32]) {
        match self.weights.vectors {
            1 => self.apply_tiles::<S, 1>(s, source, pixels, destination),
            _ => self.apply_tiles::<S, 2>(s, source, pixels, destination),
        }
    }

    #[inline(always)]
    fn apply_tiles<S: Simd, const V: usize>(&self, s: S, source: &[f32], pixels: &[Pixel], destination: &mut [f32]) {
        let mut tiles = pixels.chunks_exact(S::TILE);
        for tile in &mut tiles {
            self.tile::<S, V, FULL>(s, source, tile, destination);
        }
        for tile in tiles.remainder().chunks(SMALL) {
            self.tile::<S, V, SMALL>(s, source, tile, destination);
        }
    }

    /// `ROWS` pixels, `V` vectors of channels each, in registers. Missing pixels repeat the last one.
    #[inline(always)]
    fn tile<S: Simd, const V: usize, const ROWS: usize>(&self, s: S, source: &[f32], pixels: &[Pixel], to: &mut [f32]) {
        let (rows, width) = (rows::<S>(ROWS), V * S::LANES);
        let columns = self.weights.columns;
        let last = pixels.len() - 1;
        let mut from = [0; MAX_TILE];
        for i in 0..rows {
            from[i] = pixels[i.min(last)].from;
            assert!(from[i] + self.reach <= source.len());
        }
        assert!(columns <= width && self.runs.iter().map(|r| r.len).sum::<usize>() * width <= self.weights.data.len());

        let mut sums = [[s.splat(0.0); V]; MAX_TILE];
        match self.start {
            Start::Zero => {}
            Start::Bias(bias) => {
                let bias: [S::V; V] = read(s, &bias[self.weights.first_column..][..columns]);
                sums[..rows].fill(bias);
            }
            Start::Destination => {
                for i in 0..rows {
                    sums[i] = read(s, &to[pixels[i.min(last)].to..][..columns]);
                }
            }
        }

        let mut depth = 0;
        for run in self.runs {
            for t in run.offset..run.offset + run.len {
                let mut b = [s.splat(0.0); V];
                for (v, b) in b.iter_mut().enumerate() {
                    // SAFETY: `depth` counts the floats of the runs so far, whose sum times `width` fits the panel (asserted).
                    *b = s.load(unsafe { range(self.weights.data, depth * width + v * S::LANES, S::LANES) });
                }
                depth += 1;
                for i in 0..rows {
                    // SAFETY: `t < reach`, and `from[i] + reach` lies within `source` (asserted).
                    let a = s.splat(unsafe { *source.get_unchecked(from[i] + t) });
                    for v in 0..V {
                        sums[i][v] = s.fma(a, b[v], sums[i][v]);
                    }
                }
            }
        }

        for i in 0..rows {
            if i <= last {
                write(s, sums[i], &mut to[pixels[i].to..][..columns]);
            }
        }
    }
}

/// Pixels of one row: the first one's input starts at `from`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowOfPixels {
    pub from: usize,
    pub count: usize,
}

/// Sums of outer products: `sums[k][column] += sum over pixels of source[pixel + k] * gradient[pixel][column]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outer<'a> {
    pub source: &'a [f32],
    pub rows: &'a [RowOfPixels],
    /// Floats from a pixel to the next in `source`.
    pub step: usize,
    /// Pixels one after the other, `width` columns each.
    pub gradient: &'a [f32],
    pub width: usize,
    /// Floats from a pixel to the next in `gradient`.
    pub pitch: usize,
}

impl Outer<'_> {
    /// Adds to `sums`, which holds `width` columns for each float of the run; all pixels read `source` from `offset` on.
    #[inline(always)]
    pub fn apply<S: Simd>(&self, s: S, run: Run, sums: &mut [f32]) {
        if self.width == S::LANES {
            self.apply_tiles::<S, 1>(s, run, sums);
        } else {
            self.apply_tiles::<S, 2>(s, run, sums);
        }
    }

    #[inline(always)]
    fn apply_tiles<S: Simd, const V: usize>(&self, s: S, run: Run, sums: &mut [f32]) {
        let mut k = 0;
        while k + S::TILE <= run.len {
            self.tile::<S, V, FULL>(s, run.offset, k, 0, sums);
            k += S::TILE;
        }
        while k < run.len {
            if run.len < SMALL {
                self.tile::<S, V, 1>(s, run.offset, k, 0, sums);
                k += 1;
            } else {
                // The last small tile reaches back over rows already done and leaves those alone.
                let start = k.min(run.len - SMALL);
                self.tile::<S, V, SMALL>(s, run.offset, start, k - start, sums);
                k = start + SMALL;
            }
        }
    }

    /// Rows `k..` of the run, all but the first `skip` of them.
    #[inline(always)]
    fn tile<S: Simd, const V: usize, const ROWS: usize>(
        &self,
        s: S,
        offset: usize,
        k: usize,
        skip: usize,
        sums: &mut [f32],
    ) {
        let (tile, width) = (rows::<S>(ROWS), V * S::LANES);
        let first = offset + k;
        let mut pixels = 0;
        for row in self.rows.iter().filter(|row| row.count > 0) {
            assert!(row.from + (row.count - 1) * self.step + first + tile <= self.source.len());
            pixels += row.count;
        }
        assert!(pixels == 0 || (pixels - 1) * self.pitch + width <= self.gradient.len());

        let mut products = [[s.splat(0.0); V]; MAX_TILE];
        let mut at = 0;
        for row in self.rows {
            let mut from = row.from + first;
            for _ in 0..row.count {
                let mut d = [s.splat(0.0); V];
                for (v, d) in d.iter_mut().enumerate() {
                    // SAFETY: `at` counts pixels, `pitch` floats each, and the last one's `width` fits `gradient` (asserted).
                    *d = s.load(unsafe { range(self.gradient, at + v * S::LANES, S::LANES) });
                }
                for (i, product) in products.iter_mut().enumerate().take(tile) {
                    // SAFETY: even the row's last pixel has `tile` floats from `first` on (asserted).
                    let a = s.splat(unsafe { *self.source.get_unchecked(from + i) });
                    for v in 0..V {
                        product[v] = s.fma(a, d[v], product[v]);
                    }
                }
                at += self.pitch;
                from += self.step;
            }
        }
        for i in 0..tile {
            if i >= skip {
                let to = &mut sums[(k + i) * width..][..width];
                let mut total: [S::V; V] = read(s, to);
                for (total, product) in total.iter_mut().zip(products[i]) {
                    *total = s.add(*total, product);
                }
                write(s, total, to);
            }
        }
    }
}

/// Stands for [`Simd::TILE`] rows.
const FULL: usize = 0;
/// Rows of the tile for what is left.
const SMALL: usize = 4;

#[inline(always)]
fn rows<S: Simd>(rows: usize) -> usize {
    if rows == FULL { S::TILE } else { rows }
}

/// `data[from..from + len]`. Safety: it must lie within `data`.
#[inline(always)]
pub(crate) unsafe fn range(data: &[f32], from: usize, len: usize) -> &[f32] {
    debug_assert!(from + len <= data.len());
    // SAFETY: the caller's.
    unsafe { data.get_unchecked(from..from + len) }
}

/// Vectors from a slice, zeros beyond its end.
#[inline(always)]
fn read<S: Simd, const V: usize>(s: S, from: &[f32]) -> [S::V; V] {
    let mut vectors = [s.splat(0.0); V];
    for (v, vector) in vectors.iter_mut().enumerate() {
        let part = &from[(v * S::LANES).min(from.len())..];
        *vector = if part.len() >= S::LANES { s.load(part) } else { s.load_part(part) };
    }
    vectors
}

/// As many floats of the vectors as the slice has room for.
#[inline(always)]
fn write<S: Simd, const V: usize>(s: S, vectors: [S::V; V], to: &mut [f32]) {
    for (v, vector) in vectors.into_iter().enumerate() {
        let start = (v * S::LANES).min(to.len());
        let part = &mut to[start..];
        if part.len() >= S::LANES { s.store(vector, part) } else { s.store_part(vector, part) }
    }
}
