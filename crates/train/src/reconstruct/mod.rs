//! Reconstruction: convolution by convolution, from the image to the head, the pruned detector's weights are refitted so that
//! its maps come closest to the dense detector's, on unlabelled images: first by linear least squares (see `prune::refit`), then
//! as the activation behind it hears the difference (`beyond`); last its channels themselves move to where its readers make most of them
//! (`recast`).
//!
//! Both detectors run side by side, node by node, over many images at once. A refitted convolution's output is computed anew
//! before anything reads it, so each layer makes up for what the layers before it could not. First layers have large maps, which
//! few images fill with places enough; where maps are smaller the other images join, and after all of them their mirrors: the
//! dense detector's answers to a mirror are as good a lesson, but another image is a better one.

mod beyond;
mod recast;

use std::borrow::Cow;

use graph::{Act, BatchNorm, BoxDecode, Graph, Head, NodeId, Op};
use kernels::{Layout, View, ViewMut};
use prune::surgery::Kept;
use prune::{Coupling, Refit, Sensitivity, refit};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::Result;
use crate::calibrate::{Focus, Images};
use crate::maps::Maps;
use crate::room::{Keep, Room};
use crate::samples::{self, Places, ROW, Samples, enough};
use beyond::{Beyond, Part};

pub use recast::Recast;

/// Images that are worth showing it, and their mirrors: more take longer and teach it little.
pub const IMAGES: usize = 256;

/// One image in this many, or in all where there are fewer, and its mirror, only judges what the others fit.
const HELD_OUT: usize = 4;

/// Places to fit at, for each feature, below which fitting stops at the linear solution: what goes beyond follows the few samples
/// that count too closely, and held-out places are too few to tell.
const PLACES: usize = 10;

/// Bytes of both detectors' maps at a time, about.
const MEMORY: usize = 3 << 29;

/// Samples that a thread looks at together: their errors are added up, then those of chunks in order.
const CHUNK: usize = 1024;

/// A convolution that was refitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Refitted {
    pub node: String,
    /// Share of the held-out error that is left.
    pub left: f64,
    pub ridge: f64,
}

/// What is to be made alike, on which images.
pub struct Reconstruction<'a> {
    /// The detector `slim` was cut from.
    pub dense: &'a Graph,
    pub slim: &'a Graph,
    /// What `slim` has of `dense`.
    pub kept: &'a Kept,
    /// The first are looked at longest.
    pub images: &'a Images,
    /// (H, W) of the images.
    pub imgsz: [usize; 2],
    pub seed: u64,
    /// Of the images as they are, and maybe of more. Where a convolution is missing all positions count alike.
    pub focus: &'a Focus,
    /// Of `dense`: what readers of a layer that is recast mind. Where a convolution is missing its outputs count as its BatchNorm scales
    /// them.
    pub sensitivity: &'a Sensitivity,
}

/// What reconstruction has made.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconstructed {
    pub graph: Graph,
    pub refitted: Vec<Refitted>,
    pub recast: Vec<Recast>,
}

