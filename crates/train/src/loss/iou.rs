//! IoU of two boxes, plain and complete (Zheng et al., "Distance-IoU Loss", AAAI 2020), with its gradient.

use std::f64::consts::PI;

/// Keeps divisions finite; the value of the YOLO trainers.
const EPS: f64 = 1e-7;

/// A box by its corners: x1, y1, x2, y2.
pub type Corners = [f64; 4];

/// CIoU of a predicted box with a fixed one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ciou {
    /// `iou - distance² / diagonal² - alpha v`, at most 1.
    pub value: f64,
    /// Derivative by the predicted corners. `alpha` counts as a constant, as in the paper.
    pub grad: Corners,
    #[cfg(test)]
    alpha: f64,
}

/// IoU of a predicted box with a fixed one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Iou {
    pub value: f64,
    /// Derivative by the predicted corners; 0 where the boxes do not meet.
    pub grad: Corners,
}

/// IoU of `pred` with `truth`, both in one unit; 0 of two empty boxes.
pub fn iou(pred: Corners, truth: Corners) -> Iou {
    let size = |b: Corners| [b[2] - b[0], b[3] - b[1]];
    let ([w, h], [tw, th]) = (size(pred), size(truth));
    let overlap = [0, 1].map(|k| (pred[k + 2].min(truth[k + 2]) - pred[k].max(truth[k])).max(0.0));
    let inter = overlap[0] * overlap[1];
    if inter <= 0.0 {
        return Iou { value: 0.0, grad: [0.0; 4] };
    }
    let union = w * h + tw * th - inter;
    let value = inter / union;
    let mut grad = [0.0; 4];
    for k in 0..2 {
        for (end, sign) in [(k, -1.0), (k + 2, 1.0)] {
            let inner = if sign > 0.0 { pred[end] < truth[end] } else { pred[end] > truth[end] };
            let d_inter = if inner { sign * overlap[1 - k] } else { 0.0 };
            let d_union = sign * [h, w][k] - d_inter;
            grad[end] = (d_inter - value * d_union) / union;
        }
    }
    Iou { value, grad }
}

/// Corners of a box given as centre x, centre y, width, height.
pub fn corners([x, y, w, h]: [f64; 4]) -> Corners {
    [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0]
}

/// A gradient by corners as one by centre x, centre y, width, height.
pub fn by_centre([x1, y1, x2, y2]: Corners) -> [f64; 4] {
    [x1 + x2, y1 + y2, (x2 - x1) / 2.0, (y2 - y1) / 2.0]
}

