//! Darknet files: published sizes, outputs against OpenCV's, and what damaged ones are told.

use std::path::Path;

use graph::format::{LoadOptions, darknet::save, darknet::untrained, load};
use graph::reference::{Map, forward};
use graph::{Act, AnchorHead, AnchorLevel, BoxDecode, Error, Family, Graph, Head, MaxPool, Op, Shape, Tensor, cost};
use proptest::prelude::*;
use testkit::{shared, tensors};

const SMALL: &str = "[net]\nheight=32\nwidth=32\nchannels=3\n[convolutional]\nbatch_normalize=1\nfilters=4\nsize=3\nstride=2\npad=1\n\
activation=leaky\n[maxpool]\nsize=2\nstride=2\n[convolutional]\nfilters=4\nsize=1\nactivation=mish\n[shortcut]\nfrom=-2\n\
activation=linear\n[route]\nlayers=-1\ngroups=2\ngroup_id=1\n[route]\nlayers=-1,1\n[convolutional]\nfilters=7\nsize=1\n\
activation=linear\n[yolo]\nmask=0\nanchors=10,14\nclasses=2\nnum=1\n";

/// What published files say seldom or leave to Darknet's defaults.
const SELDOM: &str = "[net]\n# No line of these two counts.\n;width=8\nheight=24\nwidth=32\nchannels=3\n[convolutional]\nfilters=4\nsize=3\nstride_x=2\nstride_y=1\npad=1\n\
activation=relu6\n[convolutional]\ncbn=1\nfilters=6\nsize=4\nstride_y=2\nstride_x=1\npadding=2\ngroups=2\nactivation=swish\n\
[maxpool]\nsize=3\nstride=1\npadding=1\n[convolutional]\nfilters=6\nsize=1\npad=0\npadding=1\n[maxpool]\nsize=3\nstride=1\n\
padding=0\n[maxpool]\nsize=2\nstride=1\n[route]\nlayers=-1\ngroups=3\ngroup_id=2\n[convolutional]\nfilters=2\nsize=1\n\
activation=relu\n[shortcut]\nfrom=-2\n[dropout]\nprobability=.5\n[convolutional]\nfilters=12\nsize=1\nactivation=linear\n\
[yolo]\nanchors=23,27, 10,14\nclasses=1\nscale_x_y=1.05\nnew_coords=1\n[route]\nlayers=8\n[upsample]\nstride=2\n\
[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nmask=1\nanchors=23,27, 10,14\nclasses=1\nnum=2\n";

/// Numbers `SMALL` asks for: 3x3x3x4 + 4x4 (normalised), 4x4 + 4, 6x7 + 7.
const FLOATS: usize = 108 + 16 + 20 + 49;

fn small(cfg: &str) -> Result<Graph, String> {
    untrained(cfg, Path::new("small.cfg"), 0).map_err(|e| e.to_string())
}

/// Loads `SMALL` with a `.weights` of `bytes` bytes after a header of version 0.`minor`.
fn with_weights(minor: i32, bytes: usize) -> Result<Graph, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("small.cfg"), SMALL).unwrap();
    let mut file: Vec<u8> = [0, minor, 0].iter().flat_map(|v: &i32| v.to_le_bytes()).collect();
    file.resize(if minor >= 2 { 20 } else { 16 }, 0);
    file.extend((0..bytes / 4).flat_map(|i| (i as f32).to_le_bytes()));
    file.resize(file.len() + bytes % 4, 0);
    std::fs::write(dir.path().join("small.weights"), file).unwrap();
    load(&dir.path().join("small.weights"), &LoadOptions::default()).map_err(|e| e.to_string())
}

/// Counted by a program that shares no code with this one and reads nothing but the `.cfg`; the sizes are those published.
/// Parameters are without running means and variances: with them YOLOv3-tiny's file holds 8,858,734 numbers, 2 x 3,184
/// more. Twice the MACs in 1e9 is what Darknet prints as BFLOPS, but for the fraction of a percent it counts for
/// other layers (yolov3-tiny 5.56, yolov3 65.9, yolov4-tiny 6.9 at 416).
const PUBLISHED: [(&str, u64, u64); 8] = [
    ("yolov3", 61_949_149, 32_932_037_632),
    ("yolov3-spp", 62_998_749, 70_724_486_144),
    ("yolov3-tiny", 8_852_366, 2_782_480_896),
    ("yolov4", 64_363_101, 64_194_741_248),
    ("yolov4-csp", 52_921_437, 38_476_709_888),
    ("yolov4-tiny", 6_056_606, 3_453_938_176),
    ("yolov7", 36_928_413, 52_255_539_200),
    ("yolov7-tiny", 6_227_101, 2_894_275_072),
];

