//! Prunella's own file: one safetensors file with the weights as tensors and the graph as JSON in its metadata.
//!
//! Tensors are named `{node}.{weight}` and are f32; the metadata key `prunella` holds [`Header`]. So a pruned model
//! reloads with nothing beside it, and any safetensors reader can look at its weights.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::{Error, Graph, Op, Result, Tensor};

const FORMAT_VERSION: u32 = 1;
const KEY: &str = "prunella";

/// What the metadata holds beside the tensors; `graph` has no weights (see [`Op`]).
#[derive(Serialize, Deserialize)]
struct Header<'a> {
    format_version: u32,
    graph: Cow<'a, Graph>,
}

/// Just enough of a [`Header`] to tell whether the rest can be read.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

/// Writes `graph` to `path`, whole or not at all; every f32 comes back bit for bit.
///
/// # Errors
/// The graph is invalid (see [`Graph::validate`]) or the file cannot be written.
pub fn save(graph: &Graph, path: &Path) -> Result<()> {
    write_whole(path, &to_bytes(graph, path)?)
}

/// The bytes [`save`] writes; `path` is for messages.
///
/// # Errors
/// The graph is invalid (see [`Graph::validate`]).
pub fn to_bytes(graph: &Graph, path: &Path) -> Result<Vec<u8>> {
    graph.validate()?;
    let header = Header { format_version: FORMAT_VERSION, graph: Cow::Borrowed(graph) };
    let json = serde_json::to_string(&header).map_err(|e| Error::format(path, format!("cannot be described: {e}")))?;
    let tensors = graph.nodes.iter().flat_map(|node| {
        let shaped = move |(what, values): (&str, &[f32])| {
            let shape = match &node.op {
                Op::Conv(conv) if what == "weight" => conv.weight.shape.clone(),
                _ => vec![values.len()],
            };
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (format!("{}.{what}", node.name), Stored { shape, bytes })
        };
        node.op.weights().into_iter().map(shaped)
    });
    safetensors::serialize(tensors, Some(HashMap::from([(KEY.to_owned(), json)])))
        .map_err(|e| Error::format(path, format!("cannot be described: {e}")))
}

/// What files begin with that are not whole yet: such a one is left where a program is killed while it writes.
pub const UNFINISHED: &str = ".prunella-";

/// Writes `bytes` to `path` whole or not at all: beside it, to disk, then renamed over it.
///
/// # Errors
/// [`Error::Io`] naming `path`; what was there before is untouched.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut beside = share(tempfile::Builder::new().prefix(UNFINISHED)).tempfile_in(folder)?;
        beside.write_all(bytes)?;
        beside.as_file().sync_all()?;
        beside.persist(path).map_err(|e| e.error)?;
        sync_folder(folder)
    };
    // The kind alone: the error itself names the file beside it, which nobody has heard of.
    write().map_err(|e| Error::io("write", path, e.kind().into()))
}

