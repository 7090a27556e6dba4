//! The report of an invented run: complete, self-contained, and proof against what names may hold.

use super::*;
use crate::int8::{Measured, Outcome};

fn sample() -> ReportData {
    let names = ["dense", "sparse", "masked", "folded", "replaced", "recalibrated", "healed"];
    let map = [0.561, 0.549, 0.102, 0.418, 0.447, 0.462, 0.553];
    let stages = names.iter().zip(map).enumerate().map(|(i, (name, map))| StageRow {
        stage: (*name).into(),
        imgsz: 320,
        params: if i < 2 { 1_765_270 } else { 712_034 },
        macs: if i < 2 { 560_000_000 } else { 279_800_000 },
        bytes: if i < 2 { 7_174_000 } else { 2_921_000 },
        map50: map + 0.31,
        test: (i % 2 == 0).then_some(Accuracy { map50: map + 0.3, map50_95: map - 0.01 }),
        map50_95: map,
        ms_per_image: Some(if i < 2 { 21.4 } else { 12.9 }),
    });
    let channels = (0..57).map(|i| {
        let before = [16, 32, 64, 128, 256][i / 12];
        LayerChannels {
            name: format!("model.{}.m.{}.cv{}.conv", i / 3, i % 2, 1 + i % 3),
            before,
            after: before * (i * 7 % 10 + 1) / 11 + 4,
        }
    });
    let gammas = (0..12u8).map(|epoch| {
        let shift = f64::from(epoch) / 12.0;
        let count = |k: usize| {
            let x = (k as f64 + 0.5) / 40.0 * 2.0;
            let bump = (-(x - 1.0 + 0.4 * shift).powi(2) / 0.08).exp() * 260.0 * (1.0 - 0.6 * shift);
            (bump + if k == 0 { 2400.0 * shift } else { 0.0 }) as u32
        };
        GammaHistogram {
            epoch: usize::from(epoch) + 1,
            lambda: 0.1,
            near_zero: 0.01,
            share: 0.6 * shift as f32,
            median: 0.5,
            max: 2.0,
            top: 2.0,
            counts: (0..40).map(count).collect(),
        }
    });
    let curve = |stage: &str, good: f64| PrCurve {
        stage: stage.into(),
        points: (0..=100).map(|i| f64::from(i) / 100.0).map(|r| [r, (1.0 - r.powf(good)).max(0.0)]).collect(),
    };
    let panel = |title: &str, bend: f64| PrPanel {
        title: title.into(),
        curves: vec![curve("dense", 6.0 * bend), curve("replaced", 2.5 * bend), curve("healed", 5.5 * bend)],
    };
    let pixel = |grey: u8| {
        let mut bytes = Vec::new();
        let image = image::RgbImage::from_pixel(64, 48, image::Rgb([grey, grey / 2 + 90, 160]));
        image.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        Picture { mime: "image/png", bytes }
    };
    ReportData {
        summary: Summary {
            model: "yolov5n.pt".into(),
            data: "data/<bccd> & more".into(),
            agreement: false,
            split: "test".into(),
            imgsz: 320,
            seed: 0,
            stages: stages.collect(),
            targets: vec![TargetRow {
                what: "latency".into(),
                unit: "ms".into(),
                asked: 12.0,
                predicted: 11.9,
                measured: 13.4,
                dense: 21.6,
                reference: 24.0,
            }],
            sizes: vec![],
            trials: Some(Trials {
                dense: 0.561,
                trials: vec![Trial { imgsz: 320, macs: 0.525, map50_95: Some(0.55) }],
            }),
            int8: Some(Outcome {
                calibration_images: 128,
                validation_images: 87,
                f32: Measured { bytes: 2_800_000, map50: Some(0.8123), map50_95: Some(0.5123) },
                int8: Measured { bytes: 800_000, map50: Some(0.8088), map50_95: Some(0.5077) },
            }),
        },
        channels: channels.collect(),
        gammas: gammas.collect(),
        curves: vec![panel("all classes", 1.0), panel("RBC", 0.8), panel("WBC", 2.0), panel("Platelets", 0.9)],
        images: vec![
            Pair { caption: "BloodImage_00007".into(), dense: pixel(200), slim: pixel(180) },
            Pair { caption: "\"quoted\"".into(), dense: pixel(20), slim: pixel(80) },
        ],
        times: vec![KindTime { kind: "conv 3x3 <on> 40x40".into(), before: 4.0, after: 2.25 }],
        notes: vec!["2 boxes without area were skipped".into()],
        recipe: "[budget]\nmacs = 0.5\n\n[train]\nepochs = 25 # <- few\n".into(),
        environment: vec![
            ("version".into(), "0.1.0".into()),
            ("command".into(), "prunella compress --macs 0.5".into()),
        ],
    }
}