impl Reconstruction<'_> {
    /// `slim` with weights that serve it best, and what was done to it. `done` is called after every node.
    ///
    /// # Errors
    /// A graph does not fit the images' size.
    pub fn run(&self, mut done: impl FnMut(usize)) -> Result<Reconstructed> {
        let mut slim = self.slim.clone();
        let (mut refitted, mut recast) = (vec![], vec![]);
        if self.images.n == 0 {
            return Ok(Reconstructed { graph: slim, refitted, recast });
        }
        let _keep = Keep::rooms();
        let coupling = Coupling::of(self.dense)?;
        // Weights change below, who reads what does not.
        let [dense_readers, slim_readers] = [self.dense, &slim].map(Graph::consumers);
        let dense = Wired { graph: self.dense, readers: &dense_readers };
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut theirs = Maps::new(self.dense, self.imgsz)?;
        let mut ours = Maps::new(&slim, self.imgsz)?;
        // The next of the dense detector's nodes: it may have some that `slim` has not.
        let mut next = 0;
        for (id, room) in self.room(&theirs, &ours).into_iter().enumerate() {
            let n = theirs.n();
            // Images that join run from the start: not for a few more.
            if n == 0 || (n < room && (room >= 2 * n || room == self.views())) {
                let more: Vec<u8> = (n..room).flat_map(|view| self.view(view).into_owned()).collect();
                theirs.add(self.dense, next, &more);
                ours.add(&slim, id, &more);
            }
            let origin = self.kept.nodes[id];
            for id in next..origin {
                theirs.compute(self.dense, id);
                theirs.drop_read(id);
            }
            theirs.compute(self.dense, origin);
            next = origin + 1;
            ours.compute(&slim, id);
            // A depthwise convolution that is left with one channel is no dense one: it was made with those that it reads.
            if matches!(&self.dense.nodes[origin].op, Op::Conv(conv) if conv.groups == 1) {
                let now =
                    Now { dense, slim: Wired { graph: &slim, readers: &slim_readers }, theirs: &theirs, ours: &ours };
                if let Some(change) = self.change(now, id, &mut rng) {
                    let node = slim.nodes[id].name.clone();
                    refitted.push(Refitted { node, left: change.left, ridge: change.ridge });
                    apply(&mut slim, &slim_readers, id, &change.change);
                    ours.compute(&slim, id);
                }
                let now =
                    Now { dense, slim: Wired { graph: &slim, readers: &slim_readers }, theirs: &theirs, ours: &ours };
                if let Some((changes, made)) = self.recast(&coupling, now, id, &mut rng) {
                    recast.push(made);
                    changes.iter().for_each(|change| apply(&mut slim, &slim_readers, change.node, &change.rows));
                    ours.compute(&slim, id);
                }
            }
            theirs.drop_read(origin);
            ours.drop_read(id);
            done(id + 1);
        }
        Ok(Reconstructed { graph: slim, refitted, recast })
    }

    /// How many views there are: every image, and every image mirrored.
    fn views(&self) -> usize {
        2 * self.images.n
    }

    /// The bytes of a view: those of an image, or after the last of them of a mirror.
    fn view(&self, view: usize) -> Cow<'_, [u8]> {
        let [image, row] = [3 * self.imgsz[0] * self.imgsz[1], 3 * self.imgsz[1]];
        let bytes = &self.images.data[view % self.images.n * image..][..image];
        match view < self.images.n {
            true => bytes.into(),
            false => bytes.chunks(row).flat_map(|row| row.chunks(3).rev()).flatten().copied().collect(),
        }
    }

    /// For every node how many views there is room for from it on.
    fn room(&self, theirs: &Maps, ours: &Maps) -> Vec<usize> {
        let (theirs, ours) = (theirs.held(), ours.held());
        let held = self.kept.nodes.iter().zip(ours).map(|(&origin, ours)| theirs[origin] + ours);
        let mut room: Vec<usize> = held.map(|held| MEMORY / (4 * held)).collect();
        for id in (0..room.len().saturating_sub(1)).rev() {
            room[id] = room[id].min(room[id + 1]);
        }
        room.into_iter().map(|room| room.max(2 * HELD_OUT).min(self.views())).collect()
    }

    /// Of so many views those that are fitted to and those that judge. One image cannot be spared: nothing would tell a good change from
    /// a bad one.
    fn sides(&self, views: usize) -> Option<Sides> {
        let held_out = HELD_OUT.min(self.images.n);
        // A mirror is on the side of its image.
        let (check, fit): (Vec<usize>, Vec<usize>) =
            (0..views).partition(|view| view % self.images.n % held_out == held_out - 1);
        (!check.is_empty() && !fit.is_empty()).then_some(Sides { fit, check })
    }

    /// `count` places of a map of (H, W) = `plane`, most of them where errors of the dense detector's convolution `minded` matter.
    fn draw(&self, sides: &Sides, plane: [usize; 2], minded: NodeId, count: usize, rng: &mut ChaCha8Rng) -> Drawn {
        let focus = self.focus.get(&minded).map(Vec::as_slice);
        let mut draw =
            |views: &[usize], count: usize| Places { views, images: self.images.n, plane, focus }.draw(count, rng);
        let mut at = draw(&sides.fit, count - count / HELD_OUT);
        let fitted = at.len();
        at.extend(draw(&sides.check, count / HELD_OUT));
        Drawn { at, fitted }
    }

    /// What to change of convolution `id` of the slim detector.
    fn change(&self, now: Now, id: NodeId, rng: &mut ChaCha8Rng) -> Option<Refit> {
        let Now { dense, slim, theirs, ours } = now;
        let slim = slim.graph;
        let origin = self.kept.nodes[id];
        let kept = &self.kept.channels[id];
        let heard = Heard::behind(dense, origin, kept);
        let sides = self.sides(theirs.n())?;
        let Op::Conv(conv) = &slim.nodes[id].op else { return None };
        let features = conv.weight.shape[1..].iter().product::<usize>() + 1;
        let plane = [ours.of(id).layout.h, ours.of(id).layout.w];
        let Drawn { at, fitted } = self.draw(&sides, plane, origin, enough(features), rng);

        let beside = heard.beside.and_then(|beside| self.missing_beside(now, beside, &at));
        let mut missing = self.missing(now, id, &at);
        if let (Some(beside), Act::Identity) = (&beside, heard.act) {
            heard.add(beside, &mut missing);
        }
        let nothing = |values: &Room| values.iter().all(|&v| v == 0.0);
        if nothing(&missing) && beside.as_ref().is_none_or(nothing) {
            return None;
        }
        let read = samples::read(conv, ours.of(slim.nodes[id].inputs[0]), plane, &at);
        let all = Samples::new(features, &read, &missing);
        let [fit, check] = [0..fitted, fitted..at.len()];
        let (normal, check_normal) = (all.part(fit.clone()).normal(), all.part(check.clone()).normal());
        // What is chosen by held-out images is fitted to all.
        let all_normal = normal.with(&check_normal);
        let weights: Vec<f64> = heard.scale.iter().map(|&s| f64::from(s).powi(2)).collect();
        let linear = refit(&normal, &check_normal, &weights);
        if heard.act == Act::Identity || sides.places(plane) < PLACES * features {
            let linear = linear?;
            return Some(Refit { change: all_normal.solve(linear.ridge)?, ..linear });
        }
        let wanted = heard.of(theirs.of(origin), &at);
        let all = Beyond::new(all, heard.act, wanted, beside.as_deref(), &heard.scale);
        let fit = Part { heard: all.part(fit), normal: &normal };
        let check = all.part(check);
        beyond::refit(&fit, &check, &Part { heard: all.part(0..at.len()), normal: &all_normal }, linear, &heard.scale)
    }

    /// What the outputs of convolution `id` of the slim detector lack of the dense one's at those positions (S, O), both less the mean
    /// their BatchNorm subtracts.
    fn missing(&self, now: Now, id: NodeId, at: &[usize]) -> Room {
        let (origin, kept) = (self.kept.nodes[id], &self.kept.channels[id]);
        let shift: Vec<f32> = match (now.slim.norm_after(id), now.dense.norm_after(origin)) {
            (Some((_, own)), Some((_, other))) => {
                own.mean.iter().zip(kept).map(|(own, &k)| own - other.mean[k]).collect()
            }
            _ => vec![0.0; kept.len()],
        };
        lacking(now.theirs.of(origin), now.ours.of(id), kept, &shift, at)
    }

    /// What the slim detector's map beside lacks of the dense one's at those positions (S, O), where there is one still.
    fn missing_beside(&self, now: Now, beside: Beside, at: &[usize]) -> Option<Room> {
        let add = self.kept.nodes.binary_search(&beside.add).ok()?;
        let other = now.slim.graph.nodes[add].inputs[beside.operand];
        let dense = self.dense.nodes[beside.add].inputs[beside.operand];
        let kept = &self.kept.channels[other];
        Some(lacking(now.theirs.of(dense), now.ours.of(other), kept, &vec![0.0; kept.len()], at))
    }
}

