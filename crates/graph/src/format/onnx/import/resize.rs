//! `Resize` and `Upsample`: nearest neighbours by a whole factor, however the exporter words it.

use super::body::{Body, Value};
use super::problem::Problem;
use crate::format::onnx::proto::NodeProto;
use crate::graph::MAX_FACTOR;
use crate::{NodeId, Op};

impl Body<'_> {
    /// The upsampled map.
    pub(super) fn upsample(
        &mut self,
        node: &NodeProto,
        x: NodeId,
        inputs: &[Option<Value>],
    ) -> Result<NodeId, Problem> {
        let mode = node.word("mode").unwrap_or("nearest");
        if mode != "nearest" {
            return Err(Problem::new(format!("resizes as `{mode}` does")).hint(
                "only nearest neighbours have a counterpart here; export the detector with nn.Upsample(mode='nearest')",
            ));
        }
        let factor = self.factor(node, x, inputs)?;
        // Upsample and the first Resize know one rule only.
        let old = node.op_type == "Upsample" || self.source.opset < 11;
        let place =
            node.word("coordinate_transformation_mode").unwrap_or(if old { "asymmetric" } else { "half_pixel" });
        let round = node.word("nearest_mode").unwrap_or(if old { "floor" } else { "round_prefer_floor" });
        let repeats = (0..4 * factor).all(|i| source(place, round, i, factor) == Some((i / factor) as f64));
        if !repeats {
            return Err(Problem::new(format!("takes the nearest pixel by `{place}` and `{round}`"))
                .hint("only rules that repeat every pixel have a counterpart here, such as `asymmetric` and `floor`"));
        }
        self.push(node, "", Op::Upsample { factor }, vec![x])
    }

    /// By how much both sides grow: from the scales, or from the sizes after it.
    fn factor(&mut self, node: &NodeProto, x: NodeId, inputs: &[Option<Value>]) -> Result<usize, Problem> {
        let map = self.shapes[x];
        let resize = node.op_type == "Resize" && self.source.opset >= 11;
        let sizes = if resize { self.constant(inputs, 3)? } else { None };
        let scales: Vec<f64> = if let Some(sizes) = sizes {
            let now = [self.batch, map.c, map.h, map.w];
            sizes.as_ints()?.iter().zip(now).map(|(&s, n)| s as f64 / n as f64).collect()
        } else if let Some(scales) = self.constant(inputs, if resize { 2 } else { 1 })? {
            scales.as_floats()?.iter().map(|&s| f64::from(s)).collect()
        } else {
            node.any("scales").map(|a| a.floats.iter().map(|&s| f64::from(s)).collect()).unwrap_or_default()
        };
        match scales[..] {
            [1.0, 1.0, h, w] if h == w && h.fract() == 0.0 && (1.0..=MAX_FACTOR as f64).contains(&h) => Ok(h as usize),
            _ => Err(Problem::new(format!("resizes by {scales:?}")).hint(format!(
                "only a whole factor up to {MAX_FACTOR}, the same on both sides, has a counterpart here"
            ))),
        }
    }
}

/// The pixel that pixel `i` of the larger map is taken from, as ONNX defines it; inside a map larger than it all.
fn source(place: &str, round: &str, i: usize, factor: usize) -> Option<f64> {
    let (i, factor) = (i as f64, factor as f64);
    let x = match place {
        "asymmetric" => i / factor,
        "half_pixel" | "pytorch_half_pixel" => (i + 0.5) / factor - 0.5,
        "tf_half_pixel_for_nn" => (i + 0.5) / factor,
        _ => return None,
    };
    let x = match round {
        "floor" => x.floor(),
        "ceil" => x.ceil(),
        "round_prefer_floor" => (x - 0.5).ceil(),
        "round_prefer_ceil" => (x + 0.5).floor(),
        _ => return None,
    };
    Some(x.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::source;

    #[test]
    fn rules_that_repeat_pixels_are_told_from_those_that_shift() {
        let repeats = |place, round, factor| {
            (0..4 * factor).all(|i| source(place, round, i, factor) == Some((i / factor) as f64))
        };
        assert!(repeats("asymmetric", "floor", 4) && repeats("half_pixel", "round_prefer_floor", 3));
        assert!(repeats("asymmetric", "round_prefer_floor", 2) && !repeats("asymmetric", "round_prefer_floor", 4));
        assert!(!repeats("half_pixel", "floor", 2) && !repeats("align_corners", "floor", 2));
    }
}
