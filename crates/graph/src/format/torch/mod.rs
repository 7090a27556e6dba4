//! The archive `torch.save` writes: a zip of one pickle and the raw storages its tensors point into.

pub(super) mod write;

use std::cell::{Cell, RefCell};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use super::pickle::{Pickle, Ref};
use crate::{Error, Result, Tensor};

const AGAIN: &str = "the file is damaged or truncated; download or save it again";

/// An opened `.pt` file, its pickle decoded, its storages read on demand.
pub(super) struct Checkpoint {
    path: PathBuf,
    zip: RefCell<ZipArchive<Cursor<Vec<u8>>>>,
    /// Folder inside the zip that everything lies in ("archive", or the file's name when it was saved).
    folder: String,
    pickle: Pickle,
    /// Name and bytes of the storage that was read last: many tensors may be windows on one.
    last: RefCell<(String, Vec<u8>)>,
    /// How many bytes of storages may still be read, and values of tensors made. A storage takes its bytes in the file once, yet
    /// any number of tensors can be windows on it, so that a small file could ask for more than memory, or patience, holds.
    left: Cell<usize>,
}

impl Checkpoint {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// Not readable, no zip (damaged, or saved before PyTorch 1.6), big-endian, or a pickle that cannot be decoded.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        Self::from_bytes(path, bytes)
    }

    /// The same from memory; `path` is for messages.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        if !bytes.starts_with(b"PK") {
            return Err(no_zip(path, &bytes));
        }
        // Tensors of a model do not overlap, and a value has a byte at least: bytes and values are at most twice the file. Twice
        // that leaves room for what is read twice.
        let left = Cell::new(4 * bytes.len());
        let mut zip = ZipArchive::new(Cursor::new(bytes))
            .map_err(|e| Error::format(path, format!("no readable zip archive: {e}")).hint(AGAIN))?;
        let folder = zip
            .file_names()
            .filter_map(|name| Some(name.ok()?.strip_suffix("/data.pkl")?.to_owned()))
            .min_by_key(String::len)
            .ok_or_else(|| Error::format(path, "holds no `data.pkl`").hint("save the model with torch.save"))?;
        if zip.index_for_name(&format!("{folder}/constants.pkl")).is_some() {
            return Err(Error::format(path, "is a TorchScript archive, which holds code instead of a module tree")
                .hint("give the training checkpoint (best.pt, last.pt) instead of the exported file"));
        }
        let order = format!("{folder}/byteorder");
        if zip.index_for_name(&order).is_some() && entry(path, &mut zip, &order)? != b"little" {
            return Err(Error::format(path, "was saved on a big-endian machine").hint("save it again on another one"));
        }
        let pickled = entry(path, &mut zip, &format!("{folder}/data.pkl"))?;
        let pickle = Pickle::decode(&pickled).map_err(|fault| {
            let error = Error::format(path, fault.what).at(format!("data.pkl, byte {}", fault.offset));
            match fault.help {
                Some(help) => error.hint(help),
                None => error.hint(AGAIN),
            }
        })?;
        Ok(Self { path: path.to_owned(), zip: RefCell::new(zip), folder, pickle, last: RefCell::default(), left })
    }

    /// What was saved.
    pub fn root(&self) -> Ref<'_> {
        self.pickle.root()
    }

    /// An error about this file, at `place` (a module or tensor).
    pub fn error(&self, place: impl Into<String>, what: impl Into<String>) -> Error {
        Error::format(&self.path, what).at(place)
    }

    /// The tensor or parameter a value describes, row-major, whatever its strides, its numbers turned to f32.
    ///
    /// # Errors
    /// Not a tensor, a shape that does not fit its storage, a storage that is missing or of the wrong length.
    pub fn tensor(&self, value: Ref<'_>, place: &str) -> Result<Tensor> {
        let fail = |what: String| self.error(place, what).hint(AGAIN);
        let view = View::of(value).ok_or_else(|| fail("is no tensor this reader knows".into()))?;
        let element = Element::of(view.storage).ok_or_else(|| fail(format!("has storage type `{}`", view.storage)))?;
        let name = format!("{}/data/{}", self.folder, view.key);
        let values = view.shape.iter().fold(1, |n: usize, &s| n.saturating_mul(s));
        let spend = |cost: usize| {
            let left = self.left.get().checked_sub(cost).ok_or_else(|| {
                fail(format!("is one of many windows on `{name}`: together they have more values than the file"))
            })?;
            self.left.set(left);
            Ok(())
        };
        spend(values.min(view.len))?;
        let mut last = self.last.borrow_mut();
        if last.0 != name {
            let raw = entry(&self.path, &mut self.zip.borrow_mut(), &name)?;
            spend(raw.len())?;
            *last = (name.clone(), raw);
        }
        let raw = &last.1;
        let width = element.width();
        if raw.len() / width != view.len || !raw.len().is_multiple_of(width) {
            return Err(fail(format!("`{name}` holds {} bytes, {} values of {width} are due", raw.len(), view.len)));
        }
        let index = view.indices().ok_or_else(|| {
            fail(format!(
                "shape {:?} with strides {:?} at {} leaves its storage of {} values",
                view.shape, view.strides, view.offset, view.len
            ))
        })?;
        let data = index.into_iter().map(|i| element.read(&raw[i * width..(i + 1) * width])).collect();
        Ok(Tensor::new(view.shape, data))
    }
}

