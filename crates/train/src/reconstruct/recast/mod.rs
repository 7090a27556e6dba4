//! Recasting: the channels that stay of a layer need not be what they were.
//!
//! A cut keeps some of a layer's channels. Where only dense convolutions read them any others would do from which those can make what
//! they heard before. So the filters that are left, and a depthwise convolution behind them, move until what the readers lack
//! after least squares is least: for any filters the readers' best weights are a linear problem, which leaves a problem of the filters
//! alone (variable projection, Golub and Pereyra 1973), and Gauss and Newton's steps go down that, by conjugate gradients, with
//! Kaufman's derivative (1975), which takes the readers' weights as following only what they can follow.
//!
//! What readers lack is weighed as in stage 2 (`prune::similarity`): by how much the detector minds each of their outputs.

mod aim;
mod descent;
mod maker;
mod plane;

use graph::{Conv, Graph, NodeId, Op};
use prune::{Class, Coupling};
use rand_chacha::ChaCha8Rng;

use super::{Heard, Now, PLACES, Reconstruction, Wired};
use crate::room::Room;
use crate::samples::{self, Samples, enough};
use aim::{Aim, means};
use descent::{Fit, descend};
use maker::Maker;
use plane::{Plane, bound};

/// A layer that was recast.
#[derive(Clone, Debug, PartialEq)]
pub struct Recast {
    pub node: String,
    /// Share of what its readers lacked on held-out images that is left.
    pub left: f64,
}

/// What to add to the weights of a convolution of the slim detector.
pub(super) struct Change {
    pub(super) node: NodeId,
    /// (O, features, the last of which is 1).
    pub(super) rows: Vec<f64>,
}

/// A dense convolution's channels on the way to those that read them.
struct Layer {
    /// The depthwise convolution all of them pass.
    depthwise: Option<NodeId>,
    readers: Vec<Reader>,
}

/// A dense convolution that reads a layer.
struct Reader {
    node: NodeId,
    /// Of every channel of the layer the inputs where it is read, as many of each.
    inputs: Vec<Vec<usize>>,
}

impl Layer {
    /// The channels of convolution `id` of `graph`; `None` where any of them has to stay what it is: an addition sums it with others,
    /// or something but a dense convolution reads it.
    fn of(graph: &Graph, coupling: &Coupling, id: NodeId) -> Option<Self> {
        let classes: Vec<_> = coupling.channels(id).iter().map(|&class| &coupling.classes[class]).collect();
        let first = classes.first()?;
        let depthwise = first.depthwise.first().map(|site| site.node);
        let is_free = |class: &&Class| {
            let passes: Vec<NodeId> = class.depthwise.iter().map(|site| site.node).collect();
            class.pinned.is_none() && class.members.len() == 1 && passes == Vec::from_iter(depthwise)
        };
        // Nobody reads what has not passed the depthwise convolution yet.
        if !classes.iter().all(is_free) || depthwise.is_some_and(|d| coupling.readers(graph.nodes[d].inputs[0]) != [d])
        {
            return None;
        }
        let mut nodes: Vec<NodeId> = first.consumers.iter().map(|site| site.node).collect();
        nodes.dedup();
        let reader = |node: NodeId| {
            let inputs = |class: &&Class| {
                class.consumers.iter().filter(|site| site.node == node).map(|site| site.channel).collect::<Vec<_>>()
            };
            Reader { node, inputs: classes.iter().map(inputs).collect() }
        };
        let readers: Vec<Reader> = nodes.into_iter().map(reader).collect();
        let alike = |reader: &Reader| reader.inputs.iter().all(|inputs| inputs.len() == reader.inputs[0].len());
        // Nor may a channel have readers that the first has not.
        let of_all = |class: &&Class| class.consumers.len() == first.consumers.len();
        (readers.iter().all(alike) && classes.iter().all(of_all)).then_some(Self { depthwise, readers })
    }
}

