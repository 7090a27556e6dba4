//! The training executor: a forward pass that keeps what the backward pass needs, and the backward pass.

use graph::{Graph, NodeId, Op, Result};
use kernels::{BatchStats, BnAct, ConvShape, Epilogue, Layout, Packed, View, ViewMut};

use super::HeadMap;
use super::buffer::{Buffer, Pool};
use super::clock::{Clock, Spent, Work};
use super::forget::Forget;
use super::plan::{Kind, Mode, Place, Plan, Step};
use crate::Gradients;

/// What a training-mode forward pass does to the running statistics of every BatchNorm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BnUpdate {
    /// `running = (1 - momentum) * running + momentum * batch`, with each BatchNorm's own momentum.
    Momentum,
    /// The plain average over batches 0, 1, 2, ...; the number is this batch's. Re-estimates the statistics.
    Average(usize),
}

/// Bytes of maps that a [`TrainNet`] of `graph` keeps of an image of `imgsz` = (H, W) pixels for the backward pass; while that runs,
/// gradients of those maps come on top.
///
/// # Errors
/// The graph's shapes do not fit that size.
pub fn bytes_an_image(graph: &Graph, imgsz: [usize; 2]) -> Result<usize> {
    let plan = Plan::new(graph, Mode::Train, 1, imgsz)?;
    let forget = Forget::new(&plan);
    let kept = |&b: &usize| forget.makers(b).is_empty();
    let floats: usize = (0..plan.buffers.len()).filter(kept).map(|b| plan.buffers[b]).sum();
    Ok(floats * size_of::<f32>())
}

/// A graph that trains: BatchNorm uses the batch's statistics, maps are kept until [`TrainNet::backward`] has read them.
///
/// The weights are those of [`TrainNet::graph`]; an optimiser changes them there between two steps.
pub struct TrainNet {
    pub graph: Graph,
    /// Whether the branches of an end-to-end head that predict train what they read, too. Where there are others to do that
    /// they do not: one point an object would pull on everything (Wang et al., "YOLOv10", 2024).
    pub joint: bool,
    imgsz: [usize; 2],
    plan: Plan,
    forget: Forget,
    n: usize,
    pool: Pool,
    maps: Vec<Buffer>,
    /// Batch mean and 1 / sqrt(var + eps) of every BatchNorm step, for the backward pass.
    batch_norm: Vec<Option<(Vec<f32>, Vec<f32>)>>,
    clock: Clock,
}

impl TrainNet {
    /// Plans `graph` for images of `imgsz` = (H, W) pixels.
    ///
    /// # Errors
    /// The graph's shapes do not fit that size.
    pub fn new(graph: Graph, imgsz: [usize; 2]) -> Result<Self> {
        let plan = Plan::new(&graph, Mode::Train, 1, imgsz)?;
        Ok(Self {
            graph,
            joint: false,
            imgsz,
            forget: Forget::new(&plan),
            plan,
            n: 1,
            pool: Pool::default(),
            maps: vec![],
            batch_norm: vec![],
            clock: Clock::default(),
        })
    }

    /// Where the time went since the last call.
    pub fn spent(&mut self) -> Vec<Spent> {
        self.clock.take()
    }