/// Temporary files are private to their owner; a model is an ordinary file, as readable as the umask allows.
#[cfg(unix)]
fn share<'a, 'b>(file: &'b mut tempfile::Builder<'a, 'a>) -> &'b mut tempfile::Builder<'a, 'a> {
    use std::os::unix::fs::PermissionsExt;
    file.permissions(std::fs::Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn share<'a, 'b>(file: &'b mut tempfile::Builder<'a, 'a>) -> &'b mut tempfile::Builder<'a, 'a> {
    file
}

/// The rename itself survives a power cut only once the folder is on disk.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Reads what [`save`] wrote; not validated yet.
///
/// # Errors
/// Not a native file, of a later version, or with a tensor missing, left over or of the wrong type or shape.
pub(super) fn load(path: &Path) -> Result<Graph> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    from_bytes(path, &bytes)
}

/// The same from memory; `path` is for messages.
///
/// # Errors
/// Not a native file, of a later version, or with a tensor missing, left over or of the wrong type or shape.
pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Graph> {
    const DAMAGED: &str = "the file is damaged or truncated; copy or save it again";
    let damaged = |what: String| Error::format(path, what).hint(DAMAGED);
    let (_, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|e| damaged(format!("is no readable safetensors file: {e}")))?;
    let Some(json) = metadata.metadata().as_ref().and_then(|m| m.get(KEY)) else {
        return Err(Error::format(path, format!("has no `{KEY}` metadata, so it holds weights without their graph"))
            .hint("only files Prunella saved load from .safetensors; give the original .pt, .cfg or .onnx"));
    };
    let unreadable = |e: serde_json::Error| damaged(format!("cannot be read: {e}")).at(format!("metadata `{KEY}`"));
    let Version { format_version } = serde_json::from_str(json).map_err(unreadable)?;
    if format_version != FORMAT_VERSION {
        return Err(Error::format(
            path,
            format!("is of version {format_version}, this program reads {FORMAT_VERSION}"),
        )
        .hint("update Prunella, or save the model again with the version that wrote it"));
    }
    let mut graph = serde_json::from_str::<Header<'_>>(json).map_err(unreadable)?.graph.into_owned();
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(format!("is no readable safetensors file: {e}")))?;

    let mut unread: HashMap<String, _> = file.tensors().into_iter().collect();
    for node in &mut graph.nodes {
        let mut take = |what: &str| {
            let name = format!("{}.{what}", node.name);
            let Some(view) = unread.remove(&name) else { return Ok(None) };
            if view.dtype() != Dtype::F32 {
                return Err(damaged(format!("is {:?}, not F32", view.dtype())).at(format!("tensor `{name}`")));
            }
            let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            Ok(Some(Tensor::new(view.shape().to_vec(), values.collect())))
        };
        fill(&mut node.op, &mut take).map_err(|lack| match lack {
            Lack::File(e) => e,
            Lack::Missing(what) => damaged(format!("node `{}` has no `{what}`", node.name)),
            Lack::Shape { what, got, want } => {
                damaged(format!("node `{}`: `{what}` has shape {got:?}, {want} is due", node.name))
            }
        })?;
    }
    if let Some(name) = unread.keys().min() {
        return Err(
            damaged(format!("belongs to no node ({} such tensors)", unread.len())).at(format!("tensor `{name}`"))
        );
    }
    Ok(graph)
}

/// Why an operator cannot be given its weights.
enum Lack {
    File(Error),
    Missing(&'static str),
    Shape { what: &'static str, got: Vec<usize>, want: String },
}

/// Gives an operator its weights. Sizes come from the tensors: whether they fit the graph is for validation to say.
fn fill(op: &mut Op, take: &mut dyn FnMut(&'static str) -> Result<Option<Tensor>>) -> Result<(), Lack> {
    let mut take = |what| take(what).map_err(Lack::File);
    match op {
        Op::Conv(conv) => {
            conv.weight = take("weight")?.ok_or(Lack::Missing("weight"))?;
            let [filters, _, _, _] = conv.weight.shape[..] else {
                let got = conv.weight.shape.clone();
                return Err(Lack::Shape { what: "weight", got, want: "(O, I, KH, KW)".into() });
            };
            conv.bias = take("bias")?.map(|b| vector("bias", b, filters)).transpose()?;
        }
        Op::BatchNorm(bn) => {
            bn.gamma = take("weight")?.ok_or(Lack::Missing("weight"))?.data;
            let channels = bn.gamma.len();
            let slots = [("bias", &mut bn.beta), ("running_mean", &mut bn.mean), ("running_var", &mut bn.var)];
            for (what, slot) in slots {
                *slot = vector(what, take(what)?.ok_or(Lack::Missing(what))?, channels)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn vector(what: &'static str, tensor: Tensor, len: usize) -> Result<Vec<f32>, Lack> {
    if tensor.shape != [len] {
        return Err(Lack::Shape { what, got: tensor.shape, want: format!("[{len}]") });
    }
    Ok(tensor.data)
}

/// A tensor on its way into the file.
struct Stored {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl safetensors::View for Stored {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
