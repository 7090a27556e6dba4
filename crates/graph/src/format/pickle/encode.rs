//! The other direction: a tree of values as the bytes `pickle` of Python 2 and later reads (protocol 2), the numbers of its
//! tensors beside it.

use std::borrow::Cow;
use std::collections::HashMap;

/// A value to be written. It is a tree: what Python would share is written twice.
#[derive(Clone, Debug)]
pub(in crate::format) enum Py<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Cow<'a, str>),
    List(Vec<Self>),
    Tuple(Vec<Self>),
    Dict(Vec<(Self, Self)>),
    /// `collections.OrderedDict`.
    Ordered(Vec<(Self, Self)>),
    /// A set without elements.
    EmptySet,
    /// An instance of `module.class`, made without calling its `__init__`, its attributes set.
    Object {
        class: Class,
        state: Vec<(&'static str, Self)>,
    },
    /// `torch.Tensor`, row-major.
    Tensor(Numbers<'a>),
    /// `torch.nn.Parameter` that is not trained until a trainer says so, as in the checkpoints the families publish.
    Parameter(Numbers<'a>),
}

/// (module, name) of a class.
pub(in crate::format) type Class = (&'static str, &'static str);

/// Shape and values of a tensor.
#[derive(Clone, Debug)]
pub(in crate::format) struct Numbers<'a> {
    pub shape: Vec<usize>,
    pub values: Values<'a>,
}

/// Values of a tensor, with their type.
#[derive(Clone, Debug)]
pub(in crate::format) enum Values<'a> {
    F32(Cow<'a, [f32]>),
    I64(Vec<i64>),
}

impl<'a> Py<'a> {
    /// A string.
    pub fn str(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Str(text.into())
    }

    /// A size or an index; what memory can hold fits.
    pub fn size(n: usize) -> Self {
        Self::Int(n as i64)
    }

    /// (a, b), both sizes.
    pub fn pair([a, b]: [usize; 2]) -> Self {
        Self::Tuple(vec![Self::size(a), Self::size(b)])
    }

    /// The number a person would write for `x`: 0.001 and not 0.0010000000474974513. It turns back into the same `x`.
    pub fn short(x: f32) -> Self {
        Self::Float(x.to_string().parse().unwrap_or(f64::from(x)))
    }

    /// A dict with string keys.
    pub fn dict(pairs: Vec<(&'static str, Self)>) -> Self {
        Self::Dict(pairs.into_iter().map(|(k, v)| (Self::str(k), v)).collect())
    }

    /// A tensor of f32.
    pub fn tensor(shape: impl Into<Vec<usize>>, values: impl Into<Cow<'a, [f32]>>) -> Self {
        Self::Tensor(Numbers { shape: shape.into(), values: Values::F32(values.into()) })
    }

    /// A parameter of f32.
    pub fn parameter(shape: impl Into<Vec<usize>>, values: impl Into<Cow<'a, [f32]>>) -> Self {
        Self::Parameter(Numbers { shape: shape.into(), values: Values::F32(values.into()) })
    }
}

/// A written pickle: its bytes, and the storages its tensors name by their number, little-endian.
pub(in crate::format) struct Pickled {
    pub pickle: Vec<u8>,
    pub storages: Vec<Vec<u8>>,
}

/// Writes `root`. Its depth is the caller's to bound.
pub(in crate::format) fn encode(root: &Py<'_>) -> Pickled {
    let mut out = Encoder { bytes: vec![0x80, 2], storages: vec![], memo: HashMap::new() };
    out.value(root);
    out.bytes.push(b'.');
    Pickled { pickle: out.bytes, storages: out.storages }
}

struct Encoder {
    bytes: Vec<u8>,
    storages: Vec<Vec<u8>>,
    /// Number under which the opcodes of a string or class, once written, can be had again.
    memo: HashMap<Vec<u8>, u32>,
}

impl Encoder {
    fn value(&mut self, value: &Py<'_>) {
        match value {
            Py::None => self.bytes.push(b'N'),
            Py::Bool(b) => self.bytes.push(if *b { 0x88 } else { 0x89 }),
            Py::Int(i) => self.int(*i),
            Py::Float(f) => {
                self.bytes.push(b'G');
                self.bytes.extend(f.to_be_bytes());
            }
            Py::Str(text) => self.str(text),
            Py::List(items) => {
                self.bytes.extend(b"](");
                items.iter().for_each(|item| self.value(item));
                self.bytes.push(b'e');
            }
            Py::Tuple(items) => {
                self.bytes.push(b'(');
                items.iter().for_each(|item| self.value(item));
                self.bytes.push(b't');
            }
            Py::Dict(pairs) => {
                self.bytes.push(b'}');
                self.pairs(pairs);
            }
            Py::Ordered(pairs) => {
                self.empty_ordered();
                self.pairs(pairs);
            }
            Py::EmptySet => {
                self.class(("__builtin__", "set"));
                self.bytes.extend(b"]\x85R");
            }
            Py::Object { class, state } => {
                self.class(*class);
                self.bytes.extend(b")\x81}(");
                for (name, value) in state {
                    self.str(name);
                    self.value(value);
                }
                self.bytes.extend(b"ub");
            }
            Py::Tensor(numbers) => self.tensor(numbers),
            Py::Parameter(numbers) => {
                self.class(("torch._utils", "_rebuild_parameter"));
                self.tensor(numbers);
                self.bytes.push(0x89);
                self.empty_ordered();
                self.bytes.extend(b"\x87R");
            }
        }
    }

    fn pairs(&mut self, pairs: &[(Py<'_>, Py<'_>)]) {
        self.bytes.push(b'(');
        for (key, value) in pairs {
            self.value(key);
            self.value(value);
        }
        self.bytes.push(b'u');
    }

    /// `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
    fn tensor(&mut self, Numbers { shape, values }: &Numbers<'_>) {
        let (class, len, raw): (_, _, Vec<u8>) = match values {
            Values::F32(v) => ("FloatStorage", v.len(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Values::I64(v) => ("LongStorage", v.len(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        self.class(("torch._utils", "_rebuild_tensor_v2"));
        self.bytes.extend(b"((");
        self.str("storage");
        self.class(("torch", class));
        self.str(&self.storages.len().to_string());
        self.str("cpu");
        self.int(len as i64);
        self.bytes.extend(b"tQK\x00");
        for sizes in [shape, &strides] {
            self.value(&Py::Tuple(sizes.iter().map(|&n| Py::size(n)).collect()));
        }
        self.bytes.push(0x89);
        self.empty_ordered();
        self.bytes.extend(b"tR");
        self.storages.push(raw);
    }

    fn empty_ordered(&mut self) {
        self.class(("collections", "OrderedDict"));
        self.bytes.extend(b")R");
    }

    fn int(&mut self, i: i64) {
        if let Ok(byte) = u8::try_from(i) {
            self.bytes.extend([b'K', byte]);
        } else if let Ok(word) = i32::try_from(i) {
            self.bytes.push(b'J');
            self.bytes.extend(word.to_le_bytes());
        } else {
            self.bytes.extend([0x8a, 8]);
            self.bytes.extend(i.to_le_bytes());
        }
    }

    fn str(&mut self, text: &str) {
        let mut opcodes = vec![b'X'];
        // A longer string than 4 GiB has no place in a graph that was loaded from a file.
        opcodes.extend((text.len() as u32).to_le_bytes());
        opcodes.extend(text.as_bytes());
        self.memoised(opcodes);
    }

    fn class(&mut self, (module, name): Class) {
        self.memoised(format!("c{module}\n{name}\n").into_bytes());
    }

    /// `opcodes`, or where they were written before what gets their result again.
    fn memoised(&mut self, opcodes: Vec<u8>) {
        let next = self.memo.len() as u32;
        let (opcode, key) = match self.memo.get(&opcodes) {
            Some(&key) => ([b'h', b'j'], key),
            None => {
                self.bytes.extend(&opcodes);
                self.memo.insert(opcodes, next);
                ([b'q', b'r'], next)
            }
        };
        match u8::try_from(key) {
            Ok(byte) => self.bytes.extend([opcode[0], byte]),
            Err(_) => {
                self.bytes.push(opcode[1]);
                self.bytes.extend(key.to_le_bytes());
            }
        }
    }
}
