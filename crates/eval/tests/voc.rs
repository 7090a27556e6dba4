//! VOC average precision against the recorded case, and `difficult` objects.

use std::path::Path;

use eval::voc::{Found, Interpolation, Object, average_precision};

/// The lines of every file of a folder, by file name: (image, numbers after the class name).
fn lines(folder: &Path) -> Vec<(usize, Vec<f64>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut all = Vec::new();
    for (image, file) in files.iter().enumerate() {
        for line in std::fs::read_to_string(file).unwrap().lines() {
            let numbers: Vec<f64> = line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
            if !numbers.is_empty() {
                all.push((image, numbers));
            }
        }
    }
    all
}

/// Corners of a box given by corner and size.
fn corners(v: &[f64]) -> [f64; 4] {
    [v[0], v[1], v[0] + v[2], v[1] + v[3]]
}

#[test]
fn agrees_with_the_recorded_case() {
    let Some(shared) = testkit::shared() else { return };
    let folder = shared.join("reference/voc-map");
    let objects: Vec<Object> = lines(&folder.join("case1/gts"))
        .iter()
        .map(|(image, v)| Object { image: *image, bbox: corners(v), difficult: false })
        .collect();
    let found: Vec<Found> = lines(&folder.join("case1/dets"))
        .iter()
        .map(|(image, v)| Found { image: *image, bbox: corners(&v[1..]), score: v[0] })
        .collect();
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, interpolation) in
        [("11-point AP by IoU", Interpolation::ElevenPoint), ("every-point AP by IoU", Interpolation::EveryPoint)]
    {
        for (threshold, value) in expected[key].as_object().unwrap() {
            let ap = average_precision(&objects, &found, threshold.parse().unwrap(), interpolation).unwrap();
            assert!((ap - value.as_f64().unwrap()).abs() < 1e-9, "{key} {threshold}: {ap}, recorded {value}");
        }
    }
}

#[test]
fn difficult_objects_count_neither_way() {
    let object = |x: f64, difficult| Object { image: 0, bbox: [x, 0.0, x + 9.0, 9.0], difficult };
    let at = |x: f64, score| Found { image: 0, bbox: [x, 0.0, x + 9.0, 9.0], score };
    let objects = [object(0.0, true), object(50.0, false)];
    // The difficult one is found twice, with the highest scores: no harm done.
    let found = [at(0.0, 0.9), at(0.0, 0.8), at(50.0, 0.7)];
    for interpolation in [Interpolation::ElevenPoint, Interpolation::EveryPoint] {
        assert_eq!(average_precision(&objects, &found, 0.5, interpolation), Some(1.0));
        assert_eq!(average_precision(&objects[..1], &found, 0.5, interpolation), None);
        assert_eq!(average_precision(&objects, &[at(50.0, f64::NAN)], 0.5, interpolation), Some(0.0));
    }
}

#[test]
fn a_second_detection_of_one_object_is_wrong() {
    let objects = [0.0, 50.0].map(|x| Object { image: 3, bbox: [x, 0.0, x + 9.0, 9.0], difficult: false });
    let found =
        [(0.0, 0.9), (0.0, 0.8), (50.0, 0.7)].map(|(x, score)| Found { image: 3, bbox: [x, 0.0, x + 9.0, 9.0], score });
    // Right, wrong, right: precision 1 to recall 0.5, then 2/3.
    let ap = average_precision(&objects, &found, 0.5, Interpolation::EveryPoint).unwrap();
    assert!((ap - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-12, "{ap}");
}
