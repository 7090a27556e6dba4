//! Both detectors' maps, node by node over all images at once, for as long as something still has to read them.

use graph::{Act, Graph, NodeId, Op, Shape};
use kernels::{BnAct, Epilogue, Layout, Packed, View, ViewMut};

use crate::Result;
use crate::calibrate::Images;
use crate::net::{Kind, conv_shape, load_images, run_plain};

/// A map of its own.
pub(super) struct Map {
    pub(super) layout: Layout,
    pub(super) data: Vec<f32>,
}

impl Map {
    pub(super) fn new(layout: Layout) -> Self {
        Self { layout, data: vec![0.0; layout.end()] }
    }

    pub(super) fn view(&self) -> View<'_> {
        View::new(&self.data, self.layout)
    }
}

/// The maps of a graph that something still has to read.
pub(super) struct Maps {
    shapes: Vec<Shape>,
    n: usize,
    maps: Vec<Option<Map>>,
    /// The last reader of every node.
    last: Vec<NodeId>,
}

impl Maps {
    pub(super) fn new(graph: &Graph, images: &Images, imgsz: [usize; 2]) -> Result<Self> {
        let shapes = graph.shapes(imgsz)?;
        let mut last: Vec<NodeId> = (0..graph.nodes.len()).collect();
        for (id, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&i| last[i] = id);
        }
        let mut maps: Vec<Option<Map>> = graph.nodes.iter().map(|_| None).collect();
        let mut image = Map::new(Layout::dense(images.n, imgsz[0], imgsz[1], shapes[0].c));
        load_images(&images.data, &mut image.data);
        maps[0] = Some(image);
        Ok(Self { shapes, n: images.n, maps, last })
    }

    pub(super) fn of(&self, id: NodeId) -> View<'_> {
        match &self.maps[id] {
            Some(map) => map.view(),
            None => unreachable!("node {id} is computed before it is read, and kept until its last reader"),
        }
    }

    /// Runs node `id` in inference mode.
    pub(super) fn compute(&mut self, graph: &Graph, id: NodeId) {
        let node = &graph.nodes[id];
        let Shape { c, h, w } = self.shapes[id];
        if matches!(node.op, Op::Input { .. } | Op::Head(_)) {
            return;
        }
        let mut map = Map::new(Layout::dense(self.n, h, w, c));
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
    pub(super) fn drop_read(&mut self, id: NodeId) {
        for (map, &last) in self.maps.iter_mut().zip(&self.last) {
            if last <= id {
                *map = None;
            }
        }
    }
}