#[test]
fn published_architectures_have_their_published_cost() {
    let Some(shared) = shared() else { return };
    for (name, params, macs) in PUBLISHED {
        let path = shared.join("cfg").join(name).with_extension("cfg");
        let graph = load(&path, &LoadOptions { untrained: Some(1), ..LoadOptions::default() }).unwrap();
        let total = cost::total(&graph, graph.meta.imgsz).unwrap();
        assert_eq!((total.params, total.macs), (params, macs), "{name}");
        // As many `.cfg`s as there are lines above.
        assert_eq!(std::fs::read_dir(shared.join("cfg")).unwrap().count(), PUBLISHED.len());
    }
}

fn compare(name: &str) {
    let Some(shared) = shared() else { return };
    let graph = load(&shared.join(format!("weights/{name}/{name}.cfg")), &LoadOptions::default()).unwrap();
    assert_eq!(graph.meta.family, Family::Darknet);
    let golden = tensors(&shared.join(format!("golden/{name}/forward.safetensors")));
    let image = &golden["image_u8"];
    let [_, c, h, w] = image.shape[..] else { panic!("no image") };
    let planes = |i: usize| f64::from(image.data[i]) / 255.0;
    let image = Map { shape: Shape { c, h, w }, data: (0..c * h * w).map(planes).collect() };
    let maps = forward(&graph, &image).unwrap();
    let (_, inputs) = graph.head().unwrap();
    assert_eq!(inputs.len(), 2);
    for (level, &id) in inputs.iter().enumerate() {
        let (ours, theirs) = (&maps[id], &golden[&format!("head{level}")]);
        let s = ours.shape;
        assert_eq!(theirs.shape, [1, s.h, s.w, s.c]);
        let worst = (0..theirs.data.len())
            .map(|i| (ours.data[i % s.c * s.h * s.w + i / s.c] - f64::from(theirs.data[i])).abs())
            .fold(0.0, testkit::larger);
        println!("{name} head{level}: at most {worst:.2e} off");
        assert!(worst < 1e-3, "{name} head{level}: {worst}");
    }
}

#[test]
fn yolov3_tiny_computes_what_opencv_does() {
    compare("yolov3-tiny");
}

#[test]
fn yolo_fastest_computes_what_opencv_does() {
    compare("yolo-fastest-1.1");
}

#[test]
fn yolo_fastest_xl_computes_what_opencv_does() {
    compare("yolo-fastest-1.1-xl");
}

#[test]
fn weights_are_read_in_their_order() {
    for minor in [1, 2] {
        let graph = with_weights(minor, 4 * FLOATS).unwrap();
        let bn = graph.nodes.iter().find(|n| n.name == "layer0.bn").unwrap();
        let first: Vec<f32> = bn.op.weights().iter().map(|(_, values)| values[0]).collect();
        assert_eq!(first, [4.0, 0.0, 8.0, 12.0], "gamma, beta, mean, variance; beta comes first in the file");
    }
}

#[test]
fn weights_of_the_wrong_length_name_the_layer_and_the_count() {
    let short = with_weights(2, 4 * (FLOATS - 3)).unwrap_err();
    assert!(short.contains("layer6") && short.contains("3 floats early"), "{short}");
    let long = with_weights(2, 4 * (FLOATS + 5)).unwrap_err();
    assert!(long.contains("after layer6") && long.contains("5 floats are left over"), "{long}");
    let ragged = with_weights(2, 4 * FLOATS + 2).unwrap_err();
    assert!(ragged.contains("2 bytes"), "{ragged}");
}

