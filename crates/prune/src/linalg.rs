//! The little linear algebra that stage 2 and refitting need: Cholesky factors of covariances and of products of features, in f64.

use std::ops::Range;

use rayon::prelude::*;

/// Columns finished at a time, before all rows below are brought up to date in parallel.
const BLOCK: usize = 32;

/// Lower triangular factor L of a symmetric positive definite matrix: `A = L L^T`. Row-major, size n x n.
pub struct Cholesky {
    n: usize,
    l: Vec<f64>,
}

impl Cholesky {
    /// Factors `a`, of which only the lower triangle is read; `None` where it is not positive definite.
    pub fn new(n: usize, mut a: Vec<f64>) -> Option<Self> {
        let mut from = 0;
        while from < n {
            let to = (from + BLOCK).min(n);
            for i in from..to {
                let (above, rest) = a.split_at_mut(i * n);
                let row = &mut rest[..n];
                eliminate(row, above, n, from..i);
                let pivot = row[i] - dot(&row[..i], &row[..i]);
                if pivot.is_nan() || pivot <= 0.0 {
                    return None;
                }
                row[i] = pivot.sqrt();
                row[i + 1..].fill(0.0);
            }
            // The rows below need the finished block only, not each other.
            let (above, below) = a.split_at_mut(to * n);
            below.par_chunks_mut(n).with_min_len(BLOCK).for_each(|row| eliminate(row, above, n, from..to));
            from = to;
        }
        Some(Self { n, l: a })
    }

    /// Solves `A x = b` in place.
    pub fn solve(&self, b: &mut [f64]) {
        let row = |i: usize| &self.l[i * self.n..][..=i];
        for i in 0..self.n {
            let r = row(i);
            b[i] = (b[i] - dot(&r[..i], &b[..i])) / r[i];
        }
        for i in (0..self.n).rev() {
            let r = row(i);
            b[i] /= r[i];
            let x = b[i];
            b[..i].iter_mut().zip(r).for_each(|(b, l)| *b -= l * x);
        }
    }

    /// `A^-1`, row-major. It is symmetric: of every column what lies on the diagonal and below is all that has to be solved for.
    pub(crate) fn inverse(&self) -> Vec<f64> {
        let n = self.n;
        let row = |j: usize| &self.l[j * n..][..=j];
        let mut inverse = vec![0.0; n * n];
        inverse.par_chunks_mut(n.max(1)).enumerate().for_each(|(i, b)| {
            b[i] = 1.0 / row(i)[i];
            for j in i + 1..n {
                b[j] = -dot(&row(j)[i..j], &b[i..j]) / row(j)[j];
            }
            for j in (i..n).rev() {
                let r = row(j);
                b[j] /= r[j];
                let x = b[j];
                b[i..j].iter_mut().zip(&r[i..]).for_each(|(b, l)| *b -= l * x);
            }
        });
        mirror(&mut inverse, n);
        inverse
    }
}

/// Copies what a matrix of that width has right of its diagonal to the left.
pub fn mirror(upper: &mut [f64], width: usize) {
    for i in 0..width {
        let (above, rest) = upper.split_at_mut(i * width);
        rest[..i].iter_mut().enumerate().for_each(|(j, v)| *v = above[j * width + i]);
    }
}

/// Columns `columns` of one row of the factor, from the finished rows `above`.
fn eliminate(row: &mut [f64], above: &[f64], n: usize, columns: Range<usize>) {
    for j in columns {
        let other = &above[j * n..][..=j];
        row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
    }
}

/// Sum of products, in four strands so that the compiler can use vector registers.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut strands = [0.0; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let tail: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a4.zip(b4) {
        for k in 0..4 {
            strands[k] += x[k] * y[k];
        }
    }
    strands.iter().sum::<f64>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverse_times_matrix_is_one() {
        let n = 75;
        let at = |i: usize, j: usize| 1.0 / (1.0 + i.abs_diff(j) as f64) + if i == j { 0.5 } else { 0.0 };
        let a: Vec<f64> = (0..n * n).map(|k| at(k / n, k % n)).collect();
        let inverse = Cholesky::new(n, a.clone()).unwrap().inverse();
        for i in 0..n {
            for j in 0..n {
                let product: f64 = (0..n).map(|k| a[i * n + k] * inverse[k * n + j]).sum();
                assert!((product - f64::from(i == j)).abs() < 1e-12, "({i}, {j}): {product}");
            }
        }
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        assert!(Cholesky::new(2, vec![1.0, 2.0, 2.0, 1.0]).is_none());
        assert!(Cholesky::new(2, vec![1.0, 1.0, 1.0, 1.0]).is_none(), "nor one that cannot be inverted");
    }
}
