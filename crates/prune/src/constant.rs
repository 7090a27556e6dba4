//! What a channel is worth when nothing is known of its input: the constant that takes its place in every reader.
//!
//! BatchNorm makes a channel's distribution known without data: mean beta, standard deviation |gamma|. A channel whose
//! gamma is 0 is the constant beta, whatever it reads. From there on its value is carried forward through activation, pool,
//! upsample, add and depthwise convolution up to the dense convolutions that read it (METHOD.md, 2). Where gamma is not
//! quite 0 the best constant is not `act(beta)` but the mean of `act(beta + |gamma| z)` over a standard normal z, which is
//! the same thing at gamma = 0; the variance that comes with it is what the constant cannot replace.

use std::rc::Rc;

use graph::{Act, BatchNorm, Conv, Graph, MaxPool, Op, Shape};

use crate::Coupling;

/// A channel as a tensor carries it.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    plane: Plane,
    /// Variance around the mean over positions and images; `None` where it depends on data we have not seen (a convolution
    /// before its BatchNorm), 0 where the channel is exactly its plane.
    variance: Option<f64>,
}

/// The mean of a channel at every position.
#[derive(Clone, Debug)]
enum Plane {
    Flat(f64),
    /// Row-major (H, W): zero padding has made the border differ.
    Map(Rc<Vec<f64>>),
}

impl Value {
    /// Spatial mean.
    pub(crate) fn mean(&self) -> f64 {
        match &self.plane {
            Plane::Flat(value) => *value,
            Plane::Map(map) => map.iter().sum::<f64>() / map.len() as f64,
        }
    }

    /// Variance around the mean, where the weights alone tell it.
    pub(crate) fn variance(&self) -> Option<f64> {
        self.variance
    }

    fn is_constant(&self) -> bool {
        self.variance == Some(0.0)
    }
}

/// The values of all channels whose class is `wanted`, for every node: `values[node][channel]`.
///
/// `shapes` are those of `graph` at the image size the constants shall hold for.
pub(crate) fn values(
    graph: &Graph,
    coupling: &Coupling,
    shapes: &[Shape],
    wanted: impl Fn(crate::ClassId) -> bool,
) -> Vec<Vec<Option<Value>>> {
    let mut values: Vec<Vec<Option<Value>>> = Vec::with_capacity(graph.nodes.len());
    for (id, node) in graph.nodes.iter().enumerate() {
        let from = |i: usize, channel: usize| values[node.inputs[i]][channel].as_ref();
        let one = |channel: usize, rule: &dyn Fn(&Value) -> Value| from(0, channel).map(rule);
        let channel = |c: usize| match &node.op {
            // What the weights do not tell: attention mixes what depends on the data.
            Op::Input { .. } | Op::Attention(_) | Op::Head(_) => None,
            Op::Conv(conv) if conv.is_depthwise() => {
                one(c, &|v| depthwise(conv, c, v, shapes[node.inputs[0]], shapes[id]))
            }
            Op::Conv(conv) => {
                let bias = conv.bias.as_ref().map_or(0.0, |b| f64::from(b[c]));
                Some(Value { plane: Plane::Flat(bias), variance: None })
            }
            Op::BatchNorm(bn) => one(c, &|v| norm(bn, c, v)),
            Op::Act(act) => one(c, &|v| activate(*act, v)),
            Op::Upsample { factor } => one(c, &|v| upsample(*factor, v, shapes[id])),
            Op::PixelShuffle { factor } => {
                let phases = (0..factor * factor).map(|phase| from(0, c * factor * factor + phase));
                phases.collect::<Option<Vec<_>>>().map(|phases| shuffle(*factor, &phases, shapes[id]))
            }
            Op::MaxPool(pool) => one(c, &|v| max_pool(*pool, v, shapes[node.inputs[0]], shapes[id])),
            Op::Slice { start, .. } => from(0, start + c).cloned(),
            Op::Add => (0..node.inputs.len()).map(|i| from(i, c).cloned()).reduce(|a, b| Some(add(a?, b?))).flatten(),
            Op::Concat => {
                let (mut input, mut c) = (0, c);
                while c >= shapes[node.inputs[input]].c {
                    c -= shapes[node.inputs[input]].c;
                    input += 1;
                }
                from(input, c).cloned()
            }
        };
        let classes = coupling.channels(id).iter().enumerate();
        let row = classes.map(|(c, &class)| if wanted(class) { channel(c) } else { None }).collect();
        values.push(row);
    }
    values
}