    /// Runs `n` images, (N, H, W, 3) as bytes 0..255, and returns the maps that enter the head.
    ///
    /// # Errors
    /// The graph no longer fits its shapes (it was changed from outside).
    pub fn forward(&mut self, images: &[u8], n: usize, update: BnUpdate) -> Result<Vec<HeadMap>> {
        if n != self.n {
            self.plan = Plan::new(&self.graph, Mode::Train, n, self.imgsz)?;
            self.forget = Forget::new(&self.plan);
            self.n = n;
        }
        for buffer in std::mem::take(&mut self.maps) {
            self.pool.give(buffer);
        }
        self.maps = self.plan.buffers.iter().map(|_| Buffer::default()).collect();
        self.batch_norm = vec![None; self.graph.nodes.len()];
        let input = self.plan.place(0).buffer;
        self.maps[input] = self.pool.take(self.plan.buffers[input]);
        super::infer::load_images(images, self.maps[input].as_mut_slice());

        for (at, step) in self.plan.steps.iter().enumerate() {
            let mut out = std::mem::take(&mut self.maps[step.output.buffer]);
            if out.as_slice().is_empty() {
                out = self.pool.take(self.plan.buffers[step.output.buffer]);
            }
            let y = ViewMut::new(out.as_mut_slice(), step.output.layout);
            let x = |k: usize| view(&self.maps, self.plan.place(step.inputs[k]));
            match &step.kind {
                Kind::Conv { conv, shape, act, .. } => {
                    let Op::Conv(c) = &self.graph.nodes[*conv].op else { unreachable!("planned as a convolution") };
                    self.clock.time(Work::ConvForward, macs(shape, step.output.layout), || {
                        let packed = Packed::new(shape, &c.weight.data);
                        kernels::conv_forward(shape, x(0), &packed, Epilogue { bias: c.bias.as_deref(), act: *act }, y);
                    });
                }
                Kind::BatchNorm { bn, act } => {
                    let stats = self.clock.time(Work::Statistics, 0, || kernels::batch_stats(x(0)));
                    let Op::BatchNorm(b) = &mut self.graph.nodes[*bn].op else { unreachable!("planned as BatchNorm") };
                    let inv_std: Vec<f32> = stats.var.iter().map(|v| 1.0 / (v + b.eps).sqrt()).collect();
                    update_running(b, &stats, step.output.layout.pixels(), update);
                    let affine =
                        BnAct { mean: &stats.mean, inv_std: &inv_std, gamma: &b.gamma, beta: &b.beta, act: *act };
                    self.clock.time(Work::NormForward, 0, || kernels::bn_act_forward(x(0), &affine, y));
                    self.batch_norm[*bn] = Some((stats.mean, inv_std));
                }
                other => {
                    self.clock.time(Work::Glue, 0, || super::infer::run_plain(other, step.inputs.len(), &x, y));
                }
            }
            self.maps[step.output.buffer] = out;
            for &buffer in self.forget.after(at) {
                self.pool.give(std::mem::take(&mut self.maps[buffer]));
            }
        }
        Ok(self.plan.outputs.iter().map(|&id| super::infer::head_map(&self.maps, self.plan.place(id))).collect())
    }

    /// Adds to `gradients` what the last forward pass's loss gives, from `d loss / d map` of each head map (dense
    /// (N, H, W, C), in the order [`TrainNet::forward`] returned them). A forward pass can be run backward once.
    pub fn backward(&mut self, map_gradients: &[Vec<f32>], gradients: &mut Gradients) {
        self.run_back(map_gradients, Some(gradients), |_, _| {});
    }

    /// [`TrainNet::backward`] without the gradients of weights: shows `observe` that of the loss at the output of every convolution.
    pub fn observe_backward(&mut self, map_gradients: &[Vec<f32>], observe: impl FnMut(NodeId, View)) {
        self.run_back(map_gradients, None, observe);
    }

    fn run_back(
        &mut self,
        map_gradients: &[Vec<f32>],
        mut gradients: Option<&mut Gradients>,
        mut observe: impl FnMut(NodeId, View),
    ) {
        let mut flow = Flow::new(&self.plan);
        for (&node, gradient) in self.plan.outputs.iter().zip(map_gradients) {
            let place = self.plan.place(node);
            let dense = Layout { pitch: place.layout.c, offset: 0, ..place.layout };
            flow.write(&mut self.pool, place, |dx, accumulate| {
                kernels::copy(View::new(gradient, dense), dx, accumulate);
            });
        }
        let first_writer = first_writers(&self.plan);
        for at in (0..self.plan.steps.len()).rev() {
            // Every reader of a buffer comes after its first writer, so has run backward by now.
            let done: Vec<usize> = (0..first_writer.len()).filter(|&b| first_writer[b] == Some(at)).collect();
            for &b in &done {
                self.pool.give(std::mem::take(&mut self.maps[b]));
            }
            if flow.reaches(&mut self.pool, self.plan.steps[at].output) {
                self.remember(at);
                let step = &self.plan.steps[at];
                let dy = std::mem::take(&mut flow.buffers[step.output.buffer]);
                let saved = Saved {
                    graph: &self.graph,
                    plan: &self.plan,
                    maps: &self.maps,
                    batch_norm: &self.batch_norm,
                    joint: self.joint,
                };
                let dy_view = View::new(dy.as_slice(), step.output.layout);
                if let Kind::Conv { conv, .. } = step.kind {
                    observe(conv, dy_view);
                }
                let gradients = gradients.as_deref_mut();
                step_backward(step, &saved, dy_view, &mut flow, &mut self.pool, gradients, &mut self.clock);
                flow.buffers[step.output.buffer] = dy;
            }
            for &b in &done {
                self.pool.give(std::mem::take(&mut flow.buffers[b]));
            }
        }
        for buffer in flow.buffers.into_iter().chain(std::mem::take(&mut self.maps)) {
            self.pool.give(buffer);
        }
    }
}

impl TrainNet {
    /// Makes again what step `at` of the backward pass reads and the forward pass forgot.
    fn remember(&mut self, at: usize) {
        let step = &self.plan.steps[at];
        if !step.kind.reads_again() {
            return;
        }
        let mut buffers: Vec<usize> = step.inputs.iter().map(|&i| self.plan.place(i).buffer).collect();
        buffers.retain(|&b| !self.forget.makers(b).is_empty() && self.maps[b].as_slice().is_empty());
        for buffer in buffers {
            self.maps[buffer] = self.filled(buffer);
        }
    }

