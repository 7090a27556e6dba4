//! From what was read to a detector: its head, its names, and images as every other detector here takes them.

use super::body::Body;
use super::head::Found;
use super::names::COCO;
use crate::format::onnx::Metadata;
use crate::{BoxDecode, Error, Family, Graph, Head, Op, Result};

/// The detector of the nodes `found` depends on. `own` says that Prunella wrote the file.
pub fn detector(mut body: Body, mut found: Found, metadata: &Metadata, own: bool) -> Result<Graph> {
    let path = body.source.path;
    let classes = found.head.classes();
    let names = match metadata.names.len() {
        0 if classes == COCO.len() => COCO.map(str::to_owned).to_vec(),
        0 => (0..classes).map(|c| format!("class{c}")).collect(),
        n if n == classes => metadata.names.clone(),
        n => {
            return Err(
                Error::format(path, format!("names {n} classes, its head has {classes}")).at("property `names`")
            );
        }
    };
    let head_name = body.unique("head");
    if let Head::Dfl(head) = &mut found.head {
        head.end_to_end = metadata.end_to_end;
    }
    let mut graph = body.graph;
    graph.meta.names = names;
    graph.meta.family = metadata.family.unwrap_or(match &found.head {
        Head::Yolox(_) => Family::Yolox,
        Head::Dfl(_) => Family::Yolov8,
        Head::Anchor(head) if head.levels.iter().all(|l| l.decode == BoxDecode::V5) => Family::Yolov5,
        Head::Anchor(_) => Family::Darknet,
    });
    let read = graph.behind(&found.maps);
    let head = graph.push(head_name, Op::Head(found.head.clone()), found.maps);
    let mut graph = graph.without(|id| (id != 0 && id != head && !read[id]).then_some(0));
    if matches!(found.head, Head::Yolox(_)) && !own {
        take_rgb(&mut graph).map_err(|node| {
            Error::format(path, "reads the image in a way that cannot be changed from BGR 0..255 to RGB 0..1")
                .at(format!("node `{node}`"))
        })?;
    }
    Ok(graph)
}

/// YOLOX reads BGR in 0..255. The first convolution takes over the factor and the order, exactly also at the border: black
/// is 0 in both. Fails with the name of a reader of the image that is no plain convolution.
fn take_rgb(graph: &mut Graph) -> std::result::Result<(), String> {
    for node in graph.nodes.iter_mut().filter(|n| n.inputs.contains(&0)) {
        match &mut node.op {
            Op::Conv(conv) if conv.groups == 1 => {
                let [_, channels, kh, kw] = conv.weight.shape[..] else { return Err(node.name.clone()) };
                for filter in conv.weight.data.chunks_exact_mut(channels * kh * kw) {
                    let reversed: Vec<f32> = filter.chunks_exact(kh * kw).rev().flatten().map(|w| 255.0 * w).collect();
                    filter.copy_from_slice(&reversed);
                }
            }
            _ => return Err(node.name.clone()),
        }
    }
    Ok(())
}