/// Share of the output positions at which each tap (row-major KH, KW) of a convolution lies inside its input map: how much
/// of a constant channel gets through zero padding on average.
pub(crate) fn tap_shares(conv: &Conv, input: Shape, output: Shape) -> Vec<f64> {
    let axis = |k: usize, stride: usize, pad: usize, size: usize, out: usize| -> Vec<f64> {
        let inside =
            |tap: usize| (0..out).filter(|o| (o * stride + tap).checked_sub(pad).is_some_and(|i| i < size)).count();
        (0..k).map(|tap| inside(tap) as f64 / out as f64).collect()
    };
    let [kh, kw] = conv.kernel();
    let rows = axis(kh, conv.stride[0], conv.pad[0], input.h, output.h);
    let columns = axis(kw, conv.stride[1], conv.pad[1], input.w, output.w);
    rows.iter().flat_map(|r| columns.iter().map(move |c| r * c)).collect()
}

/// A constant keeps its value through the affine map. Anything else is, after BatchNorm, what the BatchNorm's own
/// statistics say it is: beta, give or take gamma.
fn norm(bn: &BatchNorm, c: usize, value: &Value) -> Value {
    let (gamma, beta) = (f64::from(bn.gamma[c]), f64::from(bn.beta[c]));
    if gamma == 0.0 || !value.is_constant() {
        return Value { plane: Plane::Flat(beta), variance: Some(gamma * gamma) };
    }
    let scale = gamma / (f64::from(bn.var[c]) + f64::from(bn.eps)).sqrt();
    let mean = f64::from(bn.mean[c]);
    Value { plane: value.plane.each(|x| scale * (x - mean) + beta), variance: Some(0.0) }
}

fn activate(act: Act, value: &Value) -> Value {
    let at = |x: f64| f64::from(act.apply(x as f32));
    match (&value.plane, value.variance) {
        (Plane::Flat(mean), Some(variance)) if variance > 0.0 => {
            let (mean, variance) = normal_moments(*mean, variance.sqrt(), at);
            Value { plane: Plane::Flat(mean), variance: Some(variance) }
        }
        (plane, variance) => Value { plane: plane.each(at), variance },
    }
}

/// Mean and variance of `f(mean + sd z)`, z standard normal, by the trapezoid rule (which converges faster than any power
/// of the step on a bell curve).
fn normal_moments(mean: f64, sd: f64, f: impl Fn(f64) -> f64) -> (f64, f64) {
    let (mut weight, mut first, mut second) = (0.0, 0.0, 0.0);
    for step in -40..=40 {
        let z = f64::from(step) * 0.15;
        let (w, y) = ((-0.5 * z * z).exp(), f(mean + sd * z));
        weight += w;
        first += w * y;
        second += w * y * y;
    }
    let first = first / weight;
    (first, (second / weight - first * first).max(0.0))
}

fn depthwise(conv: &Conv, c: usize, value: &Value, input: Shape, output: Shape) -> Value {
    let taps: Vec<f64> = conv.weight.outer(c).iter().map(|&w| f64::from(w)).collect();
    let bias = conv.bias.as_ref().map_or(0.0, |b| f64::from(b[c]));
    let variance = value.variance.map(|v| v * taps.iter().map(|w| w * w).sum::<f64>());
    let at = |y: usize, x: usize| match &value.plane {
        Plane::Flat(value) => *value,
        Plane::Map(map) => map[y * input.w + x],
    };
    if let (Plane::Flat(value), [0, 0]) = (&value.plane, conv.pad) {
        return Value { plane: Plane::Flat(value * taps.iter().sum::<f64>() + bias), variance };
    }
    let [kh, kw] = conv.kernel();
    let inside = |o: usize, tap: usize, axis: usize, size: usize| {
        (o * conv.stride[axis] + tap).checked_sub(conv.pad[axis]).filter(|&i| i < size)
    };
    let mut map = vec![bias; output.h * output.w];
    for (place, sum) in map.iter_mut().enumerate() {
        for ky in 0..kh {
            let Some(y) = inside(place / output.w, ky, 0, input.h) else { continue };
            for kx in 0..kw {
                let Some(x) = inside(place % output.w, kx, 1, input.w) else { continue };
                *sum += taps[ky * kw + kx] * at(y, x);
            }
        }
    }
    Value { plane: Plane::Map(Rc::new(map)), variance }
}

