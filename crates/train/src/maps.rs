//! A detector's maps, node by node over many images at once, for as long as something still has to read them.

use graph::{Act, Graph, NodeId, Op, Shape};
use kernels::{BnAct, Epilogue, Layout, Packed, View, ViewMut};

use crate::Result;
use crate::net::{Kind, conv_shape, load_images, run_plain};

/// A map of its own.
pub(crate) struct Map {
    pub(crate) layout: Layout,
    pub(crate) data: Vec<f32>,
}

impl Map {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, data: vec![0.0; layout.end()] }
    }

    pub(crate) fn view(&self) -> View<'_> {
        View::new(&self.data, self.layout)
    }

    /// Puts the images of `other` behind its own.
    fn append(&mut self, other: Self) {
        self.layout = Layout::dense(self.layout.n + other.layout.n, self.layout.h, self.layout.w, self.layout.c);
        // Maps may fill the memory they are allowed: no room for more than comes.
        self.data.reserve_exact(other.data.len());
        self.data.extend_from_slice(&other.data);
    }
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
    /// Room that maps nobody reads any more have left: fresh memory costs a page fault every few kilobytes.
    spare: Vec<Vec<f32>>,
}

/// Spare maps that are kept.
const SPARE: usize = 1;

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
        let maps = graph.nodes.iter().map(|_| None).collect();
        Ok(Self { shapes, n: 0, maps, last, spare: vec![] })
    }

    /// Adds `images`, (N, H, W, 3) as bytes 0..255, and runs them through all nodes before `id`, a few at a time.
    pub(crate) fn add(&mut self, graph: &Graph, id: NodeId, images: &[u8]) {
        let Shape { c, h, w } = self.shapes[0];
        for images in images.chunks(ADDED * c * h * w) {
            let n = images.len() / (c * h * w);
            let mut image = Map::new(Layout::dense(n, h, w, c));
            load_images(images, &mut image.data);
            let mut maps: Vec<Option<Map>> = graph.nodes.iter().map(|_| None).collect();
            maps[0] = Some(image);
            let mut more = Self { shapes: self.shapes.clone(), n, maps, last: self.last.clone(), spare: vec![] };
            for id in 0..id {
                more.compute(graph, id);
                more.drop_read(id);
            }
            for (map, more) in self.maps.iter_mut().zip(more.maps) {
                match (map, more) {
                    (Some(map), Some(more)) => map.append(more),
                    (map, more) => *map = more,
                }
            }
            self.n += n;
        }
    }

    /// How many images there are.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Floats of one image that are held while each node is computed.
    pub(crate) fn held(&self) -> Vec<usize> {
        let floats = |shape: &Shape| shape.c * shape.h * shape.w;
        (0..self.shapes.len())
            .map(|id| (0..=id).filter(|&i| i == id || self.last[i] >= id).map(|i| floats(&self.shapes[i])).sum())
            .collect()
    }

    pub(crate) fn of(&self, id: NodeId) -> View<'_> {
        match &self.maps[id] {
            Some(map) => map.view(),
            None => unreachable!("node {id} is computed before it is read, and kept until its last reader"),
        }
    }

    /// Runs node `id` in inference mode.
    pub(crate) fn compute(&mut self, graph: &Graph, id: NodeId) {
        let node = &graph.nodes[id];
        let Shape { c, h, w } = self.shapes[id];
        if matches!(node.op, Op::Input { .. } | Op::Head(_)) {
            return;
        }
        let layout = Layout::dense(self.n, h, w, c);
        let mut map = Map { layout, data: self.room(layout.end()) };
        let x = |k: usize| self.of(node.inputs[k]);
        let y = ViewMut::new(&mut map.data, map.layout);
        match &node.op {
            Op::Conv(conv) => {
                let shape = conv_shape(conv);
                let packed = Packed::new(&shape, &conv.weight.data);
                let epilogue = Epilogue { bias: conv.bias.as_deref(), act: Act::Identity };
                kernels::conv_forward(&shape, x(0), &packed, epilogue, y);
            }
            Op::BatchNorm(bn) => {
                let inv_std: Vec<f32> = bn.var.iter().map(|v| 1.0 / (v + bn.eps).sqrt()).collect();
                let affine =
                    BnAct { mean: &bn.mean, inv_std: &inv_std, gamma: &bn.gamma, beta: &bn.beta, act: Act::Identity };
                kernels::bn_act_forward(x(0), &affine, y);
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
                self.spare.extend(map.take().map(|map| map.data));
            }
        }
        self.spare.sort_by_key(|spare| std::cmp::Reverse(spare.capacity()));
        self.spare.truncate(SPARE);
    }

    /// Room for a map of so many floats, with anything in it.
    fn room(&mut self, floats: usize) -> Vec<f32> {
        // A map in much more room than it needs would hold what others could have.
        match self.spare.iter().position(|spare| (floats..2 * floats).contains(&spare.capacity())) {
            Some(fit) => {
                let mut room = self.spare.remove(fit);
                room.resize(floats, 0.0);
                room
            }
            None => vec![0.0; floats],
        }
    }
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
        let act = graph.push("act", Op::Act(Act::Silu), vec![first]);
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
                if id >= late {
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
