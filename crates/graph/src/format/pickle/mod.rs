//! A pickle reader that builds records and runs nothing: the bytes become a [`Pickle`], a plain tree of values.
//!
//! Unpickling in Python calls whatever the file names. Here a class or function is only ever a name beside its arguments,
//! and a name outside the allow-list of `globals` stops the reading. Values live in an arena and refer to each other
//! by [`Id`], so shared and cyclic references cost nothing and memory grows no faster than the file is long.

mod decode;
pub(super) mod encode;
mod globals;

/// Index of a value in its [`Pickle`].
pub(super) type Id = usize;

/// One value of the tree.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits; nothing we read is one, so its value is dropped.
    BigInt,
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    /// A dict or an OrderedDict, in the order of the file.
    Dict(Vec<(Id, Id)>),
    Set(Vec<Id>),
    /// A class or function, by name.
    Global {
        module: String,
        name: String,
    },
    /// What the file wants built by `class(*args)`, with the state it wants set afterwards.
    Object {
        class: Id,
        args: Id,
        state: Option<Id>,
    },
    /// A reference to something outside the pickle (PyTorch: a storage).
    Persistent(Id),
}

/// A decoded pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

/// Why a pickle cannot be decoded.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    /// Byte of the opcode at which reading stopped.
    pub offset: usize,
    pub what: String,
    pub help: Option<String>,
}

impl Pickle {
    /// Decodes a pickle of protocol 2 to 5.
    ///
    /// # Errors
    /// Truncated or malformed input, an opcode of protocols 0 and 1, a global outside the allow-list.
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        decode::decode(bytes)
    }

    /// The value the file is about.
    pub fn root(&self) -> Ref<'_> {
        Ref { pickle: self, id: self.root }
    }
}

/// A value with the pickle it lives in: the way to walk the tree. Lookups return `None` where the kind does not fit.
#[derive(Clone, Copy)]
pub(super) struct Ref<'a> {
    pickle: &'a Pickle,
    /// Equal ids are the same Python object.
    pub id: Id,
}

impl<'a> Ref<'a> {
    /// The value itself.
    pub fn value(self) -> &'a Value {
        &self.pickle.values[self.id]
    }

    fn of(self, id: Id) -> Self {
        Self { pickle: self.pickle, id }
    }

    /// True for Python's `None`.
    pub fn is_none(self) -> bool {
        matches!(self.value(), Value::None)
    }

    /// The bool.
    pub fn bool(self) -> Option<bool> {
        if let Value::Bool(b) = self.value() { Some(*b) } else { None }
    }

    /// The integer.
    pub fn int(self) -> Option<i64> {
        if let Value::Int(i) = self.value() { Some(*i) } else { None }
    }

    /// The integer, where it is no less than 0.
    pub fn index(self) -> Option<usize> {
        self.int().and_then(|i| usize::try_from(i).ok())
    }

    /// The number, whole or not.
    pub fn float(self) -> Option<f64> {
        match self.value() {
            Value::Int(i) => Some(*i as f64),
            Value::Float(f) => Some(*f),
            _ => None,
        }
    }

    /// The string.
    pub fn str(self) -> Option<&'a str> {
        if let Value::Str(s) = self.value() { Some(s) } else { None }
    }

    /// Elements of a list, tuple or set, or of the `torch.Size` or set a list is made into.
    pub fn items(self) -> Option<impl ExactSizeIterator<Item = Ref<'a>> + Clone> {
        let made = match (self.class(), self.args().map(Ref::value)) {
            (Some((_, "Size" | "set" | "frozenset")), Some(Value::Tuple(args))) => args.first().map(|&id| self.of(id)),
            _ => None,
        };
        match made.unwrap_or(self).value() {
            Value::List(v) | Value::Tuple(v) | Value::Set(v) => Some(v.iter().map(move |&id| self.of(id))),
            _ => None,
        }
    }

    /// Elements, where there are exactly N.
    pub fn array<const N: usize>(self) -> Option<[Ref<'a>; N]> {
        self.items()?.collect::<Vec<_>>().try_into().ok()
    }

    /// Pairs of a dict.
    pub fn pairs(self) -> Option<impl ExactSizeIterator<Item = (Ref<'a>, Ref<'a>)>> {
        match self.value() {
            Value::Dict(v) => Some(v.iter().map(move |&(k, v)| (self.of(k), self.of(v)))),
            _ => None,
        }
    }

    /// The value a dict holds under a string key; the last one where a key is written twice, as Python would have it.
    pub fn key(self, key: &str) -> Option<Ref<'a>> {
        self.pairs()?.filter(|(k, _)| k.str() == Some(key)).last().map(|(_, v)| v)
    }

    /// The class of an object as (module, name).
    pub fn class(self) -> Option<(&'a str, &'a str)> {
        let Value::Object { class, .. } = self.value() else { return None };
        self.of(*class).global()
    }

    /// (module, name) of a class or function.
    pub fn global(self) -> Option<(&'a str, &'a str)> {
        if let Value::Global { module, name } = self.value() { Some((module, name)) } else { None }
    }

    /// Arguments an object is to be built from.
    pub fn args(self) -> Option<Ref<'a>> {
        if let Value::Object { args, .. } = self.value() { Some(self.of(*args)) } else { None }
    }

    /// An attribute of an object: what its state, a dict, holds under `name`.
    pub fn attr(self, name: &str) -> Option<Ref<'a>> {
        if let Value::Object { state: Some(state), .. } = self.value() { self.of(*state).key(name) } else { None }
    }

    /// What a persistent id refers by.
    pub fn persistent(self) -> Option<Ref<'a>> {
        if let Value::Persistent(id) = self.value() { Some(self.of(*id)) } else { None }
    }
}

#[cfg(test)]
mod tests;