/// Views by what they are for.
struct Sides {
    fit: Vec<usize>,
    check: Vec<usize>,
}

impl Sides {
    /// How many places of a map of (H, W) = `plane` there are to fit to.
    fn places(&self, plane: [usize; 2]) -> usize {
        self.fit.len() * plane[0] * plane[1]
    }
}

/// Places of a map, over all views.
struct Drawn {
    /// First those to fit to, then those that judge.
    at: Vec<usize>,
    /// How many the first are.
    fitted: usize,
}

/// A detector and who reads each of its nodes.
#[derive(Clone, Copy)]
struct Wired<'a> {
    graph: &'a Graph,
    /// As [`Graph::consumers`] tells them.
    readers: &'a [Vec<NodeId>],
}

impl<'a> Wired<'a> {
    fn only_reader(self, id: NodeId) -> Option<(NodeId, &'a Op)> {
        self.graph.only_reader(self.readers, id)
    }

    /// The BatchNorm that alone reads `id`.
    fn norm_after(self, id: NodeId) -> Option<(NodeId, &'a BatchNorm)> {
        match self.only_reader(id) {
            Some((norm, Op::BatchNorm(bn))) => Some((norm, bn)),
            _ => None,
        }
    }
}

/// How far reconstruction has come.
#[derive(Clone, Copy)]
struct Now<'a> {
    dense: Wired<'a>,
    /// The slim detector, refitted up to here.
    slim: Wired<'a>,
    /// The dense detector's maps.
    theirs: &'a Maps,
    /// The slim detector's.
    ours: &'a Maps,
}

