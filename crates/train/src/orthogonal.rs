//! Orthogonalisation of a matrix by Newton-Schulz iteration: every direction of an update made equally strong.
//!
//! Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024: five rounds of
//! `X <- a X + b (X X^T) X + c (X X^T)^2 X` bring every singular value of `X` near 1 and leave its singular vectors.

use graph::Act;
use kernels::{ConvShape, Epilogue, Layout, Packed, View, ViewMut, conv_forward};

/// Coefficients of the polynomial and how often it is applied: Jordan's, steep at 0 and within 0.7 to 1.2 after five.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.775, 2.0315];
const ROUNDS: usize = 5;

/// The matrix (`rows`, columns), row by row, whose singular vectors are those of `matrix` and whose singular values lie near
/// 1; all zero where `matrix` is.
pub(crate) fn orthogonalised(matrix: &[f32], rows: usize) -> Vec<f32> {
    let columns = matrix.len() / rows;
    // The products below are of the shorter side.
    if rows > columns {
        let across = orthogonalised(&transposed(matrix, rows), columns);
        return transposed(&across, columns);
    }
    let norm = matrix.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return matrix.to_vec();
    }
    let mut x: Vec<f32> = matrix.iter().map(|&v| (f64::from(v) / norm) as f32).collect();
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..ROUNDS {
        let gram = times_transposed(&x, &x, rows, columns, rows);
        // The Gram matrix is its own transpose.
        let mut factor = times_transposed(&gram, &gram, rows, rows, rows);
        for (f, g) in factor.iter_mut().zip(&gram) {
            *f = b * g + c * *f;
        }
        let change = times_transposed(&factor, &transposed(&x, rows), rows, rows, columns);
        for (x, d) in x.iter_mut().zip(&change) {
            *x = a * *x + d;
        }
    }
    x
}

/// `left * right^T` of (`rows`, `depth`) and (`columns`, `depth`): a 1x1 convolution of `rows` pixels.
fn times_transposed(left: &[f32], right: &[f32], rows: usize, depth: usize, columns: usize) -> Vec<f32> {
    let shape = ConvShape { ci: depth, co: columns, kernel: [1, 1], stride: [1, 1], pad: [0, 0], groups: 1 };
    let mut product = vec![0.0; rows * columns];
    let (from, to) = (Layout::dense(1, 1, rows, depth), Layout::dense(1, 1, rows, columns));
    let weights = Packed::new(&shape, right);
    let plain = Epilogue { bias: None, act: Act::Identity };
    conv_forward(&shape, View::new(left, from), &weights, plain, ViewMut::new(&mut product, to));
    product
}

fn transposed(matrix: &[f32], rows: usize) -> Vec<f32> {
    let columns = matrix.len() / rows;
    (0..matrix.len()).map(|i| matrix[i % rows * columns + i / rows]).collect()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn singular_values_come_near_one_and_their_vectors_stay() {
        for (rows, columns) in [(1, 1), (5, 17), (24, 24), (40, 9)] {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(rows as u64);
            let matrix: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-1.0..1.0)).collect();
            let x = orthogonalised(&matrix, rows);
            // With X = U S V^T and S near 1, X^T M = V S D V^T has no antisymmetric part, and |X|^2 counts the values.
            let rank = rows.min(columns) as f32;
            let energy: f32 = x.iter().map(|v| v * v).sum();
            assert!((0.45 * rank..1.5 * rank).contains(&energy), "{rows}x{columns}: {energy}");
            let (xt, mt) = (transposed(&x, rows), transposed(&matrix, rows));
            let product = times_transposed(&xt, &mt, columns, rows, columns);
            let turned = transposed(&product, columns);
            let gap = product.iter().zip(&turned).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let size = product.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
            assert!(gap < 1e-3 * size, "{rows}x{columns}: {gap} of {size}");
        }
    }

    #[test]
    fn nothing_stays_nothing() {
        assert_eq!(orthogonalised(&[0.0; 6], 2), [0.0; 6]);
    }
}