fn upsample(factor: usize, value: &Value, output: Shape) -> Value {
    let Plane::Map(map) = &value.plane else { return value.clone() };
    let width = output.w / factor;
    let pixel = |place: usize| map[place / output.w / factor * width + place % output.w / factor];
    let map = (0..output.h * output.w).map(pixel).collect();
    Value { plane: Plane::Map(Rc::new(map)), variance: value.variance }
}

/// One channel made of `phases`, row by row.
fn shuffle(factor: usize, phases: &[&Value], output: Shape) -> Value {
    let variances: Option<Vec<f64>> = phases.iter().map(|phase| phase.variance).collect();
    let variance = variances.map(|v| v.iter().sum::<f64>() / v.len() as f64);
    if let Plane::Flat(first) = phases[0].plane
        && phases.iter().all(|phase| matches!(phase.plane, Plane::Flat(value) if value == first))
    {
        return Value { plane: Plane::Flat(first), variance };
    }
    let width = output.w / factor;
    let pixel = |place: usize| {
        let (y, x) = (place / output.w, place % output.w);
        match &phases[y % factor * factor + x % factor].plane {
            Plane::Flat(value) => *value,
            Plane::Map(map) => map[y / factor * width + x / factor],
        }
    };
    let map = (0..output.h * output.w).map(pixel).collect();
    Value { plane: Plane::Map(Rc::new(map)), variance }
}

fn max_pool(pool: MaxPool, value: &Value, input: Shape, output: Shape) -> Value {
    let Plane::Map(map) = &value.plane else { return value.clone() };
    let range = |o: usize, size: usize| {
        let first = o * pool.stride;
        first.saturating_sub(pool.pad[0])..(first + pool.kernel).saturating_sub(pool.pad[0]).min(size)
    };
    let pixel = |place: usize| {
        let rows = range(place / output.w, input.h);
        let best = |y: usize| range(place % output.w, input.w).map(move |x| map[y * input.w + x]);
        rows.flat_map(best).fold(f64::NEG_INFINITY, f64::max)
    };
    Value { plane: Plane::Map(Rc::new((0..output.h * output.w).map(pixel).collect())), variance: value.variance }
}

fn add(a: Value, b: Value) -> Value {
    let plane = match (&a.plane, &b.plane) {
        (Plane::Map(x), Plane::Map(y)) => Plane::Map(Rc::new(x.iter().zip(y.iter()).map(|(x, y)| x + y).collect())),
        (Plane::Flat(x), other) | (other, Plane::Flat(x)) => other.each(|y| x + y),
    };
    Value { plane, variance: a.variance.zip(b.variance).map(|(a, b)| a + b) }
}

