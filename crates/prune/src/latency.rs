//! What a network takes in milliseconds, as a table of measured times says: data, no clock.
//!
//! Whoever measures fills one [`Table`] for each [`kind`] of node (a convolution of one kernel on maps of one size, an
//! activation on such maps, ...) over a few channel counts; between them times are interpolated. [`Latency::fit`] then scales
//! the sum so that the network that was measured as a whole takes what it took.

use std::collections::BTreeMap;

use graph::{Act, Graph, NodeId, Op, Shape};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Nanoseconds of one kind of node over its input and output channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Measured", into = "Measured")]
pub struct Table(Measured);

/// A table as it is stored and measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Counts of input channels, rising.
    pub inputs: Vec<usize>,
    /// Counts of output channels, rising.
    pub outputs: Vec<usize>,
    /// (inputs, outputs), row-major: nanoseconds.
    pub nanos: Vec<f64>,
}

impl TryFrom<Measured> for Table {
    type Error = Error;

    /// A node with more channels cannot be faster than one with fewer by more than the clock's noise, and a plan that
    /// believes otherwise chases noise: where times fall with a count, they are levelled to the middle between the largest
    /// time at no more channels and the least at no fewer. Times that rise already stay as they are.
    ///
    /// # Errors
    /// The counts do not rise, the times do not fit them, or one is negative or not finite.
    fn try_from(measured: Measured) -> Result<Self> {
        let Measured { inputs, outputs, nanos } = &measured;
        let rising = |counts: &[usize]| !counts.is_empty() && counts.windows(2).all(|w| w[0] < w[1]);
        if !rising(inputs) || !rising(outputs) || nanos.len() != inputs.len() * outputs.len() {
            let (i, o, n) = (inputs.len(), outputs.len(), nanos.len());
            return Err(times(format!("{n} times for {i} rising input counts and {o} rising output counts")));
        }
        if let Some(bad) = nanos.iter().find(|t| !(t.is_finite() && **t >= 0.0)) {
            return Err(times(format!("a time of {bad} ns")));
        }
        let (rows, columns) = (inputs.len(), outputs.len());
        let level = |at: usize| {
            let (row, column) = (at / columns, at % columns);
            let corner = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| {
                rows.flat_map(move |r| columns.clone().map(move |c| (r, c)))
            };
            let time = |(r, c): (usize, usize)| nanos[r * columns + c];
            let most = corner(0..row + 1, 0..column + 1).map(time).fold(0.0, f64::max);
            let least = corner(row..rows, column..columns).map(time).fold(f64::INFINITY, f64::min);
            f64::midpoint(most, least)
        };
        let nanos = (0..nanos.len()).map(level).collect();
        Ok(Self(Measured { nanos, ..measured }))
    }
}

impl From<Table> for Measured {
    fn from(table: Table) -> Self {
        table.0
    }
}

impl Table {
    /// Nanoseconds at `input` and `output` channels: bilinear between the counts measured, the nearest beyond them.
    pub fn at(&self, input: usize, output: usize) -> f64 {
        let Measured { inputs, outputs, nanos } = &self.0;
        let (i, x) = place(inputs, input);
        let (o, y) = place(outputs, output);
        let columns = outputs.len();
        let row = |i: usize| {
            let [a, b] = [o, (o + 1).min(columns - 1)].map(|o| nanos[i * columns + o]);
            a + (b - a) * y
        };
        let [a, b] = [i, (i + 1).min(inputs.len() - 1)].map(row);
        a + (b - a) * x
    }
}

/// The last of `counts` that is not above `count`, and how far `count` is from it to the next, in 0..1.
fn place(counts: &[usize], count: usize) -> (usize, f64) {
    let next = counts.partition_point(|&c| c <= count);
    match (next.checked_sub(1), counts.get(next)) {
        (None, _) => (0, 0.0),
        (Some(last), None) => (last, 0.0),
        (Some(i), Some(&next)) => (i, (count - counts[i]) as f64 / (next - counts[i]) as f64),
    }
}

fn times(what: impl Into<String>) -> Error {
    Error::Setting { option: "latency", what: what.into(), help: "measure the table of times anew" }
}

