//! What readers want of a layer's channels.

use super::times;
use crate::room::Room;

/// Share of what readers hear that is too little to look after: directions of less, together, are left out.
const LITTLE: f64 = 1e-3;

/// (C): means of values (S, C).
pub(super) fn means(values: &[f32], channels: usize) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    for row in values.chunks(channels) {
        sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    let count = (values.len() / channels.max(1)).max(1) as f64;
    sums.into_iter().map(|sum| sum / count).collect()
}

/// (C): sums of the squared distances of values (S, C) from their means.
pub(super) fn about_the_mean(values: &[f32], channels: usize) -> Vec<f64> {
    let means = means(values, channels);
    let mut sums = vec![0.0; channels];
    for row in values.chunks(channels) {
        sums.iter_mut().zip(row).zip(&means).for_each(|((sum, v), mean)| *sum += (f64::from(*v) - mean).powi(2));
    }
    sums
}

/// What readers want of a layer: directions among its channels, by how much they are minded.
pub(super) struct Aim {
    channels: usize,
    pub(super) directions: usize,
    /// (directions, channels).
    rows: Vec<f64>,
}

impl Aim {
    /// `metric` (C, C) says how errors are minded, `heard` (S, C) how much there is of each channel.
    pub(super) fn new(heard: &[f32], metric: Vec<f64>) -> Self {
        let channels = metric.len().isqrt();
        let spread: Vec<f64> = about_the_mean(heard, channels).into_iter().map(f64::sqrt).collect();
        let metric = (0..metric.len()).map(|k| metric[k] * spread[k / channels] * spread[k % channels]).collect();
        let mut rows = largest(metric, channels);
        for row in rows.chunks_mut(channels) {
            row.iter_mut().zip(&spread).for_each(|(v, s)| *v = if *s > 0.0 { *v / s } else { 0.0 });
        }
        Self { channels, directions: rows.len() / channels.max(1), rows }
    }

    /// (S, directions).
    pub(super) fn of(&self, heard: &[f32]) -> Room {
        times(heard, self.channels, &self.rows)
    }
}

/// (K, n): rows whose products with themselves add up to `matrix` (n, n), but for [`LITTLE`] of it; Cholesky with the largest pivot first.
fn largest(mut matrix: Vec<f64>, n: usize) -> Vec<f64> {
    let trace = |matrix: &[f64]| (0..n).map(|i| matrix[i * n + i].max(0.0)).sum::<f64>();
    let little = LITTLE * trace(&matrix);
    let mut rows = vec![];
    for _ in 0..n {
        let pivot = (0..n).max_by(|&a, &b| matrix[a * n + a].total_cmp(&matrix[b * n + b])).unwrap_or(0);
        if trace(&matrix) <= little || matrix[pivot * n + pivot] <= 0.0 {
            break;
        }
        let root = matrix[pivot * n + pivot].sqrt();
        let row: Vec<f64> = matrix[pivot * n..][..n].iter().map(|v| v / root).collect();
        for (to, a) in matrix.chunks_mut(n).zip(&row) {
            to.iter_mut().zip(&row).for_each(|(to, b)| *to -= a * b);
        }
        rows.extend(row);
    }
    rows
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn directions_add_up_to_the_metric_but_for_little() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let few: Vec<f64> = (0..3 * 6).map(|_| rng.random_range(-1.0..1.0)).collect();
        let product = |rows: &[f64], i: usize, j: usize| rows.chunks(6).map(|row| row[i] * row[j]).sum::<f64>();
        let metric: Vec<f64> = (0..36).map(|k| product(&few, k / 6, k % 6)).collect();
        let rows = largest(metric.clone(), 6);
        assert_eq!(rows.len(), 3 * 6, "of rank three");
        assert!((0..36).all(|k| (product(&rows, k / 6, k % 6) - metric[k]).abs() < 1e-9));
        assert_eq!(largest(vec![0.0; 36], 6), [0.0; 0]);
    }
}