impl Plane {
    fn each(&self, f: impl Fn(f64) -> f64) -> Self {
        match self {
            Self::Flat(value) => Self::Flat(f(*value)),
            Self::Map(map) => Self::Map(Rc::new(map.iter().map(|&x| f(x)).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_a_rectified_normal() {
        let (mean, variance) = normal_moments(0.0, 2.0, |x| x.max(0.0));
        let expected = 2.0 / (2.0 * std::f64::consts::PI).sqrt();
        assert!((mean - expected).abs() < 3e-3, "{mean} {expected}");
        assert!((variance - (2.0 - expected * expected)).abs() < 1e-2, "{variance}");
    }

    /// A convolution whose weights and bias are told by a rule, on so many inputs a group.
    fn conv(shape: [usize; 4], groups: usize, stride: [usize; 2], pad: [usize; 2]) -> Op {
        let number = |i: usize| ((i * 37 % 23) as f32 - 9.0) / 8.0;
        let weight = graph::Tensor::new(shape, (0..shape.iter().product()).map(number).collect());
        let bias = Some((0..shape[0]).map(|o| number(o + 5)).collect());
        Op::Conv(Conv { weight, bias, stride, pad, groups })
    }

    /// A BatchNorm of four channels none of whose values is 0 or 1.
    fn norm(gamma: f32) -> Op {
        let mut bn = BatchNorm::identity(4, 0.5, 0.03);
        for c in 0..4 {
            let c32 = c as f32;
            (bn.gamma[c], bn.beta[c], bn.mean[c], bn.var[c]) = (gamma, 0.3 * c32 - 0.5, 0.2 + c32, 0.1 + 0.7 * c32);
        }
        Op::BatchNorm(bn)
    }

    fn graph_of(ops: Vec<Op>) -> Graph {
        let meta = graph::Meta { family: graph::Family::Other, names: vec![], imgsz: [12, 8] };
        let mut graph = Graph::new(meta, 3);
        ops.into_iter().enumerate().for_each(|(id, op)| {
            graph.push(format!("node{}", id + 1), op, vec![id]);
        });
        graph
    }

    fn all_values(graph: &Graph) -> Vec<Vec<Option<Value>>> {
        let shapes = graph.shapes(graph.meta.imgsz).expect("fits");
        values(graph, &Coupling::of(graph).expect("fits"), &shapes, |_| true)
    }

    /// Behind a silent BatchNorm every map is known at every place, whatever comes next.
    #[test]
    fn what_is_carried_forward_is_what_the_network_computes() {
        let graph = graph_of(vec![
            conv([4, 3, 1, 1], 1, [1, 1], [0, 0]),
            norm(0.0),
            Op::Act(Act::Silu),
            conv([4, 1, 5, 3], 4, [2, 1], [2, 1]),
            norm(1.5),
            Op::MaxPool(MaxPool { kernel: 3, stride: 1, pad: [1, 1] }),
            Op::Upsample { factor: 2 },
            conv([4, 1, 1, 3], 4, [1, 2], [0, 1]),
            Op::PixelShuffle { factor: 2 },
        ]);
        let shape = Shape { c: 3, h: 12, w: 8 };
        let image = graph::reference::Map { shape, data: (0..288).map(|i| f64::from(i % 7)).collect() };
        let maps = graph::reference::forward(&graph, &image).expect("runs");
        for (id, (row, map)) in all_values(&graph).iter().zip(&maps).enumerate().skip(2) {
            for (c, value) in row.iter().enumerate() {
                let value = value.as_ref().expect("known");
                assert!(value.is_constant(), "node {id}");
                for (place, expected) in map.channel(c).iter().enumerate() {
                    let found = match &value.plane {
                        Plane::Flat(flat) => *flat,
                        Plane::Map(map) => map[place],
                    };
                    assert!((found - expected).abs() < 1e-5, "node {id}, channel {c}, {place}: {found} for {expected}");
                }
            }
        }
    }

    #[test]
    fn variances_add_up_as_those_of_independent_values() {
        let mut graph = graph_of(vec![
            conv([4, 3, 1, 1], 1, [1, 1], [0, 0]),
            norm(-0.3),
            conv([4, 1, 1, 2], 4, [1, 1], [0, 0]),
            Op::PixelShuffle { factor: 2 },
        ]);
        graph.push("sum", Op::Add, vec![3, 3]);
        let found = all_values(&graph);
        let variance = |node: usize, c: usize| found[node][c].as_ref().and_then(Value::variance).expect("known");
        let Op::Conv(depthwise) = &graph.nodes[3].op else { panic!("a convolution") };
        let heard = |c: usize| depthwise.weight.outer(c).iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} for {b}");
        for c in 0..4 {
            close(variance(2, c), 0.09);
            close(variance(3, c), 0.09 * heard(c));
            close(variance(5, c), 2.0 * 0.09 * heard(c));
        }
        close(variance(4, 0), 0.09 * (0..4).map(heard).sum::<f64>() / 4.0);
    }

    /// Without BatchNorm and without its input a convolution says its bias.
    #[test]
    fn a_convolution_without_its_input_says_its_bias() {
        let graph = graph_of(vec![conv([4, 3, 3, 3], 1, [1, 1], [1, 1]), Op::Act(Act::Silu)]);
        let Op::Conv(first) = &graph.nodes[1].op else { panic!("a convolution") };
        for (value, &bias) in all_values(&graph)[2].iter().zip(first.bias.as_ref().expect("has one")) {
            let value = value.as_ref().expect("known");
            assert_eq!((value.mean(), value.variance()), (f64::from(Act::Silu.apply(bias)), None));
        }
    }

    #[test]
    fn padding_lets_a_share_of_each_tap_through() {
        let conv =
            Conv { weight: graph::Tensor::zeros([1, 1, 3, 3]), bias: None, stride: [2, 1], pad: [1, 1], groups: 1 };
        let shares = tap_shares(&conv, Shape { c: 1, h: 4, w: 2 }, Shape { c: 1, h: 2, w: 2 });
        // Rows 0, 2 read -1..=1 and 1..=3; columns read -1..=1 and 0..=2 of two.
        assert_eq!(shares, [0.25, 0.5, 0.25, 0.5, 1.0, 0.5, 0.5, 1.0, 0.5]);
    }
}