    fn filled(&mut self, buffer: usize) -> Buffer {
        let mut out = self.pool.take(self.plan.buffers[buffer]);
        for step in self.forget.makers(buffer).iter().map(|&at| &self.plan.steps[at]) {
            let Kind::BatchNorm { bn, act } = step.kind else { unreachable!("only BatchNorm is run again") };
            let Op::BatchNorm(b) = &self.graph.nodes[bn].op else { unreachable!("planned as BatchNorm") };
            let Some((mean, inv_std)) = &self.batch_norm[bn] else { unreachable!("its forward step has run") };
            let affine = BnAct { mean, inv_std, gamma: &b.gamma, beta: &b.beta, act };
            let x = view(&self.maps, self.plan.place(step.inputs[0]));
            let y = ViewMut::new(out.as_mut_slice(), step.output.layout);
            self.clock.time(Work::NormAgain, 0, || kernels::bn_act_forward(x, &affine, y));
        }
        out
    }
}

/// What the forward pass left for the backward pass.
struct Saved<'a> {
    graph: &'a Graph,
    plan: &'a Plan,
    maps: &'a [Buffer],
    batch_norm: &'a [Option<(Vec<f32>, Vec<f32>)>],
    joint: bool,
}

fn step_backward(
    step: &Step,
    saved: &Saved,
    dy: View,
    flow: &mut Flow,
    pool: &mut Pool,
    gradients: Option<&mut Gradients>,
    clock: &mut Clock,
) {
    let from = |k: usize| saved.plan.place(step.inputs[k]);
    let x = |k: usize| view(saved.maps, from(k));
    match &step.kind {
        Kind::Conv { conv, shape, .. } => {
            let Op::Conv(c) = &saved.graph.nodes[*conv].op else { unreachable!("planned as a convolution") };
            let macs = macs(shape, dy.layout);
            if let Some(gradients) = gradients {
                let g = &mut gradients.by_node[*conv];
                clock.time(Work::ConvWeight, macs, || {
                    kernels::conv_backward_weight(shape, x(0), dy, &mut g[0]);
                    if let Some(db) = g.get_mut(1) {
                        kernels::conv_backward_bias(dy, db);
                    }
                });
            }
            // Nobody wants the gradient of the image.
            if step.inputs[0] != 0 && (saved.joint || !step.stops) {
                clock.time(Work::ConvInput, macs, || {
                    flow.write(pool, from(0), |dx, accumulate| {
                        kernels::conv_backward_input(shape, dy, &c.weight.data, dx, accumulate);
                    });
                });
            }
        }
        Kind::BatchNorm { bn, act } => {
            let Op::BatchNorm(b) = &saved.graph.nodes[*bn].op else { unreachable!("planned as BatchNorm") };
            let Some((mean, inv_std)) = &saved.batch_norm[*bn] else { unreachable!("its forward step has run") };
            let affine = BnAct { mean, inv_std, gamma: &b.gamma, beta: &b.beta, act: *act };
            let mut unwanted;
            let by_weight = match gradients {
                Some(gradients) => &mut gradients.by_node[*bn],
                None => {
                    unwanted = vec![vec![0.0; b.gamma.len()]; 2];
                    &mut unwanted
                }
            };
            let [dgamma, dbeta] = &mut by_weight[..] else { unreachable!("BatchNorm has two weights") };
            clock.time(Work::NormBackward, 0, || {
                flow.write_or_add(pool, from(0), |dx| kernels::bn_act_backward(x(0), dy, &affine, dx, dgamma, dbeta));
            });
        }
        Kind::Act(act) => clock.time(Work::Glue, 0, || {
            flow.write(pool, from(0), |dx, accumulate| kernels::act_backward(*act, x(0), dy, dx, accumulate));
        }),
        Kind::Pool(shape) => clock.time(Work::Glue, 0, || {
            flow.write(pool, from(0), |mut dx, accumulate| {
                if !accumulate {
                    clear(&mut dx);
                }
                kernels::max_pool_backward(*shape, x(0), dy, dx);
            });
        }),
        Kind::Upsample(factor) => clock.time(Work::Glue, 0, || {
            flow.write(pool, from(0), |dx, accumulate| kernels::upsample_backward(*factor, dy, dx, accumulate));
        }),
        Kind::Shuffle(factor) => clock.time(Work::Glue, 0, || {
            flow.write(pool, from(0), |dx, accumulate| kernels::shuffle_backward(*factor, dy, dx, accumulate));
        }),
        Kind::Attention(attention) => clock.time(Work::Glue, 0, || {
            flow.write(pool, from(0), |dx, accumulate| {
                kernels::attention_backward(attention, x(0), dy, dx, accumulate);
            });
        }),
        Kind::Add | Kind::Copy => clock.time(Work::Glue, 0, || {
            for k in 0..step.inputs.len() {
                flow.write(pool, from(k), |dx, accumulate| kernels::copy(dy, dx, accumulate));
            }
        }),
    }
}