#[test]
fn damaged_weights_are_named_with_their_file_and_layer() {
    let dir = tempfile::tempdir().unwrap();
    let (cfg, weights) = (dir.path().join("small.cfg"), dir.path().join("else.weights"));
    std::fs::write(&cfg, SMALL).unwrap();
    // Biases, gammas, means and variances of four filters; then the weights.
    for (at, value, told) in
        // -1e-6 and Darknet's eps are 0 together.
        [
            (5, f32::NAN, "holds NaN"),
            (12, -1.0, "a variance of -1"),
            (13, -1e-6, "a variance of -0.000001"),
            (16, f32::INFINITY, "holds inf"),
        ]
    {
        let mut numbers = [0.5_f32; FLOATS];
        numbers[at] = value;
        let file: Vec<u8> = [0; 16].into_iter().chain(numbers.iter().flat_map(|v| v.to_le_bytes())).collect();
        std::fs::write(&weights, file).unwrap();
        let options = LoadOptions { weights: Some(weights.clone()), ..LoadOptions::default() };
        let error = load(&cfg, &options).unwrap_err().to_string();
        assert!(error.contains("else.weights`, layer0: ") && error.contains(told), "{error}");
    }
}

#[test]
fn mistakes_in_a_cfg_are_named_with_their_line() {
    for (from, to, want) in [
        ("[maxpool]", "[sam]", "line 12, [sam]"),
        ("activation=mish", "activation=gelu", "line 18, [convolutional]"),
        ("filters=4", "filters=four", "line 7, [convolutional]"),
        ("from=-2", "from=-9", "line 20, [shortcut]"),
        ("group_id=1", "group_id=2", "line 24, [route]"),
        ("classes=2", "classes=3", "line 32, [yolo]"),
        ("height=32", "height 32", "line 2"),
        ("filters=4", "filtres=4", "line 7, [convolutional]: the key `filtres` is not known"),
        ("batch_normalize", "batch_normalise", "line 6, [convolutional]: the key `batch_normalise` is not known"),
        ("mask=0", "maks=0", "line 33, [yolo]: the key `maks` is not known"),
        ("size=2\n", "size=2\nsize=3\n", "line 14, [maxpool]: the key `size` is given twice"),
        ("anchors=10,14", "anchors=10,nan", "line 34, [yolo]: an anchor of NaN"),
        ("num=1", "num=1\nscale_x_y=nan", "line 37, [yolo]: `scale_x_y` is NaN"),
        ("channels=3", "channels=4", "line 4, [net]: `channels=4` is not supported"),
        ("[route]\n", "[net]\n[route]\n", "line 22, [net]: `[net]` stands among"),
        ("size=2\n", "size=2\npadding=5\n", "line 14, [maxpool]: pads 5 pixels for a window of 2"),
        ("filters=4\nsize=1", "filters=6\ngroups=3\nsize=1", "line 17, [convolutional]: 3 groups do not divide 4 or 6"),
        ("filters=4\nsize=1", "filters=6\ngroups=4\nsize=1", "line 17, [convolutional]: 4 groups do not divide 4 or 6"),
        ("groups=2", "groups=3", "line 24, [route]: no part 1 of 3 in 4 channels"),
        ("stride=2\npad=1", "stride=2\ndilation=2", "line 10, [convolutional]: `dilation=2` is not supported"),
        ("stride=2\npad=1", "stride=2\nflipped=1", "line 10, [convolutional]: `flipped=1` is not supported"),
        ("stride=2\npad=1", "stride=2\ndeform=1", "line 10, [convolutional]: `deform=1` is not supported"),
        ("size=2\nstride=2", "size=2\nstride_x=1\nstride=2", "line 14, [maxpool]: `stride_x=1` is not supported"),
        ("[shortcut]", "[upsample]\nscale=2\n[shortcut]", "line 20, [upsample]: `scale=2` is not supported"),
        ("from=-2", "from=-2\nweights_type=per_feature", "line 21, [shortcut]: `weights_type=per_feature` is not"),
        ("from=-2\n", "", "line 19, [shortcut]: `from` names no layer"),
        ("anchors=10,14", "anchors=10,inf", "line 34, [yolo]: an anchor of inf"),
        ("anchors=10,14", "anchors=10,0", "line 34, [yolo]: an anchor of 0"),
        ("mask=0", "mask=", "line 33, [yolo]: picks none"),
        ("num=1", "num=2", "line 34, [yolo]: 2 numbers are not `num` pairs"),
        ("anchors=10,14", "anchors=10,14,3", "line 34, [yolo]: 3 numbers are not `num` pairs"),
        ("mask=0", "mask=1", "line 33, [yolo]: picks none, or past 1 anchors"),
        ("num=1\n", "num=1\n[upsample]\n", "line 37, [upsample]: reads the boxes"),
        ("num=1\n", "num=1\n[route]\nlayers=-1\n", "line 38, [route]: layer -1 is a `[yolo]` section"),
        ("num=1\n", "num=1\n[route]\nlayers=6\n[yolo]\nclasses=3\n", "line 40, [yolo]: differs from the `[yolo]`"),
    ] {
        let error = small(&SMALL.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(want), "{from} -> {to}: {error}");
    }
    assert!(
        small("[convolutional]\nfilters=4\n").unwrap_err().contains("line 1: does not begin with a `[net]` section")
    );
    let long = "9".repeat(1 << 20);
    for from in ["filters=4", "activation=mish", "from=-2", "[maxpool", "height"] {
        let error = small(&SMALL.replacen(from, &format!("{from}{long}"), 1)).unwrap_err();
        assert!(error.len() < 300, "{from}: {} bytes, {}", error.len(), &error[..300]);
    }
    let doubling = SMALL.replacen("[shortcut]", &("[route]\nlayers=-1,-1\n".repeat(30) + "[shortcut]"), 1);
    assert!(small(&doubling).unwrap_err().contains("[route]: makes a map of 131072x"));
}