/// CIoU of `pred` with `truth`, both in one unit.
pub fn ciou(pred: Corners, truth: Corners) -> Ciou {
    let size = |b: Corners| [b[2] - b[0], b[3] - b[1]];
    let ([w, h], [tw, th]) = (size(pred), size(truth));

    // Overlap and enclosing extent along each axis; their slopes by the two predicted ends are 0 or ±1.
    let overlap = [0, 1].map(|k| (pred[k + 2].min(truth[k + 2]) - pred[k].max(truth[k])).max(0.0));
    let hull = [0, 1].map(|k| pred[k + 2].max(truth[k + 2]) - pred[k].min(truth[k]));
    let inter = overlap[0] * overlap[1];
    let union = w * h + tw * th - inter + EPS;
    let iou = inter / union;
    let diagonal = hull[0] * hull[0] + hull[1] * hull[1] + EPS;
    let shift = [0, 1].map(|k| (truth[k] + truth[k + 2] - pred[k] - pred[k + 2]) / 2.0);
    let distance = shift[0] * shift[0] + shift[1] * shift[1];
    // A box told by its distances may be turned inside out: its sides are negative then, and so is their ratio.
    let angle = |w: f64, h: f64| if h == 0.0 { w.atan2(h) } else { (w / h).atan() };
    let tilt = angle(tw, th) - angle(w, h);
    let v = 4.0 / (PI * PI) * tilt * tilt;
    let alpha = v / (v - iou + 1.0 + EPS);

    let square = (w * w + h * h).max(EPS);
    let dv = [-8.0 / (PI * PI) * tilt * h / square, 8.0 / (PI * PI) * tilt * w / square];
    let mut grad = [0.0; 4];
    for k in 0..2 {
        for (end, sign) in [(k, -1.0), (k + 2, 1.0)] {
            let inner = if sign > 0.0 { pred[end] < truth[end] } else { pred[end] > truth[end] };
            let d_overlap = if inner && overlap[k] > 0.0 { sign } else { 0.0 };
            let d_hull = if inner { 0.0 } else { sign };
            let d_inter = d_overlap * overlap[1 - k];
            let d_union = sign * [h, w][k] - d_inter;
            let d_iou = (d_inter - iou * d_union) / union;
            let d_distance = -shift[k];
            let d_diagonal = 2.0 * hull[k] * d_hull;
            let d_apart = (d_distance - distance / diagonal * d_diagonal) / diagonal;
            grad[end] = d_iou - d_apart - alpha * sign * dv[k];
        }
    }
    Ciou {
        value: iou - distance / diagonal - alpha * v,
        grad,
        #[cfg(test)]
        alpha,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published formula, `alpha` given from outside: what the gradient is the derivative of.
    fn plain(p: Corners, t: Corners, alpha: f64) -> f64 {
        let inter = (p[2].min(t[2]) - p[0].max(t[0])).max(0.0) * (p[3].min(t[3]) - p[1].max(t[1])).max(0.0);
        let union = (p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - inter + EPS;
        let c2 = (p[2].max(t[2]) - p[0].min(t[0])).powi(2) + (p[3].max(t[3]) - p[1].min(t[1])).powi(2) + EPS;
        let rho2 = ((t[0] + t[2] - p[0] - p[2]).powi(2) + (t[1] + t[3] - p[1] - p[3]).powi(2)) / 4.0;
        let angle = |b: Corners| ((b[2] - b[0]) / (b[3] - b[1])).atan();
        inter / union - rho2 / c2 - alpha * 4.0 / (PI * PI) * (angle(t) - angle(p)).powi(2)
    }

    #[test]
    fn gradient_is_the_slope_of_the_published_formula() {
        let truth = corners([3.0, 4.0, 2.0, 5.0]);
        let preds = [
            ("overlapping", [3.4, 4.5, 3.0, 2.0]),
            ("inside", [3.1, 4.2, 0.5, 0.7]),
            ("around", [2.9, 4.1, 6.0, 8.0]),
            ("apart", [9.0, 12.0, 1.0, 2.0]),
            ("apart along x only", [9.0, 4.3, 1.0, 2.0]),
            ("inside out", [3.4, 4.5, -3.0, -2.0]),
        ];
        for (name, pred) in preds {
            let pred = corners(pred);
            let at = ciou(pred, truth);
            assert!((at.value - plain(pred, truth, at.alpha)).abs() < 1e-12, "{name}: value");
            for k in 0..4 {
                let moved = |d: f64| {
                    let mut p = pred;
                    p[k] += d;
                    plain(p, truth, at.alpha)
                };
                let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!((at.grad[k] - slope).abs() < 1e-7, "{name}: corner {k} is {} for {slope}", at.grad[k]);
            }
        }
    }

    #[test]
    fn gradient_of_the_plain_iou_is_its_slope() {
        let truth = corners([3.0, 4.0, 2.0, 5.0]);
        let cases = [
            ("overlapping", [4.0, 4.5, 2.0, 5.0], 4.5 / 15.5),
            ("inside", [3.1, 4.2, 0.5, 0.8], 0.04),
            ("around", [2.9, 4.1, 4.0, 10.0], 0.25),
            ("apart", [9.0, 12.0, 1.0, 2.0], 0.0),
            ("apart along x only", [9.0, 4.3, 1.0, 2.0], 0.0),
        ];
        for (name, pred, want) in cases {
            let pred = corners(pred);
            let at = iou(pred, truth);
            assert!((at.value - want).abs() < 1e-12, "{name}: {} for {want}", at.value);
            for k in 0..4 {
                let moved = |d: f64| {
                    let mut p = pred;
                    p[k] += d;
                    iou(p, truth).value
                };
                let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!((at.grad[k] - slope).abs() < 1e-8, "{name}: corner {k} is {} for {slope}", at.grad[k]);
            }
        }
    }

    #[test]
    fn equal_boxes_agree_fully() {
        let b = corners([1.0, 2.0, 3.0, 4.0]);
        let same = ciou(b, b);
        assert!((same.value - 1.0).abs() < 1e-6);
    }

    #[test]
    fn an_empty_prediction_stays_finite() {
        let c = ciou([1.0, 1.0, 1.0, 1.0], corners([2.0, 2.0, 1.0, 1.0]));
        assert!(c.value.is_finite() && c.grad.iter().all(|g| g.is_finite()));
    }

    #[test]
    fn centre_gradient_follows_the_chain_rule() {
        let (b, truth) = ([3.4, 4.5, 3.0, 2.0], corners([3.0, 4.0, 2.0, 5.0]));
        let at = ciou(corners(b), truth);
        let grad = by_centre(at.grad);
        for k in 0..4 {
            let moved = |d: f64| {
                let mut m = b;
                m[k] += d;
                plain(corners(m), truth, at.alpha)
            };
            assert!((grad[k] - (moved(1e-6) - moved(-1e-6)) / 2e-6).abs() < 1e-7, "coordinate {k}");
        }
    }
}