/// What kind of node `id` is, in words: nodes of one kind with as many channels take as long. None where it takes no time of
/// its own: inputs, what an export folds into a convolution, and the head, which is measured with the rest.
///
/// `readers` are those of every node, `shapes` the maps.
pub fn kind(graph: &Graph, readers: &[Vec<NodeId>], shapes: &[Shape], id: NodeId) -> Option<String> {
    let node = &graph.nodes[id];
    let input = shapes[*node.inputs.first()?];
    let on = format!("on {}x{}", input.h, input.w);
    Some(match &node.op {
        Op::Input { .. } | Op::Head(_) | Op::Act(Act::Identity) => return None,
        Op::Conv(conv) => {
            let ([kh, kw], [sy, sx], [py, px]) = (conv.kernel(), conv.stride, conv.pad);
            let what = match conv.groups {
                1 => "conv".into(),
                _ if conv.is_depthwise() => "depthwise conv".into(),
                groups => format!("conv {} to {} in {groups} groups", input.c, shapes[id].c),
            };
            format!("{what} {kh}x{kw} stride {sy}x{sx} pad {py}x{px} {on}")
        }
        Op::BatchNorm(_) => match (&graph.nodes[node.inputs[0]].op, &readers[node.inputs[0]][..]) {
            (Op::Conv(_), [_]) => return None,
            _ => format!("norm {on}"),
        },
        Op::Act(act) => format!("{} {on}", format!("{act:?}").to_lowercase()),
        Op::Concat => format!("concat of {} {on}", node.inputs.len()),
        Op::Add => format!("sum of {} {on}", node.inputs.len()),
        Op::Upsample { factor } => format!("upsample {factor} {on}"),
        Op::PixelShuffle { factor } => format!("shuffle {factor} {on}"),
        Op::MaxPool(pool) => format!("pool {} stride {} {on}", pool.kernel, pool.stride),
        Op::Slice { .. } => format!("slice {on}"),
        Op::Attention(a) => format!("attention {}x{}x{} {on}", a.heads, a.key, a.value),
    })
}

/// The times of a network and of every smaller one that comes of it by removing channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// (H, W) of the images it was measured on.
    pub imgsz: [usize; 2],
    /// By [`kind`], as measured one by one.
    pub tables: BTreeMap<String, Table>,
    /// What a node takes in its network over what it takes alone.
    pub scale: f64,
    /// Nanoseconds that no channel count changes: decoding, starting.
    pub fixed: f64,
}

impl Latency {
    /// Times that make `graph` take `body` nanoseconds up to its head and `fixed` more for the rest.
    ///
    /// # Errors
    /// A kind of node has no table, or the times are not above zero.
    pub fn fit(tables: BTreeMap<String, Table>, graph: &Graph, body: f64, fixed: f64) -> Result<Self> {
        let alone = Self { imgsz: graph.meta.imgsz, tables, scale: 1.0, fixed: 0.0 };
        let sum: f64 = {
            let shapes = graph.shapes(alone.imgsz)?;
            let tables = alone.of(graph, &shapes)?;
            (0..graph.nodes.len()).filter_map(|id| Some(tables[id]?.at(inputs(graph, &shapes, id), shapes[id].c))).sum()
        };
        let scale = body / sum;
        if !(scale.is_finite() && scale > 0.0 && fixed.is_finite() && fixed >= 0.0) {
            return Err(times(format!("{body} ns in the network, {sum} ns one by one, {fixed} ns for the rest")));
        }
        Ok(Self { scale, fixed, ..alone })
    }

    /// The same tables, so that `slim` takes `nanos` and `dense` what it took: two detectors tell what channels cost from what
    /// every image costs, which one cannot. As near as it gets where that would be less than nothing; none where `slim` is no
    /// faster than `dense`, which says nothing of channels.
    ///
    /// # Errors
    /// The tables are not of a graph.
    pub fn corrected(&self, dense: &Graph, slim: &Graph, nanos: f64) -> Result<Option<Self>> {
        let whole = self.total(dense)? as f64;
        let [all, left] = [whole, self.total(slim)? as f64].map(|total| (total - self.fixed) / self.scale);
        let scale = ((whole - nanos) / (all - left)).min(whole / all);
        if !(scale.is_finite() && scale > 0.0) {
            return Ok(None);
        }
        Ok(Some(Self { scale, fixed: (whole - scale * all).max(0.0), ..self.clone() }))
    }

    /// The table of every node of `graph`; none for those that take no time of their own.
    ///
    /// # Errors
    /// A kind of node was not measured.
    pub(crate) fn of(&self, graph: &Graph, shapes: &[Shape]) -> Result<Vec<Option<&Table>>> {
        let readers = graph.consumers();
        let table = |id: NodeId| {
            let Some(kind) = kind(graph, &readers, shapes, id) else { return Ok(None) };
            // A depthwise convolution that is down to one channel cannot be told from a dense one.
            match self.tables.get(&kind).or_else(|| self.tables.get(&format!("depthwise {kind}"))) {
                Some(table) => Ok(Some(table)),
                None => Err(times(format!("has no times of `{kind}`, as `{}` is", graph.nodes[id].name))),
            }
        };
        (0..graph.nodes.len()).map(table).collect()
    }

    /// Nanoseconds of one node in its network, whole ones so that sums do not depend on their order.
    pub(crate) fn nanos(&self, table: &Table, input: usize, output: usize) -> u64 {
        (self.scale * table.at(input, output)).round() as u64
    }

    /// Nanoseconds of one image of the size measured, by kind of node, dearest first, and of the rest.
    ///
    /// # Errors
    /// The graph's shapes do not fit, or a kind of node was not measured.
    pub fn parts(&self, graph: &Graph) -> Result<Vec<(String, u64)>> {
        let shapes = graph.shapes(self.imgsz)?;
        let readers = graph.consumers();
        let mut parts = BTreeMap::from([("head and start".to_owned(), self.fixed.round() as u64)]);
        for (id, table) in self.of(graph, &shapes)?.into_iter().enumerate() {
            if let (Some(table), Some(kind)) = (table, kind(graph, &readers, &shapes, id)) {
                *parts.entry(kind).or_default() += self.nanos(table, inputs(graph, &shapes, id), shapes[id].c);
            }
        }
        let mut parts: Vec<_> = parts.into_iter().collect();
        parts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        Ok(parts)
    }

