//! Makes a pruned detector fit the families' own modules, which cut a map into two equal halves and let attention give back
//! as many channels as it is given: where pruning has left less, channels of zeros are added. What the detector computes
//! stays the same, since nothing but zero weights reads them.

use crate::{Error, Graph, Node, NodeId, Op, Result, Tensor, UnionFind};

/// Most rounds of adding; a block needs one or two, and no padding of one block reaches another.
const MAX_ROUNDS: usize = 10_000;
const HINT: &str = "write .safetensors or .onnx instead, which need no such shape";

/// A graph every module of which the families' code can run.
pub(super) struct Padded {
    pub graph: Graph,
    /// Convolutions that were given filters of zeros, and how many.
    pub added: Vec<(String, usize)>,
}

/// Adds the channels that are missing.
///
/// # Errors
/// They would have to be added where no zero filter can be: to attention's own channels, to the head, to a group.
pub(super) fn pad(graph: &Graph) -> Result<Padded> {
    let mut padded = graph.clone();
    for _ in 0..MAX_ROUNDS {
        match lacking(&padded)? {
            Some(lack) => padded = widen(&padded, lack)?,
            None => {
                let added = graph.nodes.iter().zip(&padded.nodes).filter_map(|(old, new)| match (&old.op, &new.op) {
                    (Op::Conv(a), Op::Conv(b)) if b.out_channels() > a.out_channels() => {
                        Some((old.name.clone(), b.out_channels() - a.out_channels()))
                    }
                    _ => None,
                });
                let added = added.collect();
                return Ok(Padded { graph: padded, added });
            }
        }
    }
    Err(Error::node("model", "its halves cannot be made equal by adding channels").hint(HINT))
}

/// Channels to add after channel `after` of the map of `node`, and wherever the same channel goes.
#[derive(Clone, Copy)]
struct Lack {
    node: NodeId,
    after: usize,
    channels: usize,
}