/// Shapes and windows worked out by hand from Darknet's rules.
#[test]
fn options_are_read_as_darknet_reads_them() {
    let graph = small(SELDOM).unwrap();
    let shapes = graph.shapes(graph.meta.imgsz).unwrap();
    let told: Vec<String> = graph.nodes.iter().zip(&shapes).map(|(n, s)| format!("{} {s}", n.name)).collect();
    let expected = "images 3x24x32, layer0.conv 4x24x16, layer0.act 4x24x16, layer1.conv 6x13x17, layer1.bn 6x13x17, \
        layer1.act 6x13x17, layer2 6x12x16, layer3.conv 6x14x18, layer3.act 6x14x18, layer4 6x12x16, layer5 6x12x16, \
        layer6.slice0 2x12x16, layer7.conv 2x12x16, layer7.act 2x12x16, layer8.add 2x12x16, layer10.conv 12x12x16, \
        layer13 2x24x32, layer14.conv 6x24x32, head 0x0x0";
    assert_eq!(told.join(", "), expected);
    let node = |name: &str| graph.nodes.iter().find(|n| n.name == name).unwrap();
    let reads = |name: &str| node(name).inputs.iter().map(|&i| graph.nodes[i].name.as_str()).collect::<Vec<_>>();
    // Steps and padding along rows and columns, and groups.
    for (name, stride, pad, groups) in [
        ("layer0.conv", [1, 2], [1, 1], 1),
        ("layer1.conv", [2, 1], [2, 2], 2),
        ("layer3.conv", [1, 1], [1, 1], 1),
        ("layer7.conv", [1, 1], [0, 0], 1),
    ] {
        let Op::Conv(conv) = &node(name).op else { panic!("`{name}` is no convolution") };
        assert_eq!((conv.stride, conv.pad, conv.groups), (stride, pad, groups), "{name}");
    }
    // Half the padding, rounded down, is before the map; without a word it is one less than the window.
    for (name, kernel, pad) in [("layer2", 3, [0, 1]), ("layer4", 3, [0, 0]), ("layer5", 2, [0, 1])] {
        assert_eq!(node(name).op, Op::MaxPool(MaxPool { kernel, stride: 1, pad }), "{name}");
    }
    let acts = [("layer0", Act::Relu6), ("layer1", Act::Silu), ("layer3", Act::Sigmoid), ("layer7", Act::Relu)];
    for (name, act) in acts {
        assert_eq!(node(&format!("{name}.act")).op, Op::Act(act), "{name}");
    }
    assert_eq!(node("layer6.slice0").op, Op::Slice { start: 4, len: 2 });
    assert_eq!(reads("layer8.add"), ["layer7.act", "layer6.slice0"]);
    // Neither the dropout nor the boxes in between are anything to read.
    assert_eq!((reads("layer10.conv"), reads("layer13")), (vec!["layer8.add"], vec!["layer8.add"]));
    let level = |stride, anchors: &[[f32; 2]], decode| AnchorLevel { stride, anchors: anchors.to_vec(), decode };
    let levels = vec![
        level(2, &[[23.0, 27.0], [10.0, 14.0]], BoxDecode::DarknetNew { scale_xy: 1.05 }),
        level(1, &[[10.0, 14.0]], BoxDecode::Darknet { scale_xy: 1.0 }),
    ];
    assert_eq!(node("head").op, Op::Head(Head::Anchor(AnchorHead { classes: 1, levels })));
    assert_eq!(reads("head"), ["layer10.conv", "layer14.conv"]);
    // And all of it can be said again.
    assert_eq!(nameless(saved(&graph)), nameless(graph));
}