    /// Nanoseconds of one image of the size measured.
    ///
    /// # Errors
    /// As [`Latency::parts`].
    pub fn total(&self, graph: &Graph) -> Result<u64> {
        Ok(self.parts(graph)?.iter().map(|(_, nanos)| nanos).sum())
    }
}

/// Channels of a node's first input.
fn inputs(graph: &Graph, shapes: &[Shape], id: NodeId) -> usize {
    graph.nodes[id].inputs.first().map_or(0, |&i| shapes[i].c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(inputs: &[usize], outputs: &[usize], nanos: &[f64]) -> Result<Table> {
        Measured { inputs: inputs.to_vec(), outputs: outputs.to_vec(), nanos: nanos.to_vec() }.try_into()
    }

    #[test]
    fn times_are_exact_where_measured_and_between_their_neighbours_elsewhere() {
        let counts = ([8, 13, 32], [4, 16]);
        let nanos = [10.0, 30.0, 20.0, 50.0, 60.0, 90.0];
        let t = table(&counts.0, &counts.1, &nanos).unwrap();
        for (i, &input) in counts.0.iter().enumerate() {
            for (o, &output) in counts.1.iter().enumerate() {
                assert_eq!(t.at(input, output), nanos[i * 2 + o], "{input} {output}");
            }
        }
        for input in 0..40 {
            for output in 0..20 {
                assert!(t.at(input, output) <= t.at(input + 1, output), "{input} {output}");
                assert!(t.at(input, output) <= t.at(input, output + 1), "{input} {output}");
            }
        }
        assert_eq!(t.at(8, 10), 20.0, "half way");
        assert_eq!((t.at(1, 1), t.at(99, 99)), (10.0, 90.0), "beyond the counts measured");
        assert_eq!(table(&[7], &[9], &[5.0]).unwrap().at(1, 100), 5.0);
    }

    #[test]
    fn a_norm_takes_time_where_it_cannot_be_folded() {
        let mut graph = Graph::new(graph::Meta { family: graph::Family::Other, names: vec![], imgsz: [4, 4] }, 3);
        let weight = graph::Tensor::zeros([3, 1, 1, 1]);
        let conv = graph::Conv { weight, bias: None, stride: [1, 1], pad: [0, 0], groups: 3 };
        let conv = graph.push("conv", Op::Conv(conv), vec![0]);
        let norm = graph.push("norm", Op::BatchNorm(graph::BatchNorm::identity(3, 1e-3, 0.03)), vec![conv]);
        let kinds = |graph: &Graph| {
            let shapes = graph.shapes([4, 4]).unwrap();
            (0..graph.nodes.len()).filter_map(|id| kind(graph, &graph.consumers(), &shapes, id)).collect::<Vec<_>>()
        };
        let depthwise = "depthwise conv 1x1 stride 1x1 pad 0x0 on 4x4".to_owned();
        assert_eq!(kinds(&graph), std::slice::from_ref(&depthwise));
        graph.push("other", Op::Add, vec![conv, norm]);
        assert_eq!(kinds(&graph), [depthwise.clone(), "norm on 4x4".into(), "sum of 2 on 4x4".into()]);

        // Down to one channel it looks like a dense one; its times are those of the depthwise.
        graph.nodes.truncate(2);
        let tables = BTreeMap::from([(depthwise, table(&[1], &[1], &[5.0]).unwrap())]);
        assert!(Latency::fit(tables.clone(), &graph, 10.0, -1.0).is_err(), "less than no time");
        let latency = Latency::fit(tables, &graph, 10.0, 1.0).unwrap();
        graph.nodes[0].op = Op::Input { channels: 1 };
        if let Op::Conv(conv) = &mut graph.nodes[1].op {
            (conv.groups, conv.weight) = (1, graph::Tensor::zeros([1, 1, 1, 1]));
        }
        assert_eq!(latency.total(&graph).unwrap(), 11);
    }

    #[test]
    fn noise_is_levelled() {
        let t = table(&[1], &[1, 2, 3, 4], &[10.0, 14.0, 12.0, 20.0]).unwrap();
        assert_eq!([1, 2, 3, 4].map(|c| t.at(1, c)), [10.0, 13.0, 13.0, 20.0]);
    }

    #[test]
    fn tables_that_make_no_sense_are_refused() {
        for (inputs, outputs, nanos) in [
            (&[][..], &[1][..], &[][..]),
            (&[2, 1], &[1], &[1.0, 1.0]),
            (&[1, 1], &[1], &[1.0, 1.0]),
            (&[1], &[1], &[1.0, 2.0]),
            (&[1], &[1], &[f64::NAN]),
            (&[1], &[1], &[-1.0]),
        ] {
            assert!(table(inputs, outputs, nanos).is_err(), "{inputs:?} {outputs:?} {nanos:?}");
        }
    }
}
