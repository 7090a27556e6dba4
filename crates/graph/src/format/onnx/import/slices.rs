//! Parts of maps: channels, and the phases YOLO's `Focus` is made of.

use super::attributes::axis;
use super::body::{Body, Value};
use super::problem::Problem;
use super::window::{Range, ranges, split_sizes};
use crate::format::onnx::proto::NodeProto;
use crate::{NodeId, Op};

impl Body<'_> {
    /// `Slice`: channels in a row, or every other row or column; `None` for anything else.
    pub(super) fn slice(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Result<Option<Value>, Problem> {
        let (of, mut row, mut column) = match inputs.first() {
            Some(Some(Value::Map(id))) => (*id, None, None),
            Some(Some(Value::Phase { of, row, column })) => (*of, *row, *column),
            _ => return Ok(None),
        };
        let map = self.shapes[of];
        let [h, w] = [(map.h, row), (map.w, column)].map(|(size, phase)| if phase.is_some() { size / 2 } else { size });
        let shape = [self.batch, map.c, h, w];
        let all = ranges(&shape, |name, i| self.numbers_of(node, name, inputs, i))?;
        let whole = |r: Range, size: usize| r == Range { start: 0, step: 1, len: size };
        if !whole(all[0], self.batch) {
            return Ok(None);
        }
        let channels = all[1];
        if whole(all[2], h) && whole(all[3], w) {
            return Ok(match (row, column) {
                (None, None) if whole(channels, map.c) => Some(Value::Map(of)),
                (None, None) if channels.step == 1 && channels.len > 0 => {
                    let op = Op::Slice { start: channels.start, len: channels.len };
                    Some(Value::Map(self.push(node, "", op, vec![of])?))
                }
                _ => None,
            });
        }
        for (range, phase, size) in [(all[2], &mut row, h), (all[3], &mut column, w)] {
            match range {
                r if whole(r, size) => {}
                Range { start: start @ 0..2, step: 2, len } if phase.is_none() && 2 * len == size => {
                    *phase = Some(start)
                }
                _ => return Ok(None),
            }
        }
        Ok(whole(channels, map.c).then_some(Value::Phase { of, row, column }))
    }

    /// `Split` along the channels; `None` along anything else.
    pub(super) fn split(
        &mut self,
        node: &NodeProto,
        x: NodeId,
        inputs: &[Option<Value>],
    ) -> Result<Option<Vec<Value>>, Problem> {
        if axis(node.int("axis").unwrap_or(0), 4)? != 1 {
            return Ok(None);
        }
        let stated = self.numbers_of(node, "split", inputs, 1)?;
        let sizes = split_sizes(node, self.shapes[x].c, stated)?;
        let mut start = 0;
        let mut parts = Vec::with_capacity(sizes.len());
        for (i, len) in sizes.into_iter().enumerate() {
            parts.push(Value::Map(self.push(node, &format!(".{i}"), Op::Slice { start, len }, vec![x])?));
            start += len;
        }
        Ok(Some(parts))
    }
}

/// Whether a `Concat` of maps joins along the channels.
pub(super) fn joins_channels(node: &NodeProto) -> Result<bool, Problem> {
    let along = node.int("axis").ok_or("does not say along which axis")?;
    Ok(axis(along, 4)? == 1)
}

/// `Concat` of the four phases of one map.
pub(super) fn phases(node: &NodeProto, inputs: &[Option<Value>]) -> Result<Option<Value>, Problem> {
    let parts: Vec<_> = inputs
        .iter()
        .filter_map(|v| match v {
            Some(Value::Phase { of, row: Some(row), column: Some(column) }) => Some((*of, [*row, *column])),
            _ => None,
        })
        .collect();
    let &[(of, a), (of_b, b), (of_c, c), (of_d, d)] = parts.as_slice() else { return Ok(None) };
    let order = [a, b, c, d];
    let mut sorted = order;
    sorted.sort_unstable();
    let complete = sorted == [[0, 0], [0, 1], [1, 0], [1, 1]];
    let one = inputs.len() == 4 && [of_b, of_c, of_d] == [of; 3];
    Ok((complete && one && joins_channels(node)?).then_some(Value::Phases { of, order }))
}