#[test]
fn an_unknown_key_comes_with_the_one_that_was_meant() {
    for (from, to, want) in [
        ("filters=4", "filtres=4", "did you mean `filters`?"),
        ("batch_normalize", "batch_normalise", "did you mean `batch_normalize`?"),
        ("mask=0", "maks=0", "did you mean `mask`?"),
        ("mask=0", "wombat=0", "what `[yolo]` computes is decided by anchors, classes, mask"),
        ("[maxpool]", "[local_avgpool]", "known are [net], [convolutional], [maxpool]"),
    ] {
        let error = untrained(&SMALL.replacen(from, to, 1), Path::new("small.cfg"), 0).unwrap_err();
        let Error::Format { help: Some(help), .. } = error else { panic!("{from} -> {to}: {error:?}") };
        assert!(help.contains(want), "{from} -> {to}: {help}");
    }
}

#[test]
fn class_names_fit_or_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("small.cfg"), SMALL).unwrap();
    let names = || load(&at("small.cfg"), &LoadOptions { untrained: Some(0), ..LoadOptions::default() });
    assert_eq!(names().unwrap().meta.names, ["0", "1"], "no file");
    for (text, want) in [("cat\ndog\n\n\n", ["cat", "dog"]), ("cat\n", ["0", "1"]), ("", ["0", "1"])] {
        std::fs::write(at("any.names"), text).unwrap();
        assert_eq!(names().unwrap().meta.names, want, "a lone file that fits names them: {text:?}");
    }
    std::fs::write(at("any.names"), "cat\ndog\n").unwrap();
    std::fs::write(at("any.cfg"), SMALL).unwrap();
    assert_eq!(names().unwrap().meta.names, ["0", "1"], "a file of another .cfg does not");
    std::fs::remove_file(at("any.cfg")).unwrap();
    std::fs::write(at("more.names"), "cat\ndog\n").unwrap();
    assert_eq!(names().unwrap().meta.names, ["0", "1"], "nor do two of them");
    for (text, told) in [("cat\n", "names 1 classes"), ("", "names 0 classes")] {
        std::fs::write(at("small.names"), text).unwrap();
        let error = names().unwrap_err().to_string();
        assert!(error.contains("small.names") && error.contains(told), "{error}");
    }
    std::fs::write(at("small.names"), "red\nblue").unwrap();
    assert_eq!(names().unwrap().meta.names, ["red", "blue"], "its own before any other");
    std::fs::write(at("small.names"), "\nblue").unwrap();
    assert!(names().unwrap_err().to_string().contains("line 1: the line is blank"));
}

#[test]
fn missing_weights_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("small.cfg"), SMALL).unwrap();
    let error = load(&dir.path().join("small.cfg"), &LoadOptions::default()).unwrap_err();
    let Error::Format { path, help: Some(help), .. } = &error else { panic!("{error:?}") };
    assert!(path.ends_with("small.weights") && help.contains("--weights FILE"), "{error:?}");
}

#[test]
fn untrained_weights_depend_on_the_seed_alone() {
    let start = |seed| untrained(SMALL, Path::new("small.cfg"), seed).unwrap();
    assert_eq!(start(1), start(1));
    assert_ne!(start(1), start(2));
    // He's: a variance of 2 over the 3 x 3 x 3 inputs of a filter, and uniform numbers have a third of their bound squared.
    let graph = start(1);
    let Op::Conv(conv) = &graph.nodes[1].op else { panic!("node 1 is a convolution") };
    let (bound, far) = ((3.0_f32 * 2.0 / 27.0).sqrt(), conv.weight.data.iter().fold(0.0, |m: f32, w| m.max(w.abs())));
    assert!(far <= bound && far > 0.95 * bound, "{far} of {bound}");
    let huge = SMALL.replace("filters=4", "filters=60000").replace("size=1", "size=3");
    assert!(small(&huge).unwrap_err().contains("out of all proportion"));
    let many = "[net]\nheight=32\nwidth=32\n[convolutional]\nfilters=16000\n".to_owned()
        + &"[convolutional]\nfilters=16000\n".repeat(3);
    assert!(small(&many).unwrap_err().contains("numbers so far"));
}

