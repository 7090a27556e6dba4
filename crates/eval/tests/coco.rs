//! The twelve numbers against pycocotools, and what evaluation does at the edges.

use std::path::Path;

use eval::coco::{
    Annotation, Category, GroundTruth, Image, MapResult, STAT_NAMES, ScoredBox, detections_from_json, evaluate,
};

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn run(truth: &Path, detections: &Path) -> MapResult {
    let truth = GroundTruth::from_json(&read(truth), "instances").unwrap();
    let detections = detections_from_json(&read(detections), "detections").unwrap();
    evaluate(&truth, &detections).unwrap()
}

fn assert_stats(case: &str, result: &MapResult, expected: &[f64]) {
    for ((name, value), expected) in STAT_NAMES.iter().zip(result.stats).zip(expected) {
        assert!((value - expected).abs() < 1e-9, "{case}: {name} is {value}, pycocotools gives {expected}");
    }
}

#[test]
fn agrees_with_pycocotools() {
    let Some(shared) = testkit::shared() else { return };
    let folder = shared.join("reference/coco-map");
    let expected: serde_json::Value = serde_json::from_slice(&read(&folder.join("expected.json"))).unwrap();
    let values: Vec<f64> = expected["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let result =
        run(&folder.join("instances_val2014_100.json"), &folder.join("instances_val2014_fakebbox100_results.json"));
    assert_stats("val2014_100", &result, &values);

    let folder = folder.join("coco-val-206");
    let expected: serde_json::Value = serde_json::from_slice(&read(&folder.join("expected.json"))).unwrap();
    for (case, stats) in expected["stats"].as_object().unwrap() {
        let values: Vec<f64> = STAT_NAMES.iter().map(|name| stats[name].as_f64().unwrap()).collect();
        let detections = folder.join(format!("{case}_detections.json"));
        assert_stats(case, &run(&shared.join("data/coco-val-206/instances.json"), &detections), &values);
    }
}

/// Image 1 with one 10x10 object of class 1 at the origin; class 2 has none.
fn one_object() -> GroundTruth {
    let category = |id, name: &str| Category { id, name: name.into() };
    let bbox = [0.0, 0.0, 10.0, 10.0];
    GroundTruth {
        images: vec![Image { id: 1 }],
        annotations: vec![Annotation { image_id: 1, category_id: 1, bbox, area: 100.0, crowd: false }],
        categories: vec![category(1, "cell"), category(2, "rest")],
    }
}

/// A perfect score: as in pycocotools, precision is short of 1 by a rounding.
fn assert_one(value: f64) {
    assert!((value - 1.0).abs() < 1e-12, "{value}");
}

fn found(category_id: i64, bbox: [f64; 4], score: f64) -> ScoredBox {
    ScoredBox { image_id: 1, category_id, bbox, score }
}

#[test]
fn nothing_detected_scores_zero() {
    let result = evaluate(&one_object(), &[]).unwrap();
    let small_only = [0.0, 0.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, -1.0, -1.0];
    assert_eq!(result.stats, small_only);
    assert_eq!(result.per_class[0].precision, Some(0.0));
}

#[test]
fn nothing_to_find_is_minus_one() {
    let empty = evaluate(&GroundTruth::default(), &[]).unwrap();
    assert_eq!((empty.stats, empty.per_class.len()), ([-1.0; 12], 0));
    let truth = GroundTruth { annotations: vec![], ..one_object() };
    let result = evaluate(&truth, &[found(1, [0.0, 0.0, 10.0, 10.0], 0.9)]).unwrap();
    assert_eq!(result.stats, [-1.0; 12]);
    assert_eq!(result.per_class[0].ap50, None);
}

#[test]
fn an_empty_class_takes_no_part() {
    let detections = [found(1, [0.0, 0.0, 10.0, 10.0], 0.8), found(2, [0.0, 0.0, 10.0, 10.0], 0.9)];
    let result = evaluate(&one_object(), &detections).unwrap();
    assert_one(result.map50);
    assert_eq!(result.per_class[1].ap50_95, None);
    let class = &result.per_class[0];
    assert_eq!((class.images, class.instances, class.detections), (1, 1, 1));
    assert_eq!((class.precision, class.recall), (Some(1.0), Some(1.0)));
    assert_eq!(class.best_f1.unwrap().confidence, 0.8);
}

#[test]
fn what_cannot_count_is_dropped_and_counted() {
    let object = [0.0, 0.0, 10.0, 10.0];
    let detections =
        [found(1, object, f64::NAN), found(1, [f64::INFINITY; 4], 0.9), found(9, object, 0.9), found(1, object, 0.5)];
    let mut truth = one_object();
    truth.annotations.push(Annotation { image_id: 5, ..truth.annotations[0].clone() });
    let result = evaluate(&truth, &detections).unwrap();
    let dropped = result.dropped;
    assert_eq!((dropped.not_finite, dropped.unknown_category, dropped.annotations), (2, 1, 1));
    assert_one(result.map50);
}

#[test]
fn boxes_without_area_are_wrong_but_harmless() {
    let mut truth = one_object();
    truth.annotations.push(Annotation { bbox: [3.0, 3.0, 0.0, 0.0], area: 0.0, ..truth.annotations[0].clone() });
    let detections = [found(1, [3.0, 3.0, 0.0, 0.0], 0.9), found(1, [0.0, 0.0, 10.0, 10.0], 0.8)];
    let result = evaluate(&truth, &detections).unwrap();
    // Wrong, then right: precision 0.5 up to recall 0.5, which is 51 of 101 points.
    assert!((result.map50 - 51.0 * 0.5 / 101.0).abs() < 1e-12, "{}", result.map50);
    assert_eq!(result.per_class[0].curve.iter().map(|p| p.recall).collect::<Vec<_>>(), [0.0, 0.5]);
}

#[test]
fn a_crowd_forgives_many() {
    let mut truth = one_object();
    truth.annotations.push(Annotation {
        bbox: [100.0, 0.0, 100.0, 100.0],
        area: 1e4,
        crowd: true,
        ..truth.annotations[0].clone()
    });
    let within = |x| found(1, [x, 10.0, 10.0, 10.0], 0.9);
    let detections = [within(110.0), within(130.0), within(150.0), found(1, [0.0, 0.0, 10.0, 10.0], 0.1)];
    assert_one(evaluate(&truth, &detections).unwrap().map50);
}

#[test]
fn an_unknown_image_is_an_error() {
    let stray = ScoredBox { image_id: 7, ..found(1, [0.0; 4], 0.5) };
    let error = evaluate(&one_object(), &[found(1, [0.0; 4], 0.5), stray]).unwrap_err();
    assert_eq!(error.to_string(), "detection 1 names image 7, which the annotations do not have");
}

#[test]
fn serialises_for_the_command_line() {
    let json = serde_json::to_value(evaluate(&one_object(), &[]).unwrap()).unwrap();
    assert_eq!(json["stats"].as_array().map(Vec::len), Some(12));
    assert_eq!(json["per_class"][1]["ap50"], serde_json::Value::Null);
    assert!(json["map50_95"].is_number() && json["map50"].is_number());
}

/// Equal scores, equal overlaps, crowds, more than 100 detections: see `data/coco_ties.py`.
#[test]
fn breaks_ties_as_pycocotools() {
    let case: serde_json::Value = serde_json::from_str(include_str!("data/coco_ties.json")).unwrap();
    let truth = GroundTruth::from_json(case["truth"].to_string().as_bytes(), "truth").unwrap();
    let detections = detections_from_json(case["detections"].to_string().as_bytes(), "detections").unwrap();
    let result = evaluate(&truth, &detections).unwrap();
    let stats: Vec<f64> = case["stats"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_stats("ties", &result, &stats);
    for (class, expected) in result.per_class.iter().zip(case["per_class"].as_array().unwrap()) {
        for (name, value) in [("ap50_95", class.ap50_95), ("ap50", class.ap50)] {
            let equal = match (value, expected[name].as_f64()) {
                (Some(value), Some(expected)) => (value - expected).abs() < 1e-9,
                (value, expected) => value == expected,
            };
            assert!(equal, "{} of {}: {value:?}, expected {}", name, class.name, expected[name]);
        }
    }
}
