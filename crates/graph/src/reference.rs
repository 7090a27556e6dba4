//! A slow, plain executor in f64: the meaning of every operator, against which everything fast is tested.

use crate::{Attention, Graph, Op, Result, Shape};

/// One image's feature map, (C, H, W), row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    pub shape: Shape,
    pub data: Vec<f64>,
}

impl Map {
    /// Value at (channel, row, column).
    pub fn at(&self, c: usize, y: usize, x: usize) -> f64 {
        self.data[(c * self.shape.h + y) * self.shape.w + x]
    }

    /// Channel `c`, row-major.
    pub fn channel(&self, c: usize) -> &[f64] {
        let plane = self.shape.h * self.shape.w;
        &self.data[c * plane..(c + 1) * plane]
    }
}

/// Output of every node for one image (C, H, W), in inference mode (running statistics). The head's map is empty.
///
/// # Errors
/// The graph's shapes do not fit (see [`Graph::shapes`]).
pub fn forward(graph: &Graph, image: &Map) -> Result<Vec<Map>> {
    let shapes = graph.shapes([image.shape.h, image.shape.w])?;
    let mut maps: Vec<Map> = Vec::with_capacity(graph.nodes.len());
    for (node, &shape) in graph.nodes.iter().zip(&shapes) {
        let inputs: Vec<&Map> = node.inputs.iter().map(|&i| &maps[i]).collect();
        let data = match &node.op {
            Op::Input { .. } => image.data.clone(),
            op => run(op, &inputs, shape),
        };
        maps.push(Map { shape, data });
    }
    Ok(maps)
}

/// One operator.
pub(crate) fn run(op: &Op, inputs: &[&Map], out: Shape) -> Vec<f64> {
    match op {
        Op::Conv(conv) => {
            let x = inputs[0];
            let ([kh, kw], [sh, sw], [ph, pw]) = (conv.kernel(), conv.stride, conv.pad);
            let ci = conv.weight.shape[1];
            let per_group = out.c / conv.groups;
            build(out, |o, y, xo| {
                let first = o / per_group * ci;
                let mut sum = conv.bias.as_ref().map_or(0.0, |b| f64::from(b[o]));
                let w = conv.weight.outer(o);
                for i in 0..ci {
                    for ky in 0..kh {
                        let Some(iy) = (y * sh + ky).checked_sub(ph).filter(|&v| v < x.shape.h) else { continue };
                        for kx in 0..kw {
                            let Some(ix) = (xo * sw + kx).checked_sub(pw).filter(|&v| v < x.shape.w) else { continue };
                            sum += f64::from(w[(i * kh + ky) * kw + kx]) * x.at(first + i, iy, ix);
                        }
                    }
                }
                sum
            })
        }
        Op::BatchNorm(bn) => build(out, |c, y, x| {
            let inv = 1.0 / (f64::from(bn.var[c]) + f64::from(bn.eps)).sqrt();
            f64::from(bn.gamma[c]) * (inputs[0].at(c, y, x) - f64::from(bn.mean[c])) * inv + f64::from(bn.beta[c])
        }),
        Op::Act(act) => inputs[0].data.iter().map(|&v| act_f64(*act, v)).collect(),
        Op::Concat => inputs.iter().flat_map(|m| m.data.iter().copied()).collect(),
        Op::Add => (0..inputs[0].data.len()).map(|i| inputs.iter().map(|m| m.data[i]).sum()).collect(),
        Op::Upsample { factor } => build(out, |c, y, x| inputs[0].at(c, y / factor, x / factor)),
        Op::PixelShuffle { factor } => {
            build(out, |c, y, x| inputs[0].at((c * factor + y % factor) * factor + x % factor, y / factor, x / factor))
        }
        Op::MaxPool(p) => build(out, |c, y, x| {
            let mut best = f64::NEG_INFINITY;
            for ky in 0..p.kernel {
                for kx in 0..p.kernel {
                    let (iy, ix) =
                        ((y * p.stride + ky).wrapping_sub(p.pad[0]), (x * p.stride + kx).wrapping_sub(p.pad[0]));
                    if iy < inputs[0].shape.h && ix < inputs[0].shape.w {
                        best = best.max(inputs[0].at(c, iy, ix));
                    }
                }
            }
            best
        }),
        Op::Slice { start, .. } => build(out, |c, y, x| inputs[0].at(start + c, y, x)),
        Op::Attention(a) => attend(a, inputs[0], out),
        Op::Input { .. } | Op::Head(_) => vec![],
    }
}

