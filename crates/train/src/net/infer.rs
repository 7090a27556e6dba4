//! The inference executor: BatchNorm folded into the convolution, activation in its epilogue, maps dropped when read.

use graph::{Conv, Graph, Node, NodeId, Op, Result, Tensor};
use kernels::{BnAct, Epilogue, Layout, Packed, View, ViewMut};
use rayon::prelude::*;

use super::HeadMap;
use super::buffer::{Buffer, Pool};
use super::plan::{Kind, Mode, Place, Plan, Step};

/// A detector ready to run on batches of any size.
pub struct Infer {
    graph: Graph,
    imgsz: [usize; 2],
    plan: Plan,
    n: usize,
    pool: Pool,
    /// Folded weights by convolution node.
    folded: Vec<Option<Folded>>,
}

struct Folded {
    packed: Packed,
    bias: Vec<f32>,
}

impl Infer {
    /// Folds and packs the weights of `graph` and plans it for images of `imgsz` = (H, W) pixels.
    ///
    /// # Errors
    /// The graph's shapes do not fit that size.
    pub fn new(graph: &Graph, imgsz: [usize; 2]) -> Result<Self> {
        let plan = Plan::new(graph, Mode::Infer, 1, imgsz)?;
        let mut folded: Vec<Option<Folded>> = graph.nodes.iter().map(|_| None).collect();
        for step in &plan.steps {
            if let Kind::Conv { conv, bn, shape, .. } = &step.kind {
                let (weight, bias) = fold(graph, *conv, *bn);
                folded[*conv] = Some(Folded { packed: Packed::new(shape, &weight), bias });
            }
        }
        Ok(Self { graph: graph.clone(), imgsz, plan, n: 1, pool: Pool::default(), folded })
    }

    /// Runs `n` images, (N, H, W, 3) as bytes 0..255, and returns the maps that enter the head.
    ///
    /// # Errors
    /// Never for a size [`Infer::new`] accepted.
    pub fn run(&mut self, images: &[u8], n: usize) -> Result<Vec<HeadMap>> {
        self.run_observed(images, n, |_, _| {})
    }

    /// [`Infer::run`], showing `observe` the input of every convolution: the node that makes it and its map.
    ///
    /// # Errors
    /// Never for a size [`Infer::new`] accepted.
    pub fn run_observed(
        &mut self,
        images: &[u8],
        n: usize,
        mut observe: impl FnMut(NodeId, View),
    ) -> Result<Vec<HeadMap>> {
        if n != self.n {
            self.plan = Plan::new(&self.graph, Mode::Infer, n, self.imgsz)?;
            self.n = n;
        }
        let last_use = last_uses(&self.plan);
        let mut maps: Vec<Buffer> = self.plan.buffers.iter().map(|_| Buffer::default()).collect();
        let input = self.plan.place(0).buffer;
        maps[input] = self.pool.take(self.plan.buffers[input]);
        load_images(images, maps[input].as_mut_slice());
        let mut seen = vec![false; self.graph.nodes.len()];

        for (at, step) in self.plan.steps.iter().enumerate() {
            let mut out = std::mem::take(&mut maps[step.output.buffer]);
            if out.as_slice().is_empty() {
                out = self.pool.take(self.plan.buffers[step.output.buffer]);
            }
            let y = ViewMut::new(out.as_mut_slice(), step.output.layout);
            let x = |k: usize| {
                let place = self.plan.place(step.inputs[k]);
                View::new(maps[place.buffer].as_slice(), place.layout)
            };
            match &step.kind {
                Kind::Conv { conv, shape, act, .. } => {
                    if !std::mem::replace(&mut seen[step.inputs[0]], true) {
                        observe(step.inputs[0], x(0));
                    }
                    let Some(f) = &self.folded[*conv] else { unreachable!("folded when planned") };
                    kernels::conv_forward(shape, x(0), &f.packed, Epilogue { bias: Some(&f.bias), act: *act }, y);
                }
                Kind::BatchNorm { bn, act } => {
                    let Op::BatchNorm(b) = &self.graph.nodes[*bn].op else { unreachable!("planned as BatchNorm") };
                    let inv_std: Vec<f32> = b.var.iter().map(|v| 1.0 / (v + b.eps).sqrt()).collect();
                    let affine = BnAct { mean: &b.mean, inv_std: &inv_std, gamma: &b.gamma, beta: &b.beta, act: *act };
                    kernels::bn_act_forward(x(0), &affine, y);
                }
                other => run_plain(other, step.inputs.len(), &x, y),
            }
            maps[step.output.buffer] = out;
            for b in (0..maps.len()).filter(|&b| last_use[b] == at) {
                self.pool.give(std::mem::take(&mut maps[b]));
            }
        }
        let heads = self.plan.outputs.iter().map(|&id| head_map(&maps, self.plan.place(id))).collect();
        for buffer in maps {
            self.pool.give(buffer);
        }
        Ok(heads)
    }
}