/// The first place where a module of the family needs more channels than there are.
fn lacking(graph: &Graph) -> Result<Option<Lack>> {
    let channels = channels(graph)?;
    for (id, node) in graph.nodes.iter().enumerate() {
        match (&node.op, node.name.strip_suffix(".split0")) {
            (Op::Slice { start: 0, len }, Some(block)) => {
                let all = channels[node.inputs[0]];
                let rest = graph.nodes.iter().find(|n| n.inputs == node.inputs && n.name == format!("{block}.split1"));
                let whole = rest
                    .is_some_and(|n| matches!(n.op, Op::Slice { start, len: b } if start == *len && start + b == all));
                if !whole {
                    return Err(Error::node(&node.name, "is not followed by the rest of the map it cuts").hint(HINT));
                }
                let (first, second) = (*len, all - len);
                if first != second {
                    let after = if first < second { first } else { all } - 1;
                    return Ok(Some(Lack { node: node.inputs[0], after, channels: first.abs_diff(second) }));
                }
            }
            (Op::Attention(attention), _) => {
                let read = attended(graph, id)?;
                let (have, need) = (channels[read], attention.heads * attention.value);
                if have > need {
                    let what =
                        format!("gives {need} channels for the {have} it is given, the family's own gives as many");
                    return Err(Error::node(&node.name, what).hint(HINT));
                }
                if have < need {
                    return Ok(Some(Lack { node: read, after: have - 1, channels: need - have }));
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

/// The node whose map attention `id` attends over: what the convolution that makes queries, keys and values reads.
fn attended(graph: &Graph, id: NodeId) -> Result<NodeId> {
    let mut at = id;
    loop {
        let node = &graph.nodes[at];
        match (&node.op, node.inputs.first()) {
            (Op::Conv(_), Some(&input)) => return Ok(input),
            (Op::Attention(_) | Op::BatchNorm(_) | Op::Act(_), Some(&input)) => at = input,
            _ => {
                let what = "does not read a convolution's queries, keys and values";
                return Err(Error::node(&graph.nodes[id].name, what).hint(HINT));
            }
        }
    }
}

/// Channels of every node's map.
fn channels(graph: &Graph) -> Result<Vec<usize>> {
    Ok(graph.shapes(graph.meta.imgsz)?.into_iter().map(|shape| shape.c).collect())
}

/// The graph with `lack` made up for.
fn widen(graph: &Graph, lack: Lack) -> Result<Graph> {
    let same = same_channel(graph, lack)?;
    // How many old channels, and after each how many zeros, a node's map is made of.
    let room = |id: NodeId| same[id].iter().map(|&grows| if grows { lack.channels } else { 0 }).collect::<Vec<_>>();
    let mut wide = graph.clone();
    for (id, Node { name, op, inputs }) in wide.nodes.iter_mut().enumerate() {
        let out = room(id);
        let first = inputs.first().map(|&i| room(i)).unwrap_or_default();
        let grows = |zeros: &[usize]| zeros.iter().any(|&z| z > 0);
        match op {
            Op::Conv(conv) if conv.groups == 1 || conv.is_depthwise() => {
                if conv.is_depthwise() {
                    conv.groups += out.iter().sum::<usize>();
                    // What they read is zero, so any filter will do: with their neighbour's, means stay means.
                    let from = |(o, &zeros): (usize, &usize)| std::iter::repeat_n(o, 1 + zeros);
                    let filters: Vec<usize> = out.iter().enumerate().flat_map(from).collect();
                    conv.weight = conv.weight.select(0, &filters);
                } else {
                    conv.weight = spread_axis(&conv.weight, 1, &first);
                    conv.weight = spread_axis(&conv.weight, 0, &out);
                }
                conv.bias = conv.bias.as_ref().map(|b| spread(b, &out, 0.0));
            }
            Op::BatchNorm(bn) => {
                for (values, fill) in
                    [(&mut bn.gamma, 0.0), (&mut bn.beta, 0.0), (&mut bn.mean, 0.0), (&mut bn.var, 1.0)]
                {
                    *values = spread(values, &out, fill);
                }
            }
            Op::Slice { start, len } => {
                *len += out.iter().sum::<usize>();
                *start += first[..*start].iter().sum::<usize>();
            }
            Op::Conv(_) | Op::Attention(_) | Op::PixelShuffle { .. } | Op::Head(_) | Op::Input { .. } => {
                if grows(&out) || inputs.iter().any(|&i| grows(&room(i))) {
                    let what =
                        format!("cannot be given the {} channels of zeros the family's own code needs", lack.channels);
                    return Err(Error::node(name.as_str(), what).hint(HINT));
                }
            }
            Op::Act(_) | Op::Concat | Op::Add | Op::Upsample { .. } | Op::MaxPool(_) => {}
        }
    }
    wide.validate()?;
    Ok(wide)
}

/// For every channel of every node, whether it is the one `lack` names or has to grow with it: every dense convolution
/// gives new channels, a sum makes the channels it adds one, all else passes them on.
fn same_channel(graph: &Graph, lack: Lack) -> Result<Vec<Vec<bool>>> {
    let counts = channels(graph)?;
    let mut ids: Vec<Vec<usize>> = Vec::with_capacity(graph.nodes.len());
    let mut union = UnionFind::default();
    for (node, &count) in graph.nodes.iter().zip(&counts) {
        let input = |i: usize| ids[node.inputs[i]].clone();
        let own = match &node.op {
            Op::Concat => (0..node.inputs.len()).flat_map(input).collect(),
            Op::Slice { start, len } => input(0)[*start..start + len].to_vec(),
            Op::Conv(conv) if conv.is_depthwise() => input(0),
            Op::BatchNorm(_) | Op::Act(_) | Op::Upsample { .. } | Op::MaxPool(_) => input(0),
            Op::Add => {
                let sum = input(0);
                for &other in &node.inputs[1..] {
                    sum.iter().zip(&ids[other]).for_each(|(&a, &b)| union.unite(a, b));
                }
                sum
            }
            Op::Input { .. } | Op::Conv(_) | Op::Attention(_) | Op::PixelShuffle { .. } | Op::Head(_) => {
                union.fresh(count)
            }
        };
        ids.push(own);
    }
    let wanted = union.find(ids[lack.node][lack.after]);
    Ok(ids.iter().map(|own| own.iter().map(|&id| union.find(id) == wanted).collect()).collect())
}

/// `values`, each followed by as many `fill` as `room` says.
fn spread(values: &[f32], room: &[usize], fill: f32) -> Vec<f32> {
    values.iter().zip(room).flat_map(|(&v, &n)| std::iter::once(v).chain(std::iter::repeat_n(fill, n))).collect()
}

/// [`spread`] along an axis, with zeros.
fn spread_axis(tensor: &Tensor, axis: usize, room: &[usize]) -> Tensor {
    let added: usize = room.iter().sum();
    if added == 0 {
        return tensor.clone();
    }
    let inner: usize = tensor.shape[axis + 1..].iter().product();
    let mut shape = tensor.shape.clone();
    shape[axis] += added;
    let mut data = Vec::with_capacity(shape.iter().product());
    for (i, step) in tensor.data.chunks(inner).enumerate() {
        data.extend_from_slice(step);
        data.extend(std::iter::repeat_n(0.0, room[i % room.len()] * inner));
    }
    Tensor::new(shape, data)
}
