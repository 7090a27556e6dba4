//! An ONNX tensor as numbers: f32, or i64 for shapes, indices and truth values.

use crate::format::torch::half;

use super::Problem;
use crate::format::onnx::proto::{BOOL, DOUBLE, FLOAT, FLOAT16, INT8, INT32, INT64, TensorProto, UINT8};

/// Most values of one tensor.
const LARGEST: usize = 1 << 26;
/// Most axes of one tensor.
pub const MOST_AXES: usize = 16;

/// What a tensor of `shape` costs whoever walks along its axes: its values, with an axis of length 0 counted as one of 1. The
/// other axes beside it may be of any length and hold nothing, until one of them is summed or joined. `None` where it is
/// more than any decoding needs.
pub fn extent(shape: &[usize]) -> Option<usize> {
    let all = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d.max(1)));
    all.filter(|&n| n <= LARGEST && shape.len() <= MOST_AXES)
}

/// A dense, row-major tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Data,
}

/// The numbers of an [`Array`].
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Floats(Vec<f32>),
    Ints(Vec<i64>),
}

impl Array {
    /// Wraps `data`, as many values as `shape` says.
    pub fn floats(shape: Vec<usize>, data: Vec<f32>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Self { shape, data: Data::Floats(data) }
    }

    /// A vector of whole numbers.
    pub fn ints(data: Vec<i64>) -> Self {
        Self { shape: vec![data.len()], data: Data::Ints(data) }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match &self.data {
            Data::Floats(v) => v.len(),
            Data::Ints(v) => v.len(),
        }
    }

    /// The values, if they are f32.
    pub fn as_floats(&self) -> Result<&[f32], Problem> {
        match &self.data {
            Data::Floats(v) => Ok(v),
            Data::Ints(_) => Err("reads whole numbers where it needs f32".into()),
        }
    }

    /// The values, if they are whole numbers.
    pub fn as_ints(&self) -> Result<&[i64], Problem> {
        match &self.data {
            Data::Ints(v) => Ok(v),
            Data::Floats(_) => Err("reads f32 where it needs whole numbers".into()),
        }
    }

    /// Decodes a tensor of a file.
    pub fn decode(tensor: &TensorProto) -> Result<Self, Problem> {
        let name = &tensor.name;
        if tensor.data_location != 0 || !tensor.external_data.is_empty() {
            return Err(Problem::new(format!("the numbers of `{name}` are in another file"))
                .hint("save the model with its weights inside, for example onnx.save(onnx.load(path), path)"));
        }
        let shape: Option<Vec<usize>> = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let shape = shape.ok_or_else(|| Problem::new(format!("`{name}` has shape {:?}", tensor.dims)))?;
        let raw = &tensor.raw_data;
        let words = |t: &TensorProto| t.int32_data.iter().map(|&v| i64::from(v)).collect();
        let data = match tensor.data_type {
            FLOAT if raw.is_empty() => Data::Floats(tensor.float_data.clone()),
            FLOAT => Data::Floats(each(name, raw, f32::from_le_bytes)?),
            DOUBLE if raw.is_empty() => Data::Floats(tensor.double_data.iter().map(|&v| v as f32).collect()),
            DOUBLE => Data::Floats(each(name, raw, |b| f64::from_le_bytes(b) as f32)?),
            FLOAT16 if raw.is_empty() => Data::Floats(tensor.int32_data.iter().map(|&v| half(v as u16)).collect()),
            FLOAT16 => Data::Floats(each(name, raw, |b| half(u16::from_le_bytes(b)))?),
            INT64 if raw.is_empty() => Data::Ints(tensor.int64_data.clone()),
            INT64 => Data::Ints(each(name, raw, i64::from_le_bytes)?),
            INT32 | BOOL | INT8 | UINT8 if raw.is_empty() => Data::Ints(words(tensor)),
            INT32 => Data::Ints(each(name, raw, |b| i64::from(i32::from_le_bytes(b)))?),
            INT8 => Data::Ints(each(name, raw, |b| i64::from(i8::from_le_bytes(b)))?),
            UINT8 => Data::Ints(each(name, raw, |[b]| i64::from(b))?),
            BOOL => Data::Ints(each(name, raw, |[b]| i64::from(b))?),
            other => {
                return Err(Problem::new(format!("`{name}` is of ONNX type {other}"))
                    .hint("only f32, f16, f64 and int8 weights can be read; export the model in one of them"));
            }
        };
        let array = Self { shape, data };
        let expected = array.shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        if expected != Some(array.len()) {
            let held = array.len();
            return Err(Problem::new(format!("`{name}` has shape {:?}, the file holds {held} values", array.shape))
                .hint("the file is damaged; copy it again or repeat the export"));
        }
        if extent(&array.shape).is_none() {
            return Err(format!("`{name}` has shape {:?}, larger than a weight of any detector", tensor.dims).into());
        }
        Ok(array)
    }
}

/// The little-endian numbers of N bytes in `raw`.
fn each<const N: usize, T>(name: &str, raw: &[u8], convert: impl Fn([u8; N]) -> T) -> Result<Vec<T>, Problem> {
    let (numbers, rest) = raw.as_chunks::<N>();
    match rest.len() {
        0 => Ok(numbers.iter().map(|&b| convert(b)).collect()),
        left => Err(format!("`{name}` ends {left} bytes into a number of {N}").into()),
    }
}
