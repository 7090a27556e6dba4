use super::catalog::{Design, all};
use super::*;
use crate::{Conv, Head, cost};

/// Parameters of every detector for 80 classes, as the package that publishes it counts them (the fixed bins of a
/// distribution head left out).
const PARAMETERS: [(&str, u64); 20] = [
    ("yolov5n", 1_872_157),
    ("yolov5s", 7_235_389),
    ("yolov5m", 21_190_557),
    ("yolov5l", 46_563_709),
    ("yolov5x", 86_749_405),
    ("yolov5nu", 2_654_800),
    ("yolov5su", 9_153_136),
    ("yolov5mu", 25_111_440),
    ("yolov5lu", 53_225_008),
    ("yolov5xu", 97_276_432),
    ("yolov8n", 3_157_184),
    ("yolov8s", 11_166_544),
    ("yolov8m", 25_902_624),
    ("yolov8l", 43_691_504),
    ("yolov8x", 68_229_632),
    ("yolo11n", 2_624_064),
    ("yolo11s", 9_458_736),
    ("yolo11m", 20_114_672),
    ("yolo11l", 25_372_144),
    ("yolo11x", 56_966_160),
];

/// The same of YOLOX, whose authors publish hundredths of a million.
const YOLOX_PARAMETERS: [(&str, f64); 6] = [
    ("yolox-nano", 0.91),
    ("yolox-tiny", 5.06),
    ("yolox-s", 8.97),
    ("yolox-m", 25.33),
    ("yolox-l", 54.21),
    ("yolox-x", 99.07),
];

fn classes(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("class {i}")).collect()
}

#[test]
fn a_detector_is_untrained_until_it_has_met_an_image() -> Result<()> {
    let mut graph = Design::named("yolov8n").expect("it is listed").build(&classes(1), 64, 0)?;
    assert!(graph.is_untrained());
    for (mean, var) in [(0.0, 0.9), (0.1, 1.0)] {
        let norm =
            graph.nodes.iter_mut().rev().find_map(|n| if let Op::BatchNorm(bn) = &mut n.op { Some(bn) } else { None });
        let norm = norm.expect("it has some");
        (norm.mean[0], norm.var[0]) = (mean, var);
        assert!(!graph.is_untrained());
    }
    graph.nodes.retain(|n| !matches!(n.op, Op::BatchNorm(_)));
    assert!(!graph.is_untrained(), "nothing tells");
    Ok(())
}

#[test]
fn every_detector_has_its_published_size() -> Result<()> {
    let listed: Vec<&str> =
        PARAMETERS.map(|(name, _)| name).into_iter().chain(YOLOX_PARAMETERS.map(|(n, _)| n)).collect();
    assert_eq!(names(), listed);
    let count = |name: &str| -> Result<u64> {
        let graph = Design::named(name).expect("it is listed").structure(&classes(80), 640)?;
        Ok(cost::total(&graph, [640, 640])?.params)
    };
    for (name, params) in PARAMETERS {
        assert_eq!(count(name)?, params, "{name}");
    }
    for (name, millions) in YOLOX_PARAMETERS {
        let params = count(name)?;
        assert!((params as f64 / 1e6 - millions).abs() <= 0.005, "{name}: {params}");
    }
    Ok(())
}

#[test]
fn shapes_fit_at_every_scale_and_size() -> Result<()> {
    for (name, design) in all() {
        for (count, imgsz) in [(1, 32), (3, 96), (200, 640)] {
            let graph = design.structure(&classes(count), imgsz)?;
            let shapes = graph.shapes([imgsz; 2])?;
            let (head, maps) = graph.head()?;
            assert_eq!(head.classes(), count, "{name}");
            for (i, &map) in maps.iter().enumerate() {
                assert_eq!(shapes[map].h * head.input_stride(i), imgsz, "{name}");
            }
        }
    }
    Ok(())
}

#[test]
fn one_seed_gives_one_detector() -> Result<()> {
    let design = Design::named("yolo11n").expect("it is listed");
    let build = |seed| design.build(&classes(2), 64, seed);
    assert!(build(1)? == build(1)? && build(1)? != build(2)?);
    Ok(())
}