/// The other operand of an addition.
#[derive(Clone, Copy)]
struct Beside {
    /// The addition, of the dense detector.
    add: NodeId,
    operand: usize,
}

/// What is done to the outputs of a convolution before anything else reads them.
struct Heard<'a> {
    /// Which outputs of the dense detector's convolution are left.
    kept: &'a [usize],
    /// Scale and shift of the BatchNorm behind those; 1 and 0 where there is none.
    scale: Vec<f32>,
    shift: Vec<f32>,
    act: Act,
    /// The map that is there already when the result is added to it: what that lacks, the result may make up for (He, Zhang and Sun
    /// 2017, "Channel pruning for accelerating very deep neural networks", refit residual branches so).
    beside: Option<Beside>,
}

impl<'a> Heard<'a> {
    fn behind(dense: Wired, id: NodeId, kept: &'a [usize]) -> Self {
        let norm = dense.norm_after(id);
        let (scale, shift) = match norm {
            Some((_, bn)) => {
                let (scale, shift) = bn.scale_shift();
                (kept.iter().map(|&k| scale[k]).collect(), kept.iter().map(|&k| shift[k]).collect())
            }
            None => (vec![1.0; kept.len()], vec![0.0; kept.len()]),
        };
        let end = norm.map_or(id, |(norm, _)| norm);
        let inputs = |id: NodeId| &dense.graph.nodes[id].inputs;
        let (act, last) = match dense.only_reader(end) {
            Some((reader, Op::Act(act))) => (*act, reader),
            Some((reader, Op::Head(head))) => {
                (said(head, inputs(reader).iter().take_while(|&&i| i != end).count()), end)
            }
            _ => (Act::Identity, end),
        };
        let beside = dense.only_reader(last).and_then(|(add, op)| match op {
            Op::Add if inputs(add).len() == 2 => {
                let operand = inputs(add).iter().position(|&other| other != last && other < id)?;
                Some(Beside { add, operand })
            }
            _ => None,
        });
        Self { kept, scale, shift, act, beside }
    }

    /// Adds what a map beside lacks (S, O), in units of what comes after BatchNorm, to what the convolution's outputs do.
    fn add(&self, lacking: &[f32], missing: &mut [f32]) {
        let channels = self.kept.len();
        missing.par_chunks_mut(channels).zip(lacking.par_chunks(channels)).for_each(|(to, lacking)| {
            // An output that BatchNorm silences adds nothing.
            for ((to, lacking), &scale) in
                to.iter_mut().zip(lacking).zip(&self.scale).filter(|(_, scale)| **scale != 0.0)
            {
                *to += lacking / scale;
            }
        });
    }

