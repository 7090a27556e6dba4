//! Which head a file's decoding is: found by experiment.
//!
//! Exporters word one decoding in many ways. So nodes are not compared: their results are. The channels and sizes of the
//! maps and of the output leave few heads to choose from; anchors and scales are read off what the file makes of chosen
//! maps; and a head counts as recognised if the file makes of random maps what our own export of that head makes of them.

use std::rc::Rc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::array::Array;
use super::body::Body;
use super::cut::{self, Cut};
use super::eval::Budget;
use super::expected::{self, Layout};
use super::guess;
use crate::{Error, Head, NodeId, Op, Result, Shape};

/// A head and the maps it reads.
#[derive(Debug)]
pub struct Found {
    pub head: Head,
    pub maps: Vec<NodeId>,
}

/// Maps of one stride, by their place in the cut.
#[derive(Clone, Debug)]
pub struct Level {
    pub stride: usize,
    pub maps: Vec<usize>,
    pub shape: Shape,
}

/// A file's decoding, to be tried out.
pub struct Trial<'b, 'a> {
    pub body: &'b mut Body<'a>,
    pub cut: Cut<'a>,
    pub shapes: Vec<Shape>,
    pub levels: Vec<Level>,
    /// Axes of the output after the batch.
    pub output: [usize; 2],
    pub budget: Budget,
}

/// Finds the head of `body`.
///
/// # Errors
/// Says what was found instead.
pub fn recognise(body: &mut Body) -> Result<Found> {
    let read = cut::frontier(body);
    let raw = cut::raw(body, &read);
    let mut seen = None;
    let mut choices = vec![read.clone()];
    if raw != read {
        choices.push(raw);
    }
    for maps in choices {
        let Some(cut) = Cut::at(body, maps) else { continue };
        let shapes = cut.shapes(body);
        let Some(levels) = levels(&shapes, body.graph.meta.imgsz) else { continue };
        let mut trial = Trial { body, cut, shapes, levels, output: [0; 2], budget: cut::budget() };
        let zeros = trial.run(|_| 0.0)?;
        let &[_, rows, columns] = zeros.shape.as_slice() else {
            seen = Some(zeros.shape.clone());
            continue;
        };
        trial.output = [rows, columns];
        seen = Some(zeros.shape.clone());
        if let Some(found) = trial.search()? {
            return Ok(found);
        }
    }
    Err(refusal(body, &read, seen))
}

/// Maps by stride, in order of appearance; `None` if one of them does not divide the image.
fn levels(shapes: &[Shape], imgsz: [usize; 2]) -> Option<Vec<Level>> {
    let mut levels: Vec<Level> = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        let stride = imgsz[0].checked_div(shape.h)?;
        if stride == 0 || stride * shape.h != imgsz[0] || stride * shape.w != imgsz[1] {
            return None;
        }
        match levels.iter_mut().find(|l| l.stride == stride) {
            Some(level) => level.maps.push(i),
            None => levels.push(Level { stride, maps: vec![i], shape: *shape }),
        }
    }
    Some(levels)
}

impl Trial<'_, '_> {
    /// The first of the heads the shapes allow that computes what the file computes.
    fn search(&mut self) -> Result<Option<Found>> {
        for (head, order, layout) in guess::heads(self)? {
            if self.agrees(&head, &order, layout)? {
                let maps = order.iter().map(|&i| self.cut.maps[i]).collect();
                return Ok(Some(Found { head, maps }));
            }
        }
        Ok(None)
    }

    /// What the file makes of maps with `value` everywhere in map number `i`.
    pub fn run(&mut self, value: impl Fn(usize) -> f32) -> Result<Rc<Array>> {
        let maps = self.maps(|i, len| vec![value(i); len])?;
        self.run_on(&maps)
    }

    fn run_on(&mut self, maps: &[Rc<Array>]) -> Result<Rc<Array>> {
        self.cut.run(self.body, maps, &mut self.budget)
    }

    /// Maps of the values that `fill` makes, given a map's place and how many values it has.
    fn maps(&mut self, mut fill: impl FnMut(usize, usize) -> Vec<f32>) -> Result<Vec<Rc<Array>>> {
        let mut maps = Vec::with_capacity(self.shapes.len());
        for (i, s) in self.shapes.iter().enumerate() {
            let shape = vec![self.body.batch, s.c, s.h, s.w];
            let len = self.budget.take(&shape).map_err(|p| p.of(self.body.source))?;
            maps.push(Rc::new(Array::floats(shape, fill(i, len))));
        }
        Ok(maps)
    }

    /// Whether a map has been through a sigmoid already.
    pub fn is_squashed(&self, map: usize) -> bool {
        self.body.graph.nodes[self.cut.maps[map]].op == Op::Act(crate::Act::Sigmoid)
    }

    /// Whether the file makes of random maps what `head` makes of them, reading the maps of the cut in `order`.
    fn agrees(&mut self, head: &Head, order: &[usize], layout: Layout) -> Result<bool> {
        let fits = order.len() == head.inputs()
            && order.iter().enumerate().all(|(i, &map)| self.shapes[map].c == head.input_channels(i));
        if !fits {
            return Ok(false);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let squashed: Vec<bool> = (0..self.shapes.len()).map(|i| self.is_squashed(i)).collect();
        let maps = self.maps(|i, len| {
            let range = if squashed[i] { 0.0..1.0 } else { -3.0..3.0 };
            (0..len).map(|_| rng.random_range(range.clone())).collect()
        })?;
        let found = self.run_on(&maps)?;
        let inputs: Vec<_> = order.iter().map(|&i| (maps[i].clone(), self.shapes[i])).collect();
        let wanted = expected::run(head, layout, &inputs, &mut self.budget)?;
        let (Ok(a), Ok(b)) = (found.as_floats(), wanted.as_floats()) else { return Ok(false) };
        Ok(found.shape == wanted.shape && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-3 + 1e-5 * b.abs()))
    }
}

/// What was found where no head was recognised.
fn refusal(body: &Body, maps: &[NodeId], output: Option<Vec<usize>>) -> Error {
    let source = body.source;
    let help = "a detector is recognised if it was exported as YOLOv5, YOLOv8, YOLOX or by Prunella, without non-maximum \
                suppression; `predict`, `val` and `bench infer` may run the file as it is";
    if maps.contains(&0)
        && let Some(node) = body.first_deferred
    {
        let what = "does something to the image itself that no detector here does";
        return super::problem::Problem::new(what).hint(help).at(source.path, node);
    }
    let shapes: Vec<String> = maps
        .iter()
        .take(8)
        .map(|&id| format!("{}x{}x{}", body.shapes[id].c, body.shapes[id].h, body.shapes[id].w))
        .collect();
    let output = output.map_or("its output".into(), |s| format!("its output of {s:?}"));
    let first = body
        .first_deferred
        .map_or(String::new(), |n| format!("; the decoding begins at `{}` ({})", super::problem::title(n), n.op_type));
    let what =
        format!("{output} is decoded from {} maps ({}) as by no head known here{first}", maps.len(), shapes.join(", "));
    Error::format(source.path, what).at(format!("output `{}`", source.output)).hint(help)
}