/// Set `PRUNELLA_REPORT_SAMPLE` to a path to look at the page.
#[test]
fn the_page_is_complete_and_needs_nothing_else() {
    let page = render(&sample());
    if let Some(path) = std::env::var_os("PRUNELLA_REPORT_SAMPLE") {
        std::fs::write(path, &page).unwrap();
    }
    for part in ["Stages", "Channels of each layer", "Scales under", "Precision and recall", "both detectors", "Recipe"]
    {
        assert!(page.contains(part), "no {part}");
    }
    for part in ["Targets", "11.90 ms", "13.40 ms", "+25.1 %", "conv 3x3 &lt;on&gt; 40x40", "2.25", "0.525", "0.5077"] {
        assert!(page.contains(part), "no {part}");
    }
    for outside in ["http:", "https:", "<script", "<link", "url("] {
        assert!(!page.contains(outside), "refers to {outside}");
    }
    assert_eq!(page.matches("test mAP50-95").count(), 1);
    assert_eq!(page.matches("<section>").count(), page.matches("</section>").count());
    assert_eq!(page.matches("<svg").count(), 6);
    assert_eq!(page.matches("data:image/png;base64,").count(), 4);
    assert!(!page.contains("NaN") && !page.contains("inf"), "a coordinate is no number");
}

#[test]
fn text_from_outside_stays_text() {
    let page = render(&sample());
    assert!(page.contains("data/&lt;bccd&gt; &amp; more") && !page.contains("<bccd>"));
    assert!(page.contains("alt=\"&quot;quoted&quot;, boxes"));
    assert!(page.contains("# &lt;- few"));
}

#[test]
fn sizes_are_told_where_they_differ() {
    let mut data = sample();
    assert!(!render(&data).contains("<th>images</th>"));
    data.summary.stages[1].imgsz = 256;
    data.summary.sizes = vec![SizeTrial { imgsz: 256, left: None }];
    let page = render(&data);
    assert!(page.contains("<th>images</th>") && page.contains("<td>256×256 px</td>"));
    assert!(page.contains("<h2>Sizes of images tried</h2>") && page.contains("320×320 px were taken"));
    data.summary.targets.clear();
    assert!(!page.contains("<td>320×320 px</td><td>0.525</td>"), "all cuts tried are for images of one size");
    let trials = data.summary.trials.as_mut().expect("cuts");
    trials.trials.push(Trial { imgsz: 256, macs: 0.4, map50_95: None });
    let page = render(&data);
    assert!(page.contains("<td>320×320 px</td><td>0.525</td>") && page.contains("<td>256×256 px</td><td>0.400</td>"));
    assert!(page.contains("<h2>Sizes of images tried</h2>") && page.contains("<h2>Cuts tried</h2>"));
    assert!(!page.contains("<h2>Targets</h2>") && !page.contains("Predicted by the plan"));
}

#[test]
fn an_empty_run_still_renders() {
    let mut data = sample();
    data.summary.stages.clear();
    data.summary.targets.clear();
    data.summary.trials = None;
    let data = ReportData { channels: vec![], gammas: vec![], curves: vec![], images: vec![], times: vec![], ..data };
    let page = render(&data);
    assert!(!page.contains("<svg") && !page.contains("Stages") && !page.contains("Targets"));
}

#[test]
fn the_mean_curve_interpolates_as_coco_does() {
    // Class a: precision 1 up to recall 0.5, then 0.5 at recall 1; class b: 0.8 up to recall 0.25, nothing beyond.
    let a = vec![[0.5, 1.0], [0.5, 0.6], [1.0, 0.5]];
    let b = vec![[0.25, 0.8]];
    let mean = mean_curve(&[a, b]);
    assert_eq!(mean.len(), 101);
    assert_eq!(mean[0], [0.0, 0.9]);
    assert_eq!(mean[25], [0.25, 0.9]);
    assert_eq!(mean[26], [0.26, 0.5]);
    assert_eq!(mean[51], [0.51, 0.25]);
    assert_eq!(mean[100], [1.0, 0.25]);
    assert!(mean_curve(&[]).is_empty());
}
