//! A detector's maps, node by node over many images at once, for as long as something still has to read them.

use graph::{Act, BatchNorm, Graph, NodeId, Op, Shape};
use kernels::{BnAct, Epilogue, Layout, Packed, View, ViewMut};

use crate::Result;
use crate::net::{Kind, conv_shape, load_images, run_plain};
use crate::room::Room;

/// A map of its own.
struct Map {
    layout: Layout,
    data: Room,
}

/// Images that go through the nodes together when they are added late.
const ADDED: usize = 16;

/// The maps of a graph that something still has to read.
pub(crate) struct Maps {
    shapes: Vec<Shape>,
    n: usize,
    maps: Vec<Option<Map>>,
    /// The last reader of every node.
    last: Vec<NodeId>,
    /// The activation that alone reads a BatchNorm, which is worked out together with it and leaves no map of its own.
    joined: Vec<Option<NodeId>>,
}

impl Maps {
    /// Those of no image yet, of (H, W) = `imgsz`.
    ///
    /// # Errors
    /// The graph does not fit that size.
    pub(crate) fn new(graph: &Graph, imgsz: [usize; 2]) -> Result<Self> {
        let shapes = graph.shapes(imgsz)?;
        let mut last: Vec<NodeId> = (0..graph.nodes.len()).collect();
        for (id, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&i| last[i] = id);
        }
        let joined = joined(graph);
        for (norm, act) in joined.iter().enumerate() {
            let Some(act) = *act else { continue };
            let read = graph.nodes[norm].inputs[0];
            last[read] = last[read].max(act);
        }
        Ok(Self { n: 0, maps: nothing(graph), shapes, last, joined })
    }

    /// Adds `images`, (N, H, W, 3) as bytes 0..255, and runs them through all nodes before `id`, a few at a time.
    pub(crate) fn add(&mut self, graph: &Graph, id: NodeId, images: &[u8]) {
        let Shape { c, h, w } = self.shapes[0];
        let all = self.n + images.len() / (c * h * w);
        let mut added = nothing(graph);
        for images in images.chunks(ADDED * c * h * w) {
            let n = images.len() / (c * h * w);
            let (shapes, last, joined) = (self.shapes.clone(), self.last.clone(), self.joined.clone());
            let mut more = Self { n, maps: nothing(graph), shapes, last, joined };
            let mut image = more.room(0);
            load_images(images, &mut image.data);
            more.maps[0] = Some(image);
            for id in 0..id {
                more.compute(graph, id);
                more.drop_read(id);
            }
            for (id, (added, more)) in added.iter_mut().zip(more.maps).enumerate() {
                let Some(more) = more else { continue };
                let added = added.get_or_insert_with(|| self.grown(id, all));
                let from = self.n * added.layout.h * added.layout.w * added.layout.c;
                added.data[from..][..more.data.len()].copy_from_slice(&more.data);
            }
            self.n += n;
        }
        self.maps = added;
    }

    /// The map of node `id` with room for `all` images.
    fn grown(&mut self, id: NodeId, all: usize) -> Map {
        let Shape { c, h, w } = self.shapes[id];
        let layout = Layout::dense(all, h, w, c);
        let mut map = Map { layout, data: Room::any(layout.end()) };
        if let Some(old) = self.maps[id].take() {
            map.data[..old.data.len()].copy_from_slice(&old.data);
        }
        map
    }

    /// How many images there are.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Floats of one image that are held while each node is computed.
    pub(crate) fn held(&self) -> Vec<usize> {
        let floats = |i: NodeId| self.shapes[i].c * self.shapes[i].h * self.shapes[i].w;
        let held = |id: NodeId| (0..=id).filter(move |&i| self.joined[i].is_none() && (i == id || self.last[i] >= id));
        (0..self.shapes.len()).map(|id| held(id).map(floats).sum()).collect()
    }

    pub(crate) fn of(&self, id: NodeId) -> View<'_> {
        match &self.maps[id] {
            Some(map) => View::new(&map.data, map.layout),
            None => unreachable!("node {id} is computed before it is read, and kept until its last reader"),
        }
    }

    /// Runs node `id` in inference mode; a BatchNorm that an activation alone reads runs with that.
    pub(crate) fn compute(&mut self, graph: &Graph, id: NodeId) {
        let node = &graph.nodes[id];
        if self.joined[id].is_some() || matches!(node.op, Op::Input { .. } | Op::Head(_)) {
            return;
        }
        let mut map = self.room(id);
        let x = |k: usize| self.of(node.inputs[k]);
        let y = ViewMut::new(&mut map.data, map.layout);
        match &node.op {
            Op::Conv(conv) => {
                let shape = conv_shape(conv);
                let packed = Packed::new(&shape, &conv.weight.data);
                let epilogue = Epilogue { bias: conv.bias.as_deref(), act: Act::Identity };
                kernels::conv_forward(&shape, x(0), &packed, epilogue, y);
            }
            Op::BatchNorm(bn) => normalise(bn, Act::Identity, x(0), y),
            Op::Act(act) if self.joined[node.inputs[0]] == Some(id) => {
                let norm = &graph.nodes[node.inputs[0]];
                let Op::BatchNorm(bn) = &norm.op else { unreachable!("only BatchNorms are joined") };
                normalise(bn, *act, self.of(norm.inputs[0]), y);
            }
            Op::Concat => {
                let mut start = 0;
                for k in 0..node.inputs.len() {
                    let from = x(k);
                    let part = map.layout.channels(start, from.layout.c);
                    start += from.layout.c;
                    kernels::copy(from, ViewMut::new(&mut map.data, part), false);
                }
            }
            Op::Slice { start, len } => {
                let from = x(0);
                kernels::copy(View::new(from.data, from.layout.channels(*start, *len)), y, false);
            }
            op => {
                let kind = Kind::plain(op).unwrap_or_else(|| unreachable!("{op:?} computes nothing"));
                run_plain(&kind, node.inputs.len(), &x, y);
            }
        }
        self.maps[id] = Some(map);
    }

    /// Forgets what nothing after `id` reads.
    pub(crate) fn drop_read(&mut self, id: NodeId) {
        for (map, &last) in self.maps.iter_mut().zip(&self.last) {
            if last <= id {
                *map = None;
            }
        }
    }

    /// Room for the map of node `id`, with anything in it.
    fn room(&self, id: NodeId) -> Map {
        let Shape { c, h, w } = self.shapes[id];
        let layout = Layout::dense(self.n, h, w, c);
        Map { layout, data: Room::any(layout.end()) }
    }
}