fn attend(a: &Attention, x: &Map, out: Shape) -> Vec<f64> {
    let positions = out.h * out.w;
    let area = positions / a.areas;
    let mut y = vec![0.0; out.c * positions];
    for head in 0..a.heads {
        let [q, k, v] = a.starts(head);
        for i in 0..positions {
            let score = |j| (0..a.key).map(|c| x.channel(q + c)[i] * x.channel(k + c)[j]).sum::<f64>() * a.scale();
            let own = i / area * area..(i / area + 1) * area;
            let scores: Vec<f64> = own.clone().map(score).collect();
            // Softmax does not change where all scores are lowered alike; so none overflows.
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
            let total: f64 = weights.iter().sum();
            for c in 0..a.value {
                let sum: f64 = weights.iter().zip(&x.channel(v + c)[own.clone()]).map(|(w, v)| w * v).sum();
                y[(head * a.value + c) * positions + i] = sum / total;
            }
        }
    }
    y
}

fn build(shape: Shape, f: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
    let mut data = Vec::with_capacity(shape.c * shape.h * shape.w);
    for c in 0..shape.c {
        for y in 0..shape.h {
            for x in 0..shape.w {
                data.push(f(c, y, x));
            }
        }
    }
    data
}

fn act_f64(act: crate::Act, x: f64) -> f64 {
    use crate::Act;
    match act {
        Act::Identity => x,
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::Leaky => {
            if x > 0.0 {
                x
            } else {
                0.1 * x
            }
        }
        Act::Mish => x * x.exp().ln_1p().tanh(),
        Act::Relu => x.max(0.0),
        Act::Relu6 => x.clamp(0.0, 6.0),
        Act::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conv, Family, Meta, Tensor};

    /// The definition of a transposed convolution: every input value lays its filter, times the value, over the output.
    #[test]
    fn a_convolution_before_a_shuffle_is_a_transposed_one() {
        let (inputs, outputs, factor, h, w) = (3, 2, 2, 2, 3);
        let number = |i: usize| ((i * 37 % 23) as f32 - 11.0) / 8.0;
        let weight = Tensor::new(
            [inputs, outputs, factor, factor],
            (0..inputs * outputs * factor * factor).map(number).collect::<Vec<_>>(),
        );
        let bias = [0.5, -0.25];
        let image = Map {
            shape: Shape { c: inputs, h, w },
            data: (0..inputs * h * w).map(|i| f64::from(number(i + 5))).collect(),
        };
        let mut expected = vec![0.0; outputs * h * factor * w * factor];
        for (at, sum) in expected.iter_mut().enumerate() {
            *sum = f64::from(bias[at / (h * factor * w * factor)]);
        }
        for (i, y, x) in (0..inputs).flat_map(|i| (0..h).flat_map(move |y| (0..w).map(move |x| (i, y, x)))) {
            for (tap, weight) in weight.outer(i).iter().enumerate() {
                let (o, ky, kx) = (tap / (factor * factor), tap / factor % factor, tap % factor);
                let (row, column) = (y * factor + ky, x * factor + kx);
                expected[(o * h * factor + row) * w * factor + column] += f64::from(*weight) * image.at(i, y, x);
            }
        }
        let mut graph = Graph::new(Meta { family: Family::Other, names: vec![], imgsz: [h, w] }, inputs);
        let conv = graph.push("conv", Op::Conv(Conv::unfolding(&weight, Some(&bias), factor)), vec![0]);
        graph.push("shuffle", Op::PixelShuffle { factor }, vec![conv]);
        assert_eq!(forward(&graph, &image).unwrap()[2].data, expected);
    }
}
