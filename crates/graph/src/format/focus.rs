//! YOLO's `Focus`: the image's four phases as channels, then a convolution; a graph has one wide convolution instead.

use crate::Tensor;

/// The weight (O, C, 2 KH, 2 KW) that sees an image, with stride 2, as `weight` (O, 4 C, KH, KW) sees its four phases,
/// joined in the order of their (row, column) offsets.
pub(super) fn interleave(weight: &Tensor, order: [[usize; 2]; 4]) -> Tensor {
    let [o, four, kh, kw] = weight.shape[..] else { unreachable!("a convolution's weight has four axes") };
    let channels = four / 4;
    let mut wide = Tensor::zeros([o, channels, 2 * kh, 2 * kw]);
    for (at, &w) in weight.data.iter().enumerate() {
        let (kx, ky, i, o) = (at % kw, at / kw % kh, at / (kw * kh) % four, at / (kw * kh * four));
        let (phase, c) = (i / channels, i % channels);
        let [row, column] = order[phase];
        let (y, x) = (2 * ky + row, 2 * kx + column);
        wide.data[((o * channels + c) * 2 * kh + y) * 2 * kw + x] = w;
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::interleave;
    use crate::reference::{Map, forward};
    use crate::{Conv, Family, Graph, Meta, Op, Shape, Tensor};

    fn convolve(weight: Tensor, step: usize, image: &Map) -> Map {
        let pad = [step; 2];
        let conv = Conv { weight, bias: None, stride: [step; 2], pad, groups: 1 };
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [8, 6] };
        let mut graph = Graph::new(meta, image.shape.c);
        graph.push("conv", Op::Conv(conv), vec![0]);
        forward(&graph, image).unwrap().pop().unwrap()
    }

    #[test]
    fn focus_is_a_wide_convolution() {
        let value = |i: usize| (i as f32 * 0.61).sin();
        let weight = Tensor::new([5, 8, 3, 3], (0..5 * 8 * 9).map(value).collect());
        let shape = Shape { c: 2, h: 8, w: 6 };
        let image = Map { shape, data: (0..2 * 8 * 6).map(|i| f64::from(value(7 * i))).collect() };
        let mut phases = Map { shape: Shape { c: 8, h: 4, w: 3 }, data: vec![] };
        let order = [[0, 0], [1, 0], [0, 1], [1, 1]];
        for [dy, dx] in order {
            for c in 0..2 {
                for y in 0..4 {
                    phases.data.extend((0..3).map(|x| image.at(c, 2 * y + dy, 2 * x + dx)));
                }
            }
        }
        let (wide, narrow) = (convolve(interleave(&weight, order), 2, &image), convolve(weight, 1, &phases));
        assert_eq!(wide.shape, narrow.shape);
        for (a, b) in wide.data.iter().zip(&narrow.data) {
            assert!((a - b).abs() < 1e-12, "{a} against {b}");
        }
    }
}
