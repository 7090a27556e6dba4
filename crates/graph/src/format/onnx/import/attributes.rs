//! The attributes of a node.

use std::borrow::Borrow;

use super::Problem;
use super::array::Array;
use crate::format::onnx::proto::{AttributeProto, NodeProto};

impl NodeProto {
    fn find(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|a| a.name == name)
    }

    /// A whole number.
    pub(super) fn int(&self, name: &str) -> Option<i64> {
        self.find(name)?.i
    }

    /// A number.
    pub(super) fn float(&self, name: &str) -> Option<f32> {
        self.find(name)?.f
    }

    /// A word; `None` too where it is no UTF-8.
    pub(super) fn word(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.find(name)?.s.as_deref()?).ok()
    }

    /// Whole numbers.
    pub(super) fn ints(&self, name: &str) -> Option<&[i64]> {
        Some(&self.find(name)?.ints)
    }

    /// Whole numbers that older opsets keep in an attribute and newer ones in an input.
    pub(super) fn ints_or<A: Borrow<Array>>(
        &self,
        name: &str,
        input: impl FnOnce() -> Result<Option<A>, Problem>,
    ) -> Result<Option<Vec<i64>>, Problem> {
        match self.ints(name) {
            Some(values) => Ok(Some(values.to_vec())),
            None => input()?.map(|array| array.borrow().as_ints().map(<[i64]>::to_vec)).transpose(),
        }
    }

    /// The attribute itself, for those that hold tensors.
    pub(super) fn any(&self, name: &str) -> Option<&AttributeProto> {
        self.find(name)
    }

    /// Two sizes, `default` where nothing is said.
    pub(super) fn pair(&self, name: &str, default: usize) -> Result<[usize; 2], Problem> {
        let Some(values) = self.ints(name) else { return Ok([default; 2]) };
        let wrong = || Problem::new(format!("`{name}` is {values:?}, not two sizes"));
        let &[a, b] = values else { return Err(wrong()) };
        Ok([usize::try_from(a).map_err(|_| wrong())?, usize::try_from(b).map_err(|_| wrong())?])
    }
}

/// `axis` of a tensor with `axes` axes; negative ones count from the end.
pub fn axis(axis: i64, axes: usize) -> Result<usize, Problem> {
    let from_start = if axis < 0 { axis.checked_add(axes as i64).unwrap_or(-1) } else { axis };
    match usize::try_from(from_start) {
        Ok(a) if a < axes => Ok(a),
        _ => Err(format!("works on axis {axis} of {axes}").into()),
    }
}