    /// (S, O): what goes into the activation at positions `at` of `outputs`, the dense detector's.
    fn of(&self, outputs: View, at: &[usize]) -> Room {
        let mut heard = Room::any(at.len() * self.kept.len());
        heard.par_chunks_mut(self.kept.len()).zip(at).for_each(|(to, &p)| {
            let from = outputs.pixel(p);
            for (c, to) in to.iter_mut().enumerate() {
                *to = self.scale[c] * from[self.kept[c]] + self.shift[c];
            }
        });
        heard
    }
}

/// What `head` makes of its map number `input`: the identity where that is not one function of every value.
fn said(head: &Head, input: usize) -> Act {
    let probabilities = match head {
        Head::Anchor(h) => h.levels.iter().all(|level| level.decode == BoxDecode::V5),
        Head::Dfl(h) => input < h.pairs() && input % 2 == 1,
        Head::Yolox(_) => !input.is_multiple_of(3),
    };
    if probabilities { Act::Sigmoid } else { Act::Identity }
}

/// (S, O): what `ours` lacks of those channels of `theirs` that it has, and `shift` (O) more, at positions `at`.
fn lacking(theirs: View, ours: View, kept: &[usize], shift: &[f32], at: &[usize]) -> Room {
    let mut lacking = Room::any(at.len() * kept.len());
    lacking.par_chunks_mut(kept.len()).zip(at).for_each(|(to, &p)| {
        let (y, z) = (ours.pixel(p), theirs.pixel(p));
        to.iter_mut().enumerate().for_each(|(c, to)| *to = z[kept[c]] - y[c] + shift[c]);
    });
    lacking
}

/// Adds `change` (O, features, the last of which is 1) to the weights and whatever bias the convolution has.
fn apply(graph: &mut Graph, readers: &[Vec<NodeId>], id: NodeId, change: &[f64]) {
    let norm = Wired { graph, readers }.norm_after(id).map(|(norm, _)| norm);
    let Op::Conv(conv) = &mut graph.nodes[id].op else { return };
    let taps = conv.weight.len() / conv.out_channels();
    for (filter, change) in conv.weight.data.chunks_mut(taps).zip(change.chunks(taps + 1)) {
        filter.iter_mut().zip(change).for_each(|(w, c)| *w = (f64::from(*w) + c) as f32);
    }
    let shifts = change.chunks(taps + 1).map(|change| change[taps]);
    match (norm, &mut conv.bias) {
        (Some(norm), None) => {
            let Op::BatchNorm(bn) = &mut graph.nodes[norm].op else { return };
            bn.mean.iter_mut().zip(shifts).for_each(|(m, s)| *m = (f64::from(*m) - s) as f32);
        }
        (_, bias) => {
            let bias = bias.get_or_insert_with(|| vec![0.0; change.len() / (taps + 1)]);
            bias.iter_mut().zip(shifts).for_each(|(b, s)| *b = (f64::from(*b) + s) as f32);
        }
    }
}

/// Calls `each` with the output, the value to change and that of `other`, for all values (S, O).
fn in_rows(values: &mut [f32], outputs: usize, other: &[f32], each: impl Fn(usize, &mut f32, f32) + Sync) {
    let size = CHUNK * outputs;
    values.par_chunks_mut(size).zip(other.par_chunks(size)).for_each(|(values, other)| {
        for (values, other) in values.chunks_mut(outputs).zip(other.chunks(outputs)) {
            values.iter_mut().zip(other).enumerate().for_each(|(o, (value, &other))| each(o, value, other));
        }
    });
}