/// What a graph computes: everything but the names of its nodes.
fn nameless(mut graph: Graph) -> Graph {
    for (i, node) in graph.nodes.iter_mut().enumerate() {
        node.name = i.to_string();
    }
    graph
}

fn saved(graph: &Graph) -> Graph {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("again.cfg");
    save(graph, &path).unwrap_or_else(|e| panic!("{e:?}"));
    load(&path, &LoadOptions::default())
        .unwrap_or_else(|e| panic!("{e:?}\n{}", std::fs::read_to_string(&path).unwrap()))
}

#[test]
fn what_was_saved_is_what_was_loaded() {
    let small = with_weights(2, 4 * FLOATS).unwrap();
    assert_eq!(nameless(saved(&small)), nameless(small));
    let Some(shared) = shared() else { return };
    for name in ["yolov3-tiny", "yolo-fastest-1.1", "yolo-fastest-1.1-xl"] {
        let graph = load(&shared.join(format!("weights/{name}/{name}.cfg")), &LoadOptions::default()).unwrap();
        assert!(nameless(saved(&graph)) == nameless(graph), "{name}");
    }
    for name in ["yolov4-tiny", "yolov7-tiny"] {
        let path = shared.join(format!("cfg/{name}.cfg"));
        let graph = load(&path, &LoadOptions { untrained: Some(3), ..LoadOptions::default() }).unwrap();
        assert!(nameless(saved(&graph)) == nameless(graph), "{name}");
    }
}

/// What is read back does not show it: no layer more than is needed, and the anchors as Darknet's own files have them.
#[test]
fn what_is_saved_looks_like_darknets_own() {
    let graph = small(SELDOM).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save(&graph, &dir.path().join("x.cfg")).unwrap();
    let text = std::fs::read_to_string(dir.path().join("x.cfg")).unwrap();
    assert_eq!(text.matches("[route]").count(), SELDOM.matches("[route]").count(), "{text}");
    for line in ["mask=1,0", "mask=0", "anchors=10,14, 23,27", "num=2"] {
        assert!(text.lines().any(|l| l == line), "no `{line}` in {text}");
    }
    // Where the head reads its maps in another order than they come in, boxes wait for the end.
    let mut turned = graph;
    turned.meta.names = vec!["white cell".into()];
    let head = turned.nodes.last_mut().unwrap();
    head.inputs.reverse();
    let Op::Head(Head::Anchor(anchors)) = &mut head.op else { panic!("the last node is no head of anchors") };
    anchors.levels.reverse();
    assert_eq!(nameless(saved(&turned)), nameless(turned));
}

/// Other frameworks' eps and biases before BatchNorm go into the numbers Darknet has.
#[test]
fn a_foreign_norm_is_saved_as_darknets() {
    let mut graph = with_weights(2, 4 * FLOATS).unwrap();
    for node in &mut graph.nodes {
        match &mut node.op {
            Op::Conv(conv) if node.name == "layer0.conv" => conv.bias = Some(vec![0.5, -2.0, 0.0, 9.0]),
            Op::Conv(conv) => conv.weight.data.iter_mut().for_each(|w| *w *= 1e-3),
            Op::BatchNorm(bn) => (bn.eps, bn.var) = (1e-3, vec![0.0, 0.25, 1.0, 7.0]),
            _ => {}
        }
    }
    let image =
        Map { shape: Shape { c: 3, h: 32, w: 32 }, data: (0..3072).map(|i| f64::from(i % 17) / 17.0).collect() };
    let head = |graph: &Graph| forward(graph, &image).unwrap().swap_remove(graph.head().unwrap().1[0]);
    let (before, after) = (head(&graph), head(&saved(&graph)));
    let size = before.data.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let worst = before.data.iter().zip(&after.data).map(|(a, b)| (a - b).abs()).fold(0.0, testkit::larger);
    assert!(worst < 1e-6 * size, "{worst} of {size}");
}