/// No map of any node.
fn nothing(graph: &Graph) -> Vec<Option<Map>> {
    graph.nodes.iter().map(|_| None).collect()
}

/// The activation that alone reads each BatchNorm.
fn joined(graph: &Graph) -> Vec<Option<NodeId>> {
    let readers = graph.consumers();
    let act = |id: NodeId| match (&graph.nodes[id].op, graph.only_reader(&readers, id)) {
        (Op::BatchNorm(_), Some((act, Op::Act(_)))) => Some(act),
        _ => None,
    };
    (0..graph.nodes.len()).map(act).collect()
}

/// `bn` by its running statistics, then `act`.
fn normalise(bn: &BatchNorm, act: Act, x: View, y: ViewMut) {
    let inv_std: Vec<f32> = bn.var.iter().map(|v| 1.0 / (v + bn.eps).sqrt()).collect();
    kernels::bn_act_forward(x, &BnAct { mean: &bn.mean, inv_std: &inv_std, gamma: &bn.gamma, beta: &bn.beta, act }, y);
}

#[cfg(test)]
mod tests {
    use graph::{Conv, Family, MaxPool, Meta, Tensor};

    use super::*;

    #[test]
    fn images_that_join_late_have_the_maps_of_those_that_were_there() {
        let meta = Meta { family: Family::Other, names: vec![], imgsz: [8, 8] };
        let mut graph = Graph::new(meta, 3);
        let conv = |o: usize, i: usize, stride| {
            let weight = (0..o * i * 9).map(|k| (k * 37 % 19) as f32 / 19.0 - 0.4).collect();
            let weight = Tensor::new([o, i, 3, 3], weight);
            Op::Conv(Conv { weight, bias: None, stride: [stride; 2], pad: [1; 2], groups: 1 })
        };
        let first = graph.push("first", conv(4, 3, 2), vec![0]);
        let bn = BatchNorm {
            gamma: vec![1.0, -0.5, 2.0, 1.5],
            beta: vec![0.1; 4],
            mean: vec![0.2; 4],
            var: vec![0.5; 4],
            eps: 1e-3,
            momentum: 0.1,
        };
        let norm = graph.push("norm", Op::BatchNorm(bn), vec![first]);
        let act = graph.push("act", Op::Act(Act::Silu), vec![norm]);
        let pool = graph.push("pool", Op::MaxPool(MaxPool { kernel: 3, stride: 1, pad: [1, 1] }), vec![act]);
        let concat = graph.push("concat", Op::Concat, vec![act, pool]);
        let second = graph.push("second", conv(5, 8, 1), vec![concat]);
        graph.push("sum", Op::Add, vec![second, second]);

        let n = ADDED + 3;
        let images: Vec<u8> = (0..n * 8 * 8 * 3).map(|i| (i * 71 % 251) as u8).collect();
        for late in 1..graph.nodes.len() {
            let [mut whole, mut parts] = [0, 1].map(|_| Maps::new(&graph, [8, 8]).expect("fits"));
            whole.add(&graph, 0, &images);
            let early = 2 * 8 * 8 * 3;
            parts.add(&graph, 0, &images[..early]);
            for id in 0..graph.nodes.len() {
                if id == late {
                    parts.add(&graph, id, &images[early..]);
                }
                for maps in [&mut whole, &mut parts] {
                    maps.compute(&graph, id);
                }
                if id >= late && id != norm {
                    assert_eq!(whole.of(id).data, parts.of(id).data, "{late} {id}");
                }
                for maps in [&mut whole, &mut parts] {
                    maps.drop_read(id);
                }
            }
            assert_eq!((whole.n(), parts.n()), (n, n));
        }
    }
}
