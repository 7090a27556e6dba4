//! What an exported file says of itself, in the keys and notation Ultralytics uses.

use std::path::Path;

use prost::Message;

use crate::{Error, Extra, Family, Graph, Head, Result};

use super::proto::{ModelProto, StringStringEntryProto};
use super::wire;

/// The properties of an ONNX detector; whatever a foreign file does not tell is empty or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Class names in order of their numbers.
    pub names: Vec<String>,
    /// (height, width) in pixels.
    pub imgsz: Option<[usize; 2]>,
    pub task: Option<String>,
    /// The family of the detector that was exported, which decides how images are fitted to its input; ours alone say it.
    pub family: Option<Family>,
    /// The detector tells every object once (see [`Head::end_to_end`]); ours alone say it.
    pub end_to_end: bool,
    /// What comes out are boxes already selected, as (N, boxes, 6): Ultralytics' `end2end`, or its `nms`.
    pub selected: bool,
}

/// The property of a detector whose boxes need no non-maximum suppression. Not Ultralytics' `end2end`, which promises an
/// output of boxes already selected.
const SUPPRESSION: (&str, &str) = ("suppression", "none");

/// What Prunella calls itself in files it writes.
pub(super) const PRODUCER: &str = "prunella";

/// Reads the properties of an ONNX file from its bytes; `path` is for messages.
///
/// # Errors
/// The bytes are no ONNX model, or a property is not in Ultralytics' notation.
pub fn read_metadata(path: &Path, bytes: &[u8]) -> Result<Metadata> {
    of(path, &decode(path, bytes)?)
}

/// The model in `bytes`.
pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<ModelProto> {
    let damaged = |what: String| {
        Error::format(path, what).hint("the file is damaged or truncated; copy it again or repeat the export")
    };
    wire::check(bytes).map_err(damaged)?;
    let model = ModelProto::decode(bytes).map_err(|e| damaged(format!("is no readable ONNX model: {e}")))?;
    if model.graph.is_none() {
        return Err(damaged("is an ONNX model without a graph".into()));
    }
    Ok(model)
}

/// Whether Prunella wrote the properties of `model`.
pub(super) fn is_own(model: &ModelProto) -> bool {
    model.metadata_props.iter().any(|p| p.key == "author" && p.value == PRODUCER)
}

/// The properties of `model`.
pub(super) fn of(path: &Path, model: &ModelProto) -> Result<Metadata> {
    let get = |key: &str| model.metadata_props.iter().find(|p| p.key == key).map(|p| p.value.as_str());
    let parsed = |key: &str, text: &str| {
        Error::format(path, format!("has no value Prunella can read: {text}"))
            .at(format!("property `{key}`"))
            .hint("write it as Ultralytics does, for example {0: 'person', 1: 'car'} or [640, 640]")
    };
    let names = match get("names") {
        Some(text) => parse_names(text).ok_or_else(|| parsed("names", text))?,
        None => vec![],
    };
    let imgsz = match get("imgsz") {
        Some(text) => Some(parse_size(text).ok_or_else(|| parsed("imgsz", text))?),
        None => None,
    };
    let task = get("task").map(str::to_owned);
    // A property of this name that is none of ours says nothing.
    let family = get("family").and_then(|text| serde_json::from_value(text.into()).ok());
    let end_to_end = get(SUPPRESSION.0) == Some(SUPPRESSION.1);
    let selected = get("end2end") == Some("True") || get("args").is_some_and(|args| args.contains("'nms': True"));
    Ok(Metadata { names, imgsz, task, family, end_to_end, selected })
}

/// The properties an export carries.
pub(super) fn properties(graph: &Graph, head: &Head, [height, width]: [usize; 2]) -> Vec<StringStringEntryProto> {
    let names: Vec<String> =
        graph.meta.names.iter().enumerate().map(|(i, name)| format!("{i}: {}", quote(name))).collect();
    let once = head.end_to_end().then(|| (SUPPRESSION.0, SUPPRESSION.1.to_owned()));
    let all = [
        ("author", PRODUCER.to_owned()),
        ("task", head.extra().map_or("detect", Extra::task).to_owned()),
        ("stride", head.strides().into_iter().max().unwrap_or(1).to_string()),
        ("imgsz", format!("[{height}, {width}]")),
        ("family", family(graph.meta.family)),
        ("names", format!("{{{}}}", names.join(", "))),
    ];
    let keypoints = match head.extra() {
        Some(Extra::Keypoints { points, values }) => Some(("kpt_shape", format!("[{points}, {values}]"))),
        _ => None,
    };
    all.into_iter()
        .chain(once)
        .chain(keypoints)
        .map(|(key, value)| StringStringEntryProto { key: key.into(), value })
        .collect()
}

/// A family as the native file spells it.
fn family(family: Family) -> String {
    serde_json::to_value(family).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// A Python string literal.
fn quote(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n").replace('\r', "\\r");
    format!("'{escaped}'")
}

/// `[height, width]`.
fn parse_size(text: &str) -> Option<[usize; 2]> {
    let (height, width) = text.trim().strip_prefix('[')?.strip_suffix(']')?.split_once(',')?;
    Some([height.trim().parse().ok()?, width.trim().parse().ok()?])
}

/// `{0: 'person', 1: "driver's seat"}`, numbers ascending from 0.
fn parse_names(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (key, value) = rest.split_once(':')?;
        if key.trim().parse::<usize>().ok()? != names.len() {
            return None;
        }
        let (name, after) = parse_string(value.trim_start())?;
        names.push(name);
        rest = after.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if rest.is_empty() => rest,
            None => return None,
        };
    }
    Some(names)
}

/// A Python string literal and what follows it.
fn parse_string(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                other => other,
            }),
            _ => value.push(c),
        }
    }
    None
}
