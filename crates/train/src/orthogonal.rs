//! Orthogonalisation of a matrix by Newton-Schulz iteration: every direction of an update made equally strong.
//!
//! Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024: five rounds of
//! `X <- (a + b X X' + c (X X')^2) X` bring every singular value of `X` near 1 and leave its singular vectors. The factors are
//! polynomials of the first `X X'` and so commute with it: all rounds are done on that square of the shorter side, and `X` is
//! multiplied once, by their product.

use graph::Act;
use kernels::{ConvShape, Epilogue, Layout, Packed, View, ViewMut};

/// Coefficients of the polynomial and how often it is applied: Jordan's, steep at 0 and within 0.7 to 1.2 after five.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.775, 2.0315];
const ROUNDS: usize = 5;

/// The matrix (`rows`, columns), row by row, whose singular vectors are those of `matrix` and whose singular values lie near
/// 1; all zero where `matrix` is.
pub(crate) fn orthogonalised(matrix: &[f32], rows: usize) -> Vec<f32> {
    let columns = matrix.len() / rows;
    let norm = matrix.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return matrix.to_vec();
    }
    let x: Vec<f32> = matrix.iter().map(|&v| (f64::from(v) / norm) as f32).collect();
    let layout = |pixels, channels| Layout::dense(1, 1, pixels, channels);
    let mut result = vec![0.0; x.len()];
    if rows <= columns {
        let factor = factor(&times(&x, &x, columns), rows);
        // `factor X` is the input gradient of a 1x1 convolution with weights `X` where the output's is `factor`.
        let dy = View::new(&factor, layout(rows, rows));
        let dx = ViewMut::new(&mut result, layout(rows, columns));
        kernels::conv_backward_input(&ConvShape::pointwise(columns, rows), dy, &x, dx, false);
    } else {
        // `X' X` is the weight gradient of a 1x1 convolution whose input and output gradient are both `X`.
        let mut gram = vec![0.0; columns * columns];
        let view = View::new(&x, layout(rows, columns));
        kernels::conv_backward_weight(&ConvShape::pointwise(columns, columns), view, view, &mut gram);
        result = times(&x, &factor(&gram, columns), columns);
    }
    result
}

/// What the rounds multiply a matrix with whose products (`side`, `side`) are `gram`.
fn factor(gram: &[f32], side: usize) -> Vec<f32> {
    let [a, b, c] = COEFFICIENTS;
    let mut gram = gram.to_vec();
    let mut product = vec![];
    for round in 1..=ROUNDS {
        // All of these are symmetric.
        let mut next = times(&gram, &gram, side);
        for (i, (n, g)) in next.iter_mut().zip(&gram).enumerate() {
            *n = b * g + c * *n + if i % (side + 1) == 0 { a } else { 0.0 };
        }
        if round < ROUNDS {
            gram = times(&times(&gram, &next, side), &next, side);
        }
        product = if round == 1 { next } else { times(&product, &next, side) };
    }
    product
}

/// `left * right'`, both row by row with rows of `depth`: a 1x1 convolution that sees rows as pixels.
fn times(left: &[f32], right: &[f32], depth: usize) -> Vec<f32> {
    let (rows, columns) = (left.len() / depth, right.len() / depth);
    let shape = ConvShape::pointwise(depth, columns);
    let mut product = vec![0.0; rows * columns];
    let from = View::new(left, Layout::dense(1, 1, rows, depth));
    let to = ViewMut::new(&mut product, Layout::dense(1, 1, rows, columns));
    let plain = Epilogue { bias: None, act: Act::Identity };
    kernels::conv_forward(&shape, from, &Packed::new(&shape, right), plain, to);
    product
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Five rounds one after the other, on the matrix itself, in f64.
    fn slowly(matrix: &[f32], rows: usize) -> Vec<f64> {
        let columns = matrix.len() / rows;
        let norm = matrix.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let mut x: Vec<f64> = matrix.iter().map(|&v| f64::from(v) / norm).collect();
        let [a, b, c] = COEFFICIENTS.map(f64::from);
        let times = |left: &[f64], right: &[f64], depth: usize, columns: usize| -> Vec<f64> {
            let entry =
                |i: usize| (0..depth).map(|k| left[i / columns * depth + k] * right[k * columns + i % columns]).sum();
            (0..left.len() / depth * columns).map(entry).collect()
        };
        for _ in 0..ROUNDS {
            let turned: Vec<f64> = (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect();
            let gram = times(&x, &turned, columns, rows);
            let once = times(&gram, &x, rows, columns);
            let twice = times(&gram, &once, rows, columns);
            x = (0..x.len()).map(|i| a * x[i] + b * once[i] + c * twice[i]).collect();
        }
        x
    }

    #[test]
    fn the_square_does_the_rounds_of_the_matrix() {
        for (rows, columns) in [(1, 1), (1, 9), (5, 17), (24, 24), (40, 9), (64, 576)] {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(rows as u64);
            let matrix: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-1.0..1.0)).collect();
            let (fast, slow) = (orthogonalised(&matrix, rows), slowly(&matrix, rows));
            let worst = fast.iter().zip(&slow).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, testkit::larger);
            // What f32 loses of the square grows by `a^2` a round along directions the matrix hardly has; a square one of
            // random numbers has such.
            let lost =
                if rows == columns { f64::from(f32::EPSILON * COEFFICIENTS[0].powi(2 * ROUNDS as i32)) } else { 1e-3 };
            assert!(worst < lost, "{rows}x{columns}: {worst}");
            // Singular values within 0.7 to 1.2: their squares add up to the squares of the entries.
            let rank = rows.min(columns) as f64;
            let energy: f64 = slow.iter().map(|v| v * v).sum();
            assert!((0.45 * rank..1.5 * rank).contains(&energy), "{rows}x{columns}: {energy}");
        }
    }

    #[test]
    fn nothing_stays_nothing() {
        assert_eq!(orthogonalised(&[0.0; 6], 2), [0.0; 6]);
    }
}