/// Bytes of one entry, checked against its CRC. PyTorch stores, never deflates: so no entry is longer than the file.
fn entry(path: &Path, zip: &mut ZipArchive<Cursor<Vec<u8>>>, name: &str) -> Result<Vec<u8>> {
    let fail = |what: String| Error::format(path, what).at(name).hint(AGAIN);
    let mut file = zip.by_name(name).map_err(|e| fail(format!("cannot be read from the archive: {e}")))?;
    if file.compression() != zip::CompressionMethod::Stored {
        return Err(fail("is compressed, which torch.save never does".into()));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| fail(format!("cannot be read from the archive: {e}")))?;
    Ok(bytes)
}

fn no_zip(path: &Path, bytes: &[u8]) -> Error {
    const RESAVE: &str =
        "load it in Python and save it again: `torch.save(torch.load(file), file)` (PyTorch 1.6 or later)";
    if bytes.is_empty() {
        return Error::format(path, "is empty").hint(AGAIN);
    }
    if bytes.starts_with(&[0x80, 0x02]) {
        return Error::format(path, "is in the format PyTorch used before 1.6").hint(RESAVE);
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Error::format(path, "is in the tar format PyTorch used before 0.1.10").hint(RESAVE);
    }
    Error::format(path, "is no zip archive, so no file torch.save wrote").at("byte 0").hint(AGAIN)
}

/// A tensor as the pickle describes it: a strided window on a storage.
struct View<'a> {
    /// Class of the storage, such as `HalfStorage`.
    storage: &'a str,
    /// Its name under `data/`.
    key: &'a str,
    /// Its length in values.
    len: usize,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<'a> View<'a> {
    /// Reads `_rebuild_tensor_v2(storage, offset, shape, strides, ...)`, within `_rebuild_parameter(tensor, ...)` or not.
    fn of(value: Ref<'a>) -> Option<Self> {
        let mut value = value;
        if value.class() == Some(("torch._utils", "_rebuild_parameter")) {
            value = value.args()?.items()?.next()?;
        }
        let (module, function) = value.class()?;
        if module != "torch._utils" || !matches!(function, "_rebuild_tensor" | "_rebuild_tensor_v2") {
            return None;
        }
        let mut args = value.args()?.items()?;
        let storage = args.next()?.persistent()?;
        let [tag, class, key, _device, len] = storage.array()?;
        if tag.str() != Some("storage") {
            return None;
        }
        let offset = args.next()?.index()?;
        let mut sizes = || args.next()?.items()?.map(Ref::index).collect::<Option<Vec<_>>>();
        let (shape, strides) = (sizes()?, sizes()?);
        let (storage, key, len) = (class.global()?.1, key.str()?, len.index()?);
        (shape.len() == strides.len()).then_some(Self { storage, key, len, offset, shape, strides })
    }

    /// Place in the storage of every value, row-major; `None` where one lies outside, or where a tensor claims more
    /// values than its storage has (an expanded view: no weight is one).
    fn indices(&self) -> Option<Vec<usize>> {
        let count = self.shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).filter(|&n| n <= self.len)?;
        if count == 0 {
            return Some(vec![]);
        }
        let reach = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |last, (&size, &stride)| last.checked_add((size - 1).checked_mul(stride)?))?;
        if reach >= self.len {
            return None;
        }
        let mut all = vec![self.offset];
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            all = all.iter().flat_map(|&base| (0..size).map(move |i| base + i * stride)).collect();
        }
        Some(all)
    }
}

/// Type of a storage's values.
#[derive(Clone, Copy)]
enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Element {
    fn of(storage: &str) -> Option<Self> {
        Some(match storage {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    fn width(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// One value from its little-endian bytes (as many as [`Element::width`]).
    fn read(self, raw: &[u8]) -> f32 {
        let bits = raw.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        match self {
            Self::F64 => f64::from_bits(bits) as f32,
            Self::F32 => f32::from_bits(bits as u32),
            Self::F16 => half(bits as u16),
            Self::Bf16 => f32::from_bits((bits as u32) << 16),
            Self::I64 => bits as i64 as f32,
            Self::I32 => bits as i32 as f32,
            Self::I16 => f32::from(bits as i16),
            Self::I8 => f32::from(bits as i8),
            Self::U8 | Self::Bool => bits as f32,
        }
    }
}

/// IEEE 754 binary16 to binary32; exact.
pub(super) fn half(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    match exponent {
        0 => sign * fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn half_precision_is_exact() {
        let cases = [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 2f32.powi(-24)),
            (0x03ff, 1023.0 * 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x3555, 0.333_251_95),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(half(bits).to_bits(), f32::to_bits(value), "{bits:#06x}");
        }
        assert!(half(0x7e00).is_nan());
    }
}