/// `graph` with one more reader of every node that is `wanted`: [`Infer::run_observed`] shows the maps that convolutions read, and no
/// others. And for each node of the new graph that is wanted, which node of the old one it is.
pub(crate) fn tapped(
    graph: &Graph,
    imgsz: [usize; 2],
    wanted: impl Fn(NodeId) -> bool,
) -> Result<(Graph, Vec<Option<NodeId>>)> {
    let shapes = graph.shapes(imgsz)?;
    let mut out = Graph { nodes: vec![], meta: graph.meta.clone() };
    let (mut place, mut origin) = (Vec::with_capacity(graph.nodes.len()), vec![]);
    for (id, node) in graph.nodes.iter().enumerate() {
        let inputs = node.inputs.iter().map(|&i| place[i]).collect();
        out.nodes.push(Node { inputs, ..node.clone() });
        let at = out.nodes.len() - 1;
        place.push(at);
        origin.push(wanted(id).then_some(id));
        if wanted(id) {
            let weight = Tensor::zeros([1, shapes[id].c, 1, 1]);
            let tap = Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: 1 };
            out.push(format!("{}.tap", node.name), Op::Conv(tap), vec![at]);
            origin.push(None);
        }
    }
    Ok((out, origin))
}

/// The steps both executors run the same way: all without weights.
pub(crate) fn run_plain<'a>(kind: &Kind, inputs: usize, x: &dyn Fn(usize) -> View<'a>, y: ViewMut) {
    match kind {
        Kind::Act(act) => kernels::act_forward(*act, x(0), y),
        Kind::Pool(pool) => kernels::max_pool_forward(*pool, x(0), y),
        Kind::Upsample(factor) => kernels::upsample_forward(*factor, x(0), y),
        Kind::Shuffle(factor) => kernels::shuffle_forward(*factor, x(0), y),
        Kind::Attention(attention) => kernels::attention_forward(attention, x(0), y),
        Kind::Copy => kernels::copy(x(0), y, false),
        Kind::Add if inputs == 1 => kernels::copy(x(0), y, false),
        Kind::Add => {
            let ViewMut { data, layout } = y;
            kernels::add(x(0), x(1), ViewMut::new(data, layout));
            for k in 2..inputs {
                kernels::copy(x(k), ViewMut::new(data, layout), true);
            }
        }
        Kind::Conv { .. } | Kind::BatchNorm { .. } => unreachable!("has weights"),
    }
}

/// Bytes 0..255 to floats 0..1.
pub(crate) fn load_images(images: &[u8], to: &mut [f32]) {
    /// Bytes a task turns: a division each, enough to be worth a thread's while.
    const BYTES: usize = 1 << 15;
    to.par_chunks_mut(BYTES).zip(images.par_chunks(BYTES)).for_each(|(to, images)| {
        to.iter_mut().zip(images).for_each(|(f, &b)| *f = f32::from(b) / 255.0);
    });
}

/// Copies a map out of the executor.
pub(super) fn head_map(maps: &[Buffer], place: Place) -> HeadMap {
    let Layout { n, h, w, c, .. } = place.layout;
    let map = View::new(maps[place.buffer].as_slice(), place.layout);
    let mut data = Vec::with_capacity(place.layout.pixels() * c);
    (0..place.layout.pixels()).for_each(|p| data.extend_from_slice(map.pixel(p)));
    HeadMap { n, h, w, c, data }
}

/// The last step that reads or writes each buffer; never for what enters the head.
fn last_uses(plan: &Plan) -> Vec<usize> {
    let mut last = vec![0; plan.buffers.len()];
    for (at, Step { inputs, output, .. }) in plan.steps.iter().enumerate() {
        last[output.buffer] = at;
        for &i in inputs {
            last[plan.place(i).buffer] = at;
        }
    }
    for &id in &plan.outputs {
        last[plan.place(id).buffer] = usize::MAX;
    }
    last
}

/// Weight and bias of `conv` with the BatchNorm after it multiplied in.
fn fold(graph: &Graph, conv: NodeId, bn: Option<NodeId>) -> (Vec<f32>, Vec<f32>) {
    let Op::Conv(conv) = &graph.nodes[conv].op else { unreachable!("planned as a convolution") };
    match bn.map(|id| &graph.nodes[id].op) {
        Some(Op::BatchNorm(bn)) => conv.folded(bn),
        _ => (conv.weight.data.clone(), conv.bias.clone().unwrap_or_else(|| vec![0.0; conv.out_channels()])),
    }
}