/// The sum of what `of` makes of each chunk, row by row in their order, whatever thread each came from.
fn sum_of<T: Send>(
    chunks: impl IndexedParallelIterator<Item = T>,
    of: impl Fn(T) -> Vec<f64> + Sync + Send,
) -> Vec<f64> {
    let parts: Vec<Vec<f64>> = chunks.map(of).collect();
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_default();
    parts.for_each(|part| add(&mut sum, 1.0, &part));
    sum
}

/// `count` values as a map: value by value any layout that holds them all will do, and rows are what threads share.
fn in_any_order(count: usize) -> Layout {
    let row = if count.is_multiple_of(ROW) { ROW } else { count };
    Layout::dense(1, count / row.max(1), 1, row)
}

/// What `act` makes of every value.
fn said_by(act: Act, values: &[f32]) -> Room {
    let mut said = Room::any(values.len());
    let layout = in_any_order(values.len());
    kernels::act_forward(act, View::new(values, layout), ViewMut::new(&mut said, layout));
    said
}

/// The slope of `act` at every value.
fn slopes(act: Act, values: &[f32]) -> Room {
    let mut slopes = Room::any(values.len());
    let layout = in_any_order(values.len());
    let (at, mut ones) = (View::new(values, layout), Room::any(values.len()));
    ones.par_chunks_mut(CHUNK).for_each(|part| part.fill(1.0));
    kernels::act_backward(act, at, View::new(&ones, layout), ViewMut::new(&mut slopes, layout), false);
    slopes
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The product of each row of `a` with that of `b`.
fn products(a: &[f64], b: &[f64], width: usize) -> Vec<f64> {
    a.chunks(width).zip(b.chunks(width)).map(|(a, b)| dot(a, b)).collect()
}

fn add(to: &mut [f64], by: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += by * what);
}

#[cfg(test)]
mod tests {
    use graph::{AnchorHead, AnchorLevel, DflHead, Family, Meta, YoloxHead};

    use super::*;

    #[test]
    fn only_probabilities_are_heard_through_a_sigmoid() {
        let level = |decode| AnchorLevel { stride: 8, anchors: vec![[8.0, 8.0]], decode };
        let anchors = |decode| Head::Anchor(AnchorHead { classes: 1, levels: vec![level(decode)] });
        let dfl = DflHead { end_to_end: true, one_to_many: true, ..DflHead::new(2, 1, vec![8]) };
        let yolox = Head::Yolox(YoloxHead { classes: 2, strides: vec![8] });
        let all = |head: Head| (0..head.inputs()).map(|i| said(&head, i) == Act::Sigmoid).collect::<Vec<_>>();
        assert_eq!(all(anchors(BoxDecode::V5)), [true]);
        assert_eq!(all(anchors(BoxDecode::Darknet { scale_xy: 1.0 })), [false], "sides are exponentials");
        assert_eq!(all(Head::Dfl(dfl)), [false, true, false, false], "what helps training alone is not heard");
        assert_eq!(all(yolox), [false, true, true]);
    }

    #[test]
    fn mirrors_follow_the_images_and_judge_where_they_do() {
        let (h, w, n) = (2, 3, 5);
        let graph = Graph::new(Meta { family: Family::Other, names: vec![], imgsz: [h, w] }, 3);
        let kept = Kept::all(&graph).expect("shapes");
        let images = Images { data: (0..n * h * w * 3).map(|i| i as u8).collect(), n };
        let (focus, sensitivity) = (Focus::new(), Sensitivity::default());
        let job = |images| Reconstruction {
            dense: &graph,
            slim: &graph,
            kept: &kept,
            images,
            imgsz: [h, w],
            seed: 0,
            focus: &focus,
            sensitivity: &sensitivity,
        };
        assert_eq!(job(&images).view(1)[..], images.data[18..36]);
        assert_eq!(job(&images).view(n + 1)[..9], [24, 25, 26, 21, 22, 23, 18, 19, 20]);
        let sides = |views: usize| job(&images).sides(views).map(|sides| (sides.fit, sides.check));
        assert_eq!(sides(10), Some((vec![0, 1, 2, 4, 5, 6, 7, 9], vec![3, 8])));
        assert_eq!(sides(3), None, "none of them judges");
    }
}
