//! Real datasets, and the letterboxed batch the reference implementations were given.

use std::path::Path;

use data::doctor;
use data::problem::Kind;
use data::{Dataset, Loader, LoaderConfig, Mode, OpenOptions, open};

fn bccd(shared: &Path) -> Dataset {
    open(&shared.join("data/bccd"), &OpenOptions::default()).unwrap()
}

#[test]
fn bccd_is_read_as_voc() {
    let Some(shared) = testkit::shared() else { return };
    let dataset = bccd(&shared);
    let counts: Vec<_> = dataset.splits.iter().map(|(name, s)| (name.as_str(), s.items.len())).collect();
    assert_eq!(counts, [("test", 72), ("train", 205), ("val", 87)]);
    let skipped: Vec<_> =
        dataset.splits.values().flat_map(|s| &s.problems).filter(|p| p.kind == Kind::NoArea).collect();
    assert_eq!(skipped.len(), 2, "{skipped:?}");
    for (image, problem) in ["BloodImage_00338", "BloodImage_00343"].iter().zip(&skipped) {
        assert!(skipped.iter().any(|p| p.place.contains(image)), "{image} is not among them: {problem:?}");
    }
    assert!(dataset.split("valid").unwrap_err().to_string().contains("`valid`"));
    assert_eq!(dataset.names, ["WBC", "RBC", "Platelets"], "order of first appearance in the train split");
}

#[test]
fn coco_is_read_with_its_ids() {
    let Some(shared) = testkit::shared() else { return };
    let dataset = open(&shared.join("data/coco-val-206"), &OpenOptions::default()).unwrap();
    let split = dataset.split("val").unwrap();
    let boxes: Vec<_> = split.items.iter().flat_map(|i| &i.boxes).collect();
    assert_eq!((split.items.len(), boxes.len()), (206, 1786));
    assert_eq!(boxes.iter().filter(|b| b.crowd).count(), 21);
    assert_eq!(split.problems, []);
    assert_eq!((dataset.names.len(), dataset.names[79].as_str()), (80, "toothbrush"));
    assert_eq!((dataset.category_ids[0], dataset.category_ids[79]), (1, 90));
    assert_eq!(split.items[0].id, 139);
}

#[test]
fn the_doctor_passes_coco_and_finds_bccds_two_boxes() {
    let Some(shared) = testkit::shared() else { return };
    let report = doctor::check(&bccd(&shared));
    assert_eq!(report.count(Kind::NoArea), 2);
    assert_eq!([Kind::MissingImage, Kind::Unreadable, Kind::EmptyClass].map(|k| report.count(k)), [0; 3]);
    println!("{}", serde_json::to_string(&report).unwrap());
}

#[test]
fn letterboxed_batch_matches_pil() {
    let Some(shared) = testkit::shared() else { return };
    let golden = testkit::tensors(&shared.join("golden/yolov5n/batch.safetensors"));
    let dataset = bccd(&shared);
    let items = &dataset.split("train").unwrap().items[..4];
    let config = LoaderConfig { size: 320, batch: 4, mode: Mode::Val(data::Fit::Letterbox), ..LoaderConfig::default() };
    let batch = Loader::new(items, config).unwrap().epoch(0).next().unwrap().unwrap();

    // The file calls them (N, C, H, W); its bytes lie as (N, H, W, C).
    let images = &golden["images_u8"].data;
    assert_eq!(images.len(), batch.images.len());
    let differences: Vec<f32> = images.iter().zip(&batch.images).map(|(a, &b)| (a - f32::from(b)).abs()).collect();
    let mean = differences.iter().sum::<f32>() / differences.len() as f32;
    let max = differences.iter().copied().fold(0.0, testkit::larger);
    println!("against PIL: mean {mean:.4}, max {max}");
    assert!(mean < 0.2 && max <= 6.0, "mean {mean}, max {max}");

    // The classes in the order in which the reference was given them.
    let classes = ["RBC", "WBC", "Platelets"];
    let labels: Vec<_> = golden["labels"].data.chunks_exact(6).collect();
    assert_eq!(labels.len(), batch.targets.len());
    for (label, target) in labels.iter().zip(&batch.targets) {
        assert_eq!(label[0], target.image as f32);
        assert_eq!(classes[label[1] as usize], dataset.names[target.class]);
        assert!(testkit::max_abs_diff(&label[2..], &target.bbox) < 1e-6, "{label:?} and {target:?}");
    }
}
