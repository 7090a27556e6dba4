//! The shortcut of `detect` against decoding everything first, and `nms` against a plain reading of its rule.

use eval::{Detection, Layout, NmsConfig, Predictions, RawMap, candidates_from_rows, decode, detect, nms};
use graph::{AnchorHead, AnchorLevel, BoxDecode, DflHead, Extra, Head, YoloxHead};
use proptest::prelude::*;

const CLASSES: usize = 3;

fn heads() -> impl Strategy<Value = Head> {
    let decode = prop_oneof![
        Just(BoxDecode::V5),
        (1.0f32..2.0).prop_map(|scale_xy| BoxDecode::Darknet { scale_xy }),
        (1.0f32..2.0).prop_map(|scale_xy| BoxDecode::DarknetNew { scale_xy }),
    ];
    let anchors = decode.prop_map(|decode| {
        let level = |stride| AnchorLevel { stride, anchors: vec![[12.0, 16.0], [33.0, 23.0]], decode };
        Head::Anchor(AnchorHead { classes: CLASSES, levels: vec![level(8), level(16)] })
    });
    let extra = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Extra::Masks { prototypes: 2 })),
        1 => Just(Some(Extra::Keypoints { points: 2, values: 3 })),
    ];
    prop_oneof![
        anchors,
        extra.prop_map(|extra| Head::Dfl(DflHead { extra, ..DflHead::new(CLASSES, 4, vec![8, 16]) })),
        Just(Head::Yolox(YoloxHead { classes: CLASSES, strides: vec![8, 16] })),
    ]
}

/// Raw values: spread out, equal ones among them, and what a diverged model gives.
fn raw() -> impl Strategy<Value = f32> {
    prop_oneof![8 => -6.0f32..6.0, 2 => Just(0.0), 2 => 0.0f32..1.0, 1 => Just(40.0), 1 => Just(f32::NAN)]
}

/// Height, width, channels and values of a map for two images.
type OwnedMap = (usize, usize, usize, Vec<f32>);

/// A head with maps for two images of 32x48 pixels.
fn case() -> impl Strategy<Value = (Head, Vec<OwnedMap>)> {
    heads().prop_flat_map(|head| {
        let maps: Vec<_> = (0..head.inputs())
            .map(|i| {
                let stride = head.input_stride(i);
                let (h, w, c) = (32 / stride, 48 / stride, head.input_channels(i));
                prop::collection::vec(raw(), 2 * h * w * c).prop_map(move |data| (h, w, c, data))
            })
            .collect();
        (Just(head), maps)
    })
}

fn config() -> impl Strategy<Value = NmsConfig> {
    let conf = prop_oneof![Just(0.0), Just(0.001), Just(0.25), Just(0.5), Just(1.0), 0.0f32..1.0];
    (conf, 0.1f32..0.9, 0usize..60, any::<bool>()).prop_map(|(conf, iou, max_det, multi_label)| NmsConfig {
        conf,
        iou,
        max_det,
        multi_label,
    })
}

/// Bit patterns, so that a NaN equals itself, whatever its sign.
fn bits(detections: &[Vec<Detection>]) -> Vec<Vec<([u32; 4], u32, usize)>> {
    let bits = |v: f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
    let one = |d: &Detection| (d.bbox.map(bits), bits(d.score), d.class);
    detections.iter().map(|image| image.iter().map(one).collect()).collect()
}

/// The rule word for word: all candidates, sorted; each drops the worse ones of its class that it overlaps.
fn plain_nms(predictions: &Predictions, image: usize, config: &NmsConfig) -> Vec<Detection> {
    let mut candidates = Vec::new();
    for row in predictions.rows(image) {
        let scores: Vec<f32> = row[5..].iter().map(|p| p * row[4]).collect();
        let best = scores.iter().copied().fold(f32::MIN, f32::max);
        let first_best = scores.iter().position(|&s| s == best);
        for (class, &score) in scores.iter().enumerate() {
            if score > config.conf && (config.multi_label || first_best == Some(class)) {
                let [x, y, w, h] = [row[0], row[1], row[2] / 2.0, row[3] / 2.0];
                candidates.push(Detection { bbox: [x - w, y - h, x + w, y + h], score, class });
            }
        }
    }
    candidates.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap());
    let mut gone = vec![false; candidates.len()];
    for i in 0..candidates.len() {
        for j in i + 1..candidates.len() {
            let (a, b) = (candidates[i], candidates[j]);
            if !gone[i] && a.class == b.class && iou(a.bbox, b.bbox) > config.iou {
                gone[j] = true;
            }
        }
    }
    candidates.into_iter().zip(gone).filter(|(_, gone)| !gone).map(|(c, _)| c).take(config.max_det).collect()
}

fn iou(a: [f32; 4], b: [f32; 4]) -> f32 {
    let side = |i: usize| (a[i + 2].min(b[i + 2]) - a[i].max(b[i])).max(0.0);
    let area = |r: [f32; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    let inter = side(0) * side(1);
    inter / (area(a) + area(b) - inter)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn detect_equals_decode_and_nms((head, maps) in case(), config in config()) {
        let maps: Vec<RawMap> =
            maps.iter().map(|(h, w, c, data)| RawMap { n: 2, h: *h, w: *w, c: *c, data }).collect();
        let slow = nms(&decode(&head, &maps), &config);
        prop_assert_eq!(bits(&detect(&head, &maps, &config)), bits(&slow));
    }

    #[test]
    fn nms_equals_its_rule(
        rows in prop::collection::vec(prop::array::uniform7(0.0f32..1.0), 0..60),
        config in config(),
    ) {
        let values: Vec<f32> = rows.concat();
        let predictions = candidates_from_rows(&values, [1, rows.len(), 7], Layout::Rows, 2).unwrap();
        prop_assert_eq!(&nms(&predictions, &config)[0], &plain_nms(&predictions, 0, &config));
    }
}