#[test]
fn a_detector_started_anew_has_forgotten_everything() -> Result<()> {
    for name in ["yolov5n", "yolo11n"] {
        let design = Design::named(name).expect("it is listed");
        let mut trained = design.build(&classes(2), 64, 1)?;
        for node in &mut trained.nodes {
            node.op.trainable_mut().into_iter().for_each(|(_, w)| w.iter_mut().for_each(|w| *w += 1.0));
            if let Op::BatchNorm(bn) = &mut node.op {
                bn.var.fill(3.0);
            }
        }
        assert!(restarted(&trained, 2)? == design.build(&classes(2), 64, 2)?, "{name}");
    }
    Ok(())
}

#[test]
fn weights_start_as_pytorch_starts_them() -> Result<()> {
    for name in ["yolov5n", "yolov8n", "yolo11n", "yolox-nano"] {
        let graph = Design::named(name).expect("it is listed").build(&classes(3), 64, 0)?;
        for node in &graph.nodes {
            let Op::Conv(conv) = &node.op else { continue };
            let bound = 1.0 / (conv.weight.shape[1..].iter().product::<usize>() as f32).sqrt();
            let n = conv.weight.len() as f32;
            let far = conv.weight.data.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
            let square = conv.weight.data.iter().map(|w| w * w).sum::<f32>() / n;
            // Uniform numbers have a third of the squared bound for variance; five standard errors of that estimate.
            let expected = bound * bound / 3.0;
            assert!(far <= bound, "{name}, {}", node.name);
            assert!((square - expected).abs() < 5.0 * expected * (0.8 / n).sqrt(), "{name}, {}: {square}", node.name);
        }
    }
    Ok(())
}

#[test]
fn heads_start_from_their_priors() -> Result<()> {
    let near = |value: f32, wanted: f64, reach: f64| (f64::from(value) - wanted).abs() <= reach;
    for (name, count) in [("yolov5n", 1), ("yolov5n", 4), ("yolov8n", 4), ("yolo11n", 1), ("yolox-nano", 4)] {
        let graph = Design::named(name).expect("it is listed").build(&classes(count), 64, 0)?;
        let (head, maps) = graph.head()?;
        for (i, &map) in maps.iter().enumerate() {
            let Op::Conv(Conv { weight, bias: Some(bias), .. }) = &graph.nodes[map].op else { panic!("no biases") };
            let reach = 1.0 / (weight.shape[1] as f64).sqrt();
            let cells = (640.0 / head.input_stride(i) as f64).powi(2);
            let classes = count as f64;
            for (k, &b) in bias.iter().enumerate() {
                let right = match head {
                    Head::Anchor(_) => match k % (5 + count) {
                        0..4 => near(b, 0.0, reach),
                        4 => near(b, (8.0 / cells).ln(), reach),
                        _ => near(b, (0.6 / (classes - 0.99999)).ln(), reach),
                    },
                    Head::Yolox(_) if i % 3 == 0 => near(b, 0.0, reach),
                    Head::Yolox(_) => near(b, (0.01_f64 / 0.99).ln(), 1e-5),
                    _ if i % 2 == 0 => b == 1.0,
                    _ => near(b, (5.0 / classes / cells).ln(), 1e-4),
                };
                assert!(right, "{name}, map {i}, channel {k}: {b}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_built_is_refused() {
    assert!(Design::named("yolov9z").is_none() && Design::named("").is_none());
    let design = Design::named("yolov8n").expect("it is listed");
    for (count, imgsz, word) in [(0, 64, "0 classes"), (10_001, 64, "10001 classes"), (1, 0, "0 pixels")] {
        let refused = design.build(&classes(count), imgsz, 0).unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
    }
    for imgsz in [100, 1 << 20, usize::MAX & !31] {
        assert!(design.build(&classes(1), imgsz, 0).is_err(), "{imgsz}");
    }
}