#[test]
fn what_darknet_cannot_say_is_not_saved() {
    let change = |change: fn(&mut Graph)| {
        let mut graph = small(SMALL).unwrap();
        change(&mut graph);
        let dir = tempfile::tempdir().unwrap();
        let error = save(&graph, &dir.path().join("x.cfg")).unwrap_err().to_string();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind: {error}");
        error
    };
    for told in [
        change(|g| g.meta.names[1] = "a\nb".into()),
        change(|g| g.meta.names[1] = " a".into()),
        change(|g| g.meta.names[1] = String::new()),
    ] {
        assert!(told.contains("class 1"), "{told}");
    }
    let damaged = change(|g| g.nodes[1].op.weights_mut()[0].1[0] = f32::NAN);
    assert!(damaged.contains("layer0.conv") && damaged.contains("holds NaN"), "{damaged}");
    let decode = change(|g| {
        let Some(Op::Head(Head::Anchor(head))) = g.nodes.last_mut().map(|n| &mut n.op) else { panic!("no head") };
        head.levels[0].decode = BoxDecode::V5;
    });
    assert!(decode.contains("`head`") && decode.contains("YOLOv5"), "{decode}");
    let slice = change(|g| {
        let i = g.nodes.iter().position(|n| matches!(n.op, Op::Slice { .. })).unwrap();
        g.nodes[i].op = Op::Slice { start: 1, len: 2 };
    });
    assert!(slice.contains("slice0") && slice.contains("1..3 of 4"), "{slice}");
    let oblong = change(|g| {
        let Op::Conv(conv) = &mut g.nodes[1].op else { panic!("node 1 is a convolution") };
        conv.weight = Tensor::zeros([4, 3, 3, 4]);
    });
    assert!(oblong.contains("layer0.conv") && oblong.contains("3x4 with 1x1"), "{oblong}");
    let before = change(|g| {
        let pool = g.nodes.iter_mut().find(|n| n.name == "layer1").unwrap();
        pool.op = Op::MaxPool(MaxPool { kernel: 2, stride: 2, pad: [1, 0] });
    });
    assert!(before.contains("layer1") && before.contains("pads 1 before and 0 after"), "{before}");
    // What another layer reads too cannot be a part of its own.
    let shared = change(|g| {
        let conv = g.nodes.iter().position(|n| n.name == "layer2.conv").unwrap();
        let sum = g.nodes.iter().position(|n| n.name == "layer3.add").unwrap();
        g.nodes[sum].inputs[1] = conv;
    });
    assert!(shared.contains("layer2.act") && shared.contains("activations follow"), "{shared}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_cfg_panics(edits in prop::collection::vec((0..SMALL.len(), "[-0-9a-z=,\\[\\]\n]{0,3}"), 1..4)) {
        let mut text = SMALL.to_owned();
        for (at, with) in edits {
            let at = at.min(text.len().saturating_sub(1));
            text.replace_range(at..=at, &with);
        }
        let _ = small(&text);
    }
}

/// Real files with bytes changed, cut or added: an error or a graph, never a panic, and no more memory than the file
/// gives cause for.
#[test]
fn damaged_real_files_never_panic() {
    let Some(shared) = shared() else { return };
    let file =
        |ext: &str| std::fs::read(shared.join(format!("weights/yolo-fastest-1.1/yolo-fastest-1.1.{ext}"))).unwrap();
    let (cfg, weights) = (file("cfg"), file("weights"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.cfg");
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(60));
    let changes = |len: usize| prop::collection::vec((0..len, prop::num::u8::ANY), 0..6);
    // Digits make numbers that are wrong but well formed, which go deeper than noise does.
    let digits = prop::collection::vec((0..cfg.len(), prop::sample::select(b"0123456789,-=\n".to_vec())), 1..6);
    let cut = prop_oneof![3 => Just(usize::MAX), 1 => 0..weights.len()];
    let all = (changes(cfg.len()), digits, changes(weights.len()), changes(24), cut);
    runner
        .run(&all, |(noise, digits, numbers, header, cut)| {
            let (mut cfg, mut weights) = (cfg.clone(), weights.clone());
            noise.into_iter().chain(digits).for_each(|(at, byte)| cfg[at] = byte);
            numbers.into_iter().chain(header).for_each(|(at, byte)| weights[at] = byte);
            weights.truncate(cut);
            std::fs::write(&path, &cfg).unwrap();
            std::fs::write(path.with_extension("weights"), &weights).unwrap();
            if let Ok(graph) = load(&path, &LoadOptions::default()) {
                prop_assert!(
                    graph.nodes.iter().flat_map(|n| n.op.weights()).map(|(_, v)| 4 * v.len()).sum::<usize>()
                        <= weights.len()
                );
            }
            let text = String::from_utf8_lossy(&cfg);
            let _ = untrained(&text, &path, 0);
            Ok(())
        })
        .unwrap();
}