/// Gradients on their way back: one buffer for each buffer of maps, with the channels that hold something already.
struct Flow {
    buffers: Vec<Buffer>,
    sizes: Vec<usize>,
    written: Vec<Vec<bool>>,
}

impl Flow {
    fn new(plan: &Plan) -> Self {
        let mut written = vec![vec![]; plan.buffers.len()];
        for place in plan.places.iter().flatten() {
            written[place.buffer] = vec![false; place.layout.pitch];
        }
        let buffers = plan.buffers.iter().map(|_| Buffer::default()).collect();
        Self { buffers, sizes: plan.buffers.clone(), written }
    }

    /// Whether `place` holds a gradient already; if so what is missing of it is zero now. It counts as written after.
    fn prepare(&mut self, pool: &mut Pool, place: Place) -> bool {
        let Place { buffer, layout } = place;
        if self.sizes[buffer] > 0 && self.buffers[buffer].as_slice().is_empty() {
            self.buffers[buffer] = pool.take(self.sizes[buffer]);
        }
        let written = &mut self.written[buffer][layout.offset..layout.offset + layout.c];
        let any = written.contains(&true);
        if any {
            let whole = Layout { offset: 0, c: layout.pitch, ..layout };
            for c in (0..layout.c).filter(|&c| !written[c]) {
                let gap = whole.channels(layout.offset + c, 1);
                clear(&mut ViewMut::new(self.buffers[buffer].as_mut_slice(), gap));
            }
        }
        written.fill(true);
        any
    }

    fn view(&mut self, place: Place) -> ViewMut<'_> {
        ViewMut::new(self.buffers[place.buffer].as_mut_slice(), place.layout)
    }

    /// Hands `f` the gradient of `place` and whether it must add to what is there.
    fn write(&mut self, pool: &mut Pool, place: Place, f: impl FnOnce(ViewMut, bool)) {
        let accumulate = self.prepare(pool, place);
        f(self.view(place), accumulate);
    }

    /// The same for a kernel that can only overwrite.
    fn write_or_add(&mut self, pool: &mut Pool, place: Place, f: impl FnOnce(ViewMut)) {
        if !self.prepare(pool, place) {
            return f(self.view(place));
        }
        let dense = Layout { pitch: place.layout.c, offset: 0, ..place.layout };
        let mut scratch = pool.take(dense.end());
        f(ViewMut::new(scratch.as_mut_slice(), dense));
        kernels::copy(View::new(scratch.as_slice(), dense), self.view(place), true);
        pool.give(scratch);
    }

    /// Whether any gradient has reached `place`.
    fn reaches(&mut self, pool: &mut Pool, place: Place) -> bool {
        let channels = place.layout.offset..place.layout.offset + place.layout.c;
        self.written[place.buffer][channels].contains(&true) && self.prepare(pool, place)
    }
}

fn first_writers(plan: &Plan) -> Vec<Option<usize>> {
    let mut first = vec![None; plan.buffers.len()];
    for (at, step) in plan.steps.iter().enumerate() {
        first[step.output.buffer].get_or_insert(at);
    }
    first
}

/// Multiply-accumulates of a convolution whose output lies so.
fn macs(shape: &ConvShape, y: Layout) -> u64 {
    let [kh, kw] = shape.kernel;
    (y.pixels() * y.c * (shape.ci / shape.groups) * kh * kw) as u64
}

fn clear(map: &mut ViewMut) {
    for p in 0..map.layout.pixels() {
        map.pixel(p).fill(0.0);
    }
}

fn view(maps: &[Buffer], place: Place) -> View<'_> {
    View::new(maps[place.buffer].as_slice(), place.layout)
}

fn update_running(bn: &mut graph::BatchNorm, stats: &BatchStats, count: usize, update: BnUpdate) {
    let momentum = match update {
        BnUpdate::Momentum => bn.momentum,
        BnUpdate::Average(seen) => 1.0 / (seen + 1) as f32,
    };
    // PyTorch keeps the unbiased variance and normalises with the biased one.
    let unbias = count as f32 / (count.max(2) - 1) as f32;
    for c in 0..bn.mean.len() {
        bn.mean[c] += momentum * (stats.mean[c] - bn.mean[c]);
        bn.var[c] += momentum * (unbias * stats.var[c] - bn.var[c]);
    }
}
