//! Modules of `torch.nn` as the pickles PyTorch writes hold them: a class, and the attributes `forward` reads.

use std::borrow::Cow;

use crate::format::pickle::encode::{Class, Numbers, Py, Values};
use crate::{Act, BatchNorm, Conv, MaxPool, Op};

const HOOKS: [&str; 5] =
    ["_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"];

/// Parts of a module that is not made yet.
#[derive(Default)]
pub(super) struct Module<'g> {
    pub attributes: Vec<(&'static str, Py<'g>)>,
    pub parameters: Vec<(&'static str, Py<'g>)>,
    pub buffers: Vec<(&'static str, Py<'g>)>,
    pub children: Vec<(Cow<'g, str>, Py<'g>)>,
}

impl<'g> Module<'g> {
    /// A module with these attributes and nothing else.
    pub fn with(attributes: Vec<(&'static str, Py<'g>)>) -> Self {
        Self { attributes, ..Self::default() }
    }

    /// Adds submodules.
    pub fn holding(mut self, children: impl IntoIterator<Item = (impl Into<Cow<'g, str>>, Py<'g>)>) -> Self {
        self.children.extend(children.into_iter().map(|(name, child)| (name.into(), child)));
        self
    }

    /// The module, as one of `class` that is not being trained.
    pub fn build(self, class: Class) -> Py<'g> {
        let keyed = |all: Vec<(&'static str, Py<'g>)>| {
            Py::Ordered(all.into_iter().map(|(name, value)| (Py::str(name), value)).collect())
        };
        let mut state = vec![
            ("training", Py::Bool(false)),
            ("_parameters", keyed(self.parameters)),
            ("_buffers", keyed(self.buffers)),
            ("_non_persistent_buffers_set", Py::EmptySet),
            ("_is_full_backward_hook", Py::None),
        ];
        state.extend(HOOKS.map(|name| (name, Py::Ordered(vec![]))));
        state.push(("_modules", Py::Ordered(self.children.into_iter().map(|(n, m)| (Py::Str(n), m)).collect())));
        state.extend(self.attributes);
        Py::Object { class, state }
    }
}

/// The module that is operator `op`; `None` where none of `torch.nn` is.
pub(super) fn leaf(op: &Op) -> Option<Py<'_>> {
    Some(match op {
        Op::Conv(conv) => conv2d(conv),
        Op::BatchNorm(bn) => batch_norm(bn),
        Op::Act(act) => activation(*act),
        Op::MaxPool(pool) => max_pool(pool)?,
        Op::Upsample { factor } => upsample(*factor),
        Op::PixelShuffle { factor } => pixel_shuffle(*factor),
        _ => return None,
    })
}

/// `Identity`, which does nothing.
pub(super) fn identity<'g>() -> Py<'g> {
    Module::default().build(("torch.nn.modules.linear", "Identity"))
}

/// `Sequential` or `ModuleList`.
pub(super) fn list<'g>(class: &'static str, children: Vec<(impl Into<Cow<'g, str>>, Py<'g>)>) -> Py<'g> {
    Module::default().holding(children).build(("torch.nn.modules.container", class))
}

fn conv2d(conv: &Conv) -> Py<'_> {
    let [pad_h, pad_w] = conv.pad.map(Py::size);
    let reversed = Py::Tuple(vec![pad_w.clone(), pad_w, pad_h.clone(), pad_h]);
    let mut module = Module::with(vec![
        ("in_channels", Py::size(conv.in_channels())),
        ("out_channels", Py::size(conv.out_channels())),
        ("kernel_size", Py::pair(conv.kernel())),
        ("stride", Py::pair(conv.stride)),
        ("padding", Py::pair(conv.pad)),
        ("dilation", Py::pair([1, 1])),
        ("transposed", Py::Bool(false)),
        ("output_padding", Py::pair([0, 0])),
        ("groups", Py::size(conv.groups)),
        ("padding_mode", Py::str("zeros")),
        ("_reversed_padding_repeated_twice", reversed),
    ]);
    module.parameters = vec![
        ("weight", Py::parameter(conv.weight.shape.clone(), &conv.weight.data[..])),
        ("bias", conv.bias.as_deref().map_or(Py::None, |b| Py::parameter([b.len()], b))),
    ];
    module.build(("torch.nn.modules.conv", "Conv2d"))
}

fn batch_norm(bn: &BatchNorm) -> Py<'_> {
    let n = [bn.gamma.len()];
    let mut module = Module::with(vec![
        ("num_features", Py::size(n[0])),
        ("eps", Py::short(bn.eps)),
        ("momentum", Py::short(bn.momentum)),
        ("affine", Py::Bool(true)),
        ("track_running_stats", Py::Bool(true)),
    ]);
    module.parameters = vec![("weight", Py::parameter(n, &bn.gamma[..])), ("bias", Py::parameter(n, &bn.beta[..]))];
    module.buffers = vec![
        ("running_mean", Py::tensor(n, &bn.mean[..])),
        ("running_var", Py::tensor(n, &bn.var[..])),
        // Only a momentum of `None` reads how many batches there were.
        ("num_batches_tracked", Py::Tensor(Numbers { shape: vec![], values: Values::I64(vec![0]) })),
    ];
    module.build(("torch.nn.modules.batchnorm", "BatchNorm2d"))
}

fn activation<'g>(act: Act) -> Py<'g> {
    // In place would be wrong where another layer reads the same map; the families switch it on where it is safe.
    let in_place = || ("inplace", Py::Bool(false));
    let (name, attributes) = match act {
        Act::Identity => return identity(),
        Act::Silu => ("SiLU", vec![in_place()]),
        Act::Leaky => ("LeakyReLU", vec![("negative_slope", Py::Float(0.1)), in_place()]),
        Act::Mish => ("Mish", vec![in_place()]),
        Act::Relu => ("ReLU", vec![in_place()]),
        Act::Relu6 => ("ReLU6", vec![("min_val", Py::Float(0.0)), ("max_val", Py::Float(6.0)), in_place()]),
        Act::Sigmoid => ("Sigmoid", vec![]),
    };
    Module::with(attributes).build(("torch.nn.modules.activation", name))
}

/// `None` where it pads on one side only, as Darknet's do.
pub(super) fn max_pool<'g>(pool: &MaxPool) -> Option<Py<'g>> {
    let [before, after] = pool.pad;
    let module = Module::with(vec![
        ("kernel_size", Py::size(pool.kernel)),
        ("stride", Py::size(pool.stride)),
        ("padding", Py::size(before)),
        ("dilation", Py::Int(1)),
        ("return_indices", Py::Bool(false)),
        ("ceil_mode", Py::Bool(false)),
    ]);
    (before == after).then(|| module.build(("torch.nn.modules.pooling", "MaxPool2d")))
}

fn upsample<'g>(factor: usize) -> Py<'g> {
    let module = Module::with(vec![
        ("name", Py::str("Upsample")),
        ("size", Py::None),
        ("scale_factor", Py::Float(factor as f64)),
        ("mode", Py::str("nearest")),
        ("align_corners", Py::None),
        ("recompute_scale_factor", Py::None),
    ]);
    module.build(("torch.nn.modules.upsampling", "Upsample"))
}

fn pixel_shuffle<'g>(factor: usize) -> Py<'g> {
    Module::with(vec![("upscale_factor", Py::size(factor))]).build(("torch.nn.modules.pixelshuffle", "PixelShuffle"))
}