/// A layer of which a cut has left some channels.
struct Cut<'a> {
    /// Its convolution, of the dense detector and of the slim one.
    conv: [NodeId; 2],
    /// The depthwise convolution behind, likewise.
    depthwise: Option<[NodeId; 2]>,
    /// The channels that are left, of the dense detector's.
    kept: &'a [usize],
    /// How many the dense detector has.
    channels: usize,
    /// Those who still read it, with the slim detector's nodes.
    readers: Vec<(Reader, NodeId)>,
}

impl Cut<'_> {
    /// The convolution whose outputs readers hear, of the slim detector.
    fn last(&self) -> NodeId {
        self.depthwise.map_or(self.conv[1], |[_, slim]| slim)
    }
}

impl Reconstruction<'_> {
    /// What to change of convolution `id` of the slim detector, of the depthwise one behind it and of those that read them, so that it
    /// serves its readers best; and what share of their loss that leaves.
    pub(super) fn recast(
        &self,
        coupling: &Coupling,
        now: Now,
        id: NodeId,
        rng: &mut ChaCha8Rng,
    ) -> Option<(Vec<Change>, Recast)> {
        let Now { dense, slim, theirs, ours } = now;
        let cut = self.cut(coupling, id)?;
        let Op::Conv(conv) = &slim.graph.nodes[id].op else { return None };
        let [channels, kept] = [cut.channels, cut.kept.len()];
        let features = conv.weight.shape[1..].iter().product::<usize>() + 1;
        let plane = Plane::of(slim.graph, &cut, ours.of(id).layout);
        let sides = self.sides(theirs.n())?;
        if sides.places(plane.drawn) < PLACES * features {
            return None;
        }
        // A place takes several pixels that the filters read; each teaches them something.
        let count = enough(features).div_ceil(plane.taps.len().min(4));
        let drawn = self.draw(&sides, plane.drawn, self.kept.nodes[cut.last()], count, rng);
        let at = plane.pixels(&drawn.at);

        let whole: Vec<usize> = (0..channels).collect();
        let [dense_depthwise, depthwise] = [0, 1].map(|which| cut.depthwise.map(|nodes| nodes[which]));
        let heard = Maker::new(dense, (cut.conv[0], &whole), dense_depthwise, theirs.of(cut.conv[0]), &at).at(&[]).said;
        let mut read = samples::read(conv, ours.of(slim.graph.nodes[id].inputs[0]), plane.read, &at.pixels);
        bound(&at.inside, &mut read, features);
        let maker = Maker::new(slim, (id, &whole[..kept]), depthwise, ours.of(id), &at).reading(&read, features);
        let aim = Aim::new(&heard[..drawn.fitted * channels], self.metric(dense, &cut));
        // It always says the same, or nobody minds what it says.
        if aim.directions == 0 {
            return None;
        }
        let target = aim.of(&heard);

        let split = drawn.fitted * plane.taps.len();
        let [fit, check] = [0..split, split..at.pixels.len()].map(|rows| maker.part(rows));
        let (fit_target, check_target) = target.split_at(drawn.fitted * aim.directions);
        let (change, left) = descend(&fit, fit_target, &check, check_target)?;

        let before = maker.at(&[]).said;
        let said = maker.at(&change).said;
        let follow = Follow {
            by: Fit::new(&said, kept, &heard)?.weights,
            before: means(&before, kept),
            after: means(&said, kept),
        };
        let mut changes = maker.changes(slim, id, depthwise, &change);
        for (reader, node) in &cut.readers {
            changes.push(Change { node: *node, rows: self.follow(slim.graph, reader, *node, cut.kept, &follow)? });
        }
        Some((changes, Recast { node: slim.graph.nodes[id].name.clone(), left }))
    }

    /// The layer of convolution `id` of the slim detector; `None` where it has lost nothing or has to stay as it is.
    fn cut(&self, coupling: &Coupling, id: NodeId) -> Option<Cut<'_>> {
        let (origin, kept) = (self.kept.nodes[id], &self.kept.channels[id]);
        let channels = coupling.channels(origin).len();
        if kept.len() == channels {
            return None;
        }
        let layer = Layer::of(self.dense, coupling, origin)?;
        let slim = |node: NodeId| self.kept.nodes.binary_search(&node).ok();
        let depthwise = match layer.depthwise {
            Some(dense) => Some([dense, slim(dense)?]),
            None => None,
        };
        // A reader that went with its branch hears nothing any more.
        let readers = layer.readers.into_iter().filter_map(|reader| slim(reader.node).map(|node| (reader, node)));
        Some(Cut { conv: [origin, id], depthwise, kept, channels, readers: readers.collect() })
    }

    /// (C, C): how much the readers of a layer mind errors of its channels, together.
    fn metric(&self, dense: Wired, cut: &Cut) -> Vec<f64> {
        let mut metric = vec![0.0; cut.channels * cut.channels];
        for (reader, slim) in &cut.readers {
            let Op::Conv(conv) = &dense.graph.nodes[reader.node].op else { unreachable!("readers are convolutions") };
            let outputs = &self.kept.channels[*slim];
            let minds: Vec<f64> = match self.sensitivity.outputs.get(&reader.node) {
                Some(minds) => outputs.iter().map(|&o| minds[o]).collect(),
                None => {
                    let scales = Heard::behind(dense, reader.node, outputs).scale;
                    scales.iter().map(|scale| f64::from(*scale).powi(2)).collect()
                }
            };
            for (&o, minds) in outputs.iter().zip(minds) {
                for (site, tap) in columns(reader, conv) {
                    let weight = |inputs: &Vec<usize>| f64::from(conv.weight.outer(o)[inputs[site] * taps(conv) + tap]);
                    let row: Vec<f64> = reader.inputs.iter().map(weight).collect();
                    for (to, a) in metric.chunks_mut(cut.channels).zip(&row) {
                        to.iter_mut().zip(&row).for_each(|(to, b)| *to += minds * a * b);
                    }
                }
            }
        }
        metric
    }

    /// What to add to the weights of `node`, the slim detector's `reader`, for it to hear of the recast channels what the dense
    /// one did; what it puts out on average stays.
    fn follow(&self, slim: &Graph, reader: &Reader, node: NodeId, kept: &[usize], follow: &Follow) -> Option<Vec<f64>> {
        let (Op::Conv(old), Op::Conv(dense)) = (&slim.nodes[node].op, &self.dense.nodes[reader.node].op) else {
            return None;
        };
        let inputs = &self.kept.channels[slim.nodes[node].inputs[0]];
        let width = old.weight.len() / old.out_channels() + 1;
        let mut change = vec![0.0; old.out_channels() * width];
        for ((change, &o), own) in change.chunks_mut(width).zip(&self.kept.channels[node]).zip(0..) {
            for (site, tap) in columns(reader, dense) {
                for (j, &channel) in kept.iter().enumerate() {
                    let input = inputs.binary_search(&reader.inputs[channel][site]).ok()? * taps(old) + tap;
                    let dense =
                        |inputs: &Vec<usize>| f64::from(dense.weight.outer(o)[inputs[site] * taps(dense) + tap]);
                    let new: f64 = reader
                        .inputs
                        .iter()
                        .zip(follow.by.chunks(kept.len() + 1))
                        .map(|(c, row)| dense(c) * row[j])
                        .sum();
                    let old = f64::from(old.weight.outer(own)[input]);
                    change[input] += new - old;
                    change[width - 1] += old * follow.before[j] - new * follow.after[j];
                }
            }
        }
        Some(change)
    }
}

/// How readers follow.
struct Follow {
    /// (C, kept + 1): the dense detector's channels of the recast ones and of 1.
    by: Vec<f64>,
    /// (kept): means of the channels before and after.
    before: Vec<f64>,
    after: Vec<f64>,
}

/// Every place where a channel of the layer is among a reader's weights: its inputs and their taps.
fn columns(reader: &Reader, conv: &Conv) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (sites, taps) = (reader.inputs[0].len(), taps(conv));
    (0..sites).flat_map(move |site| (0..taps).map(move |tap| (site, tap)))
}

fn taps(conv: &Conv) -> usize {
    conv.kernel().iter().product()
}

/// (S, O): `x` (S, F) times the rows (O, F).
fn times(x: &[f32], features: usize, rows: &[f64]) -> Room {
    Samples::new(features, x, &[]).times(rows)
}
