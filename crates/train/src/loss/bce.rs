//! Sigmoid and binary cross-entropy on logits, without overflow.

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Binary cross-entropy of the probability `sigmoid(x)` against `target` in 0..=1, and its derivative by `x`.
pub fn bce(x: f32, target: f32) -> (f32, f32) {
    // One exponential serves both: e = e^-|x| <= 1.
    let e = (-x.abs()).exp();
    let p = if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
    (x.max(0.0) - x * target + e.ln_1p(), p - target)
}

/// Entropy of a coin that shows heads with probability `p`: the least [`bce`] can be for that target.
pub fn entropy(p: f32) -> f32 {
    let term = |q: f32| if q > 0.0 { -q * q.ln() } else { 0.0 };
    term(p) + term(1.0 - p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_definition() {
        for (x, t) in [(0.0f32, 0.3f32), (2.5, 1.0), (-4.0, 0.0), (7.0, 0.1)] {
            let p = f64::from(sigmoid(x));
            let want = -(f64::from(t) * p.ln() + (1.0 - f64::from(t)) * (1.0 - p).ln());
            let (value, grad) = bce(x, t);
            assert!((f64::from(value) - want).abs() < 1e-4 * want.max(1.0), "x {x} t {t}: {value} for {want}");
            assert!((f64::from(grad) - (p - f64::from(t))).abs() < 1e-6);
        }
    }

    #[test]
    fn does_not_overflow() {
        assert_eq!(bce(200.0, 0.0), (200.0, 1.0));
        assert_eq!(bce(-200.0, 1.0), (200.0, -1.0));
    }

    #[test]
    fn entropy_is_the_least_cross_entropy() {
        for p in [0.0f32, 0.2, 0.5, 1.0] {
            let x = (p.clamp(1e-6, 1.0 - 1e-6) / (1.0 - p.clamp(1e-6, 1.0 - 1e-6))).ln();
            assert!((bce(x, p).0 - entropy(p)).abs() < 1e-4, "p {p}");
        }
    }
}
