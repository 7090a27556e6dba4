//! Losses and their gradients against numbers PyTorch's autograd gave for the published formulas on random maps, and the
//! slope of distillation against differences; and that a training takes the weights its recipe names.

use std::collections::HashMap;
use std::path::Path;

use data::Target;
use data::synth::{self, SynthConfig};
use graph::{AnchorHead, AnchorLevel, BoxDecode, DflHead, Head, Tensor, YoloxHead};
use train::loss::{Criterion, Distill, E2eLoss, LossOutput, RawMap, V5Loss, V8Loss, YoloxLoss};
use train::watch::{EpochReport, Watch};
use train::{Task, Teacher, TrainConfig, train};

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn open(name: &str) -> Self {
        Self(testkit::tensors(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)))
    }

    fn maps(&self) -> Vec<RawMap<'_>> {
        let map = |t: &'_ Tensor| (t.shape[0], t.shape[1], t.shape[2], t.shape[3]);
        let all = (0..).map_while(|i| self.0.get(&format!("map{i}")));
        all.map(|t| {
            let (n, h, w, c) = map(t);
            RawMap { n, h, w, c, data: &t.data }
        })
        .collect()
    }

    fn targets(&self) -> Vec<Target> {
        let row = |r: &[f32]| Target { image: r[0] as usize, class: r[1] as usize, bbox: [r[2], r[3], r[4], r[5]] };
        self.0["targets"].data.chunks_exact(6).map(row).collect()
    }

    /// `loss` holds total and the three parts.
    fn check(&self, got: &LossOutput) {
        let want = &self.0["loss"].data;
        let values = [("total", got.value.total)].into_iter().chain(got.value.parts);
        for ((name, value), want) in values.zip(want) {
            assert!((value - want).abs() < 2e-6 * want.abs(), "{name} is {value}, not {want}");
        }
        for (i, grad) in got.grads.iter().enumerate() {
            let want = &self.0[&format!("grad{i}")].data;
            let scale = want.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            let worst = testkit::max_abs_diff(grad, want);
            println!("map {i}: gradients up to {scale:.3e} differ by {worst:.1e}");
            assert!(worst < 1e-5 * scale, "gradient of map {i} is off by {worst}, its largest value is {scale}");
        }
    }
}

fn v5_head() -> AnchorHead {
    let anchors = [
        [[10., 13.], [16., 30.], [33., 23.]],
        [[30., 61.], [62., 45.], [59., 119.]],
        [[116., 90.], [156., 198.], [373., 326.]],
    ];
    let level = |i: usize| AnchorLevel { stride: 8 << i, anchors: anchors[i].to_vec(), decode: BoxDecode::V5 };
    AnchorHead { classes: 4, levels: (0..3).map(level).collect() }
}

#[test]
fn v5_equals_pytorch() {
    let golden = Golden::open("loss_v5.safetensors");
    golden.check(&V5Loss::default().evaluate(&v5_head(), &golden.maps(), &golden.targets()).unwrap());
}

#[test]
fn v5_without_targets_teaches_objectness_only() {
    let golden = Golden::open("loss_v5.safetensors");
    let out = V5Loss::default().evaluate(&v5_head(), &golden.maps(), &[]).unwrap();
    assert_eq!((out.value.parts[0].1, out.value.parts[2].1), (0.0, 0.0));
    for grad in &out.grads {
        for anchor in grad.chunks_exact(9) {
            assert!(anchor[4] > 0.0 && anchor.iter().enumerate().all(|(k, &g)| k == 4 || g == 0.0));
        }
    }
}

#[test]
fn boxes_count_as_much_as_they_are_told_to() {
    let golden = Golden::open("loss_v5.safetensors");
    let (head, published) = (Head::Anchor(v5_head()), Criterion::V5(V5Loss::default()));
    let of = |criterion: Criterion| criterion.evaluate(&head, &golden.maps(), &golden.targets()).unwrap();
    let (plain, weighed) = (of(published.clone()), of(published.tuned(4.0, 4.0)));
    let factors = [4.0, 1.0, 1.0];
    for ((plain, weighed), factor) in plain.value.parts.iter().zip(weighed.value.parts).zip(factors) {
        assert_eq!((plain.0, factor * plain.1), weighed);
    }
    let mut moved = 0;
    for (plain, weighed) in plain.grads.iter().zip(&weighed.grads) {
        for (k, (plain, weighed)) in plain.iter().zip(weighed).enumerate() {
            let boxes = k % 9 < 4;
            assert_eq!(if boxes { 4.0 * plain } else { *plain }, *weighed);
            moved += usize::from(boxes && *plain != 0.0);
        }
    }
    assert!(moved > 0, "no box is matched: nothing is shown");
}

#[test]
fn fewer_anchors_learn_a_box_where_they_have_to_be_nearer() {
    let golden = Golden::open("loss_v5.safetensors");
    let head = Head::Anchor(v5_head());
    let learning = |anchor_t: f32| {
        let criterion = Criterion::V5(V5Loss::default()).tuned(1.0, anchor_t);
        let out = criterion.evaluate(&head, &golden.maps(), &golden.targets()).unwrap();
        out.grads.iter().flat_map(|g| g.chunks_exact(9)).filter(|anchor| anchor[0] != 0.0).count()
    };
    let [published, half, nearest] = [4.0, 2.0, 1.0].map(learning);
    assert!(published > half && half > nearest && nearest > 0, "{published} {half} {nearest}");
}

/// Keeps the losses of the last epoch.
#[derive(Default)]
struct Losses(Vec<f64>);

impl Watch for Losses {
    fn epoch(&mut self, report: &EpochReport) {
        self.0 = report.losses.iter().map(|(_, value)| *value).collect();
    }
}

/// Losses of a detector before any step, on one batch, as a training by `config` tells them. `teacher` is asked for with the seed of an
/// untrained detector, and whether the labels are said to be its own.
fn first_losses(config: TrainConfig, teacher: Option<(u64, bool)>) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let yaml = synth::write(folder.path(), &SynthConfig { train: 4, val: 1, test: 1, size: 64, seed: 1 }).unwrap();
    let dataset = data::open(&yaml, &data::OpenOptions::default()).unwrap();
    let detector = |seed| {
        let names = dataset.names.clone();
        graph::build::Yolov5 { names, imgsz: 64, width: 0.125, depth: 0.33, seed }.build().unwrap()
    };
    let (start, dense) = (detector(2), teacher.map(|(seed, labels)| (detector(seed), labels)));
    let teacher = dense.as_ref().map(|&(ref graph, labels)| Teacher { graph, labels });
    let task = Task { start: &start, dataset: &dataset, teacher, standing: None, out: folder.path(), resume: false };
    let mut seen = Losses::default();
    train(&task, &TrainConfig { epochs: 1, batch: 4, imgsz: 64, ..config }, &mut seen).unwrap();
    seen.0
}

#[test]
fn a_training_weighs_boxes_as_its_recipe_says() {
    let losses = |boxes| first_losses(TrainConfig { boxes, ..TrainConfig::default() }, None);
    let (plain, weighed) = (losses(1.0), losses(4.0));
    assert!(plain[0] > 0.0, "{plain:?}");
    assert_eq!(weighed, [4.0 * plain[0], plain[1], plain[2]]);
}

#[test]
fn of_labels_that_are_the_teachers_own_only_boxes_are_learnt() {
    let losses = |teacher| first_losses(TrainConfig { distill: 1.0, ..TrainConfig::default() }, teacher);
    let [labels, both, own] = [None, Some((3, false)), Some((3, true))].map(losses);
    // What following the teacher costs, by itself.
    let follows = [0, 1, 2].map(|part| both[part] - labels[part]);
    assert!(labels.iter().chain(&follows).all(|&loss| loss > 1e-5), "{labels:?} {follows:?}");
    for (part, labels) in [labels[0], 0.0, 0.0].into_iter().enumerate() {
        let wanted = labels + follows[part];
        assert!((own[part] - wanted).abs() < 1e-6 * both[part], "part {part}: {} for {wanted}", own[part]);
    }
}

fn v8_head() -> DflHead {
    DflHead::new(3, 8, vec![8, 16, 32])
}

#[test]
fn v8_equals_pytorch() {
    let golden = Golden::open("loss_v8.safetensors");
    golden.check(&V8Loss::default().evaluate(&v8_head(), &golden.maps(), &golden.targets()).unwrap());
}

#[test]
fn v8_without_targets_teaches_classes_only() {
    let golden = Golden::open("loss_v8.safetensors");
    let out = V8Loss::default().evaluate(&v8_head(), &golden.maps(), &[]).unwrap();
    assert_eq!((out.value.parts[0].1, out.value.parts[2].1), (0.0, 0.0));
    for pair in out.grads.chunks_exact(2) {
        assert!(pair[0].iter().all(|&g| g == 0.0) && pair[1].iter().all(|&g| g > 0.0));
    }
}

fn e2e_head(reg_max: usize) -> DflHead {
    DflHead { end_to_end: true, one_to_many: true, ..DflHead::new(3, reg_max, vec![8, 16, 32]) }
}

/// Random maps of both pairs of branches, objects that share points and three narrower than a cell of the second level. The
/// reference (`data/make_e2e.py`) is the package YOLO26 comes from; of the distances some are negative.
#[test]
fn end_to_end_equals_its_reference() {
    for (file, reg_max, third) in [("loss_e2e_l1.safetensors", 1, "l1"), ("loss_e2e_dfl.safetensors", 4, "dfl")] {
        let golden = Golden::open(file);
        let head = Head::Dfl(e2e_head(reg_max));
        let mut criterion = Criterion::of(&head, 96).unwrap();
        assert_eq!(criterion.parts(), ["box", "cls", third]);
        golden.check(&criterion.evaluate(&head, &golden.maps(), &golden.targets()).unwrap());
        // One-to-many counts less from epoch to epoch: here the last of five.
        criterion.at(4, 5);
        let last = criterion.evaluate(&head, &golden.maps(), &golden.targets()).unwrap().value.total;
        let want = golden.0["last_total"].data[0];
        assert!((last - want).abs() < 2e-6 * want, "{file}: {last}, not {want}");
    }
}

#[test]
fn one_to_one_alone_is_trained_where_there_is_no_more() {
    let golden = Golden::open("loss_e2e_l1.safetensors");
    let both = e2e_head(1);
    let one = DflHead { one_to_many: false, ..both.clone() };
    let loss = E2eLoss::of(&both);
    let mixed = loss.evaluate(&both, &golden.maps(), &golden.targets()).unwrap();
    let alone = loss.evaluate(&one, &golden.maps()[..6], &golden.targets()).unwrap();
    assert_eq!(alone.value.parts, mixed.value.parts);
    assert_eq!(alone.grads.len(), 6);
    for (alone, mixed) in alone.grads.iter().flatten().zip(mixed.grads[..6].iter().flatten()) {
        assert!((0.2 * alone - mixed).abs() <= 1e-6 * alone.abs(), "{alone} {mixed}");
    }
}

fn yolox_head() -> YoloxHead {
    YoloxHead { classes: 3, strides: vec![8, 16, 32] }
}

/// Seven objects an image, of which some share a point and some take several.
#[test]
fn yolox_equals_pytorch() {
    let golden = Golden::open("loss_yolox.safetensors");
    golden.check(&YoloxLoss::default().evaluate(&yolox_head(), &golden.maps(), &golden.targets()).unwrap());
}

#[test]
fn yolox_without_targets_teaches_objectness_only() {
    let golden = Golden::open("loss_yolox.safetensors");
    let out = YoloxLoss::default().evaluate(&yolox_head(), &golden.maps(), &[]).unwrap();
    assert_eq!((out.value.parts[0].1, out.value.parts[2].1), (0.0, 0.0));
    for level in out.grads.chunks_exact(3) {
        assert!(level[1].iter().all(|&g| g > 0.0));
        assert!(level[0].iter().chain(&level[2]).all(|&g| g == 0.0));
    }
}

/// `value` off `from`, where an absolute difference has no slope.
fn apart(value: f32, from: f32) -> f32 {
    if (value - from).abs() < 0.02 { from + 0.02 } else { value }
}

/// Distillation from other maps of the same head: the gradient along a direction is the slope along it, and equal maps
/// cost nothing.
fn check_distillation(golden: &Golden, head: &Head, gains: Criterion) {
    let maps = golden.maps();
    // A teacher has the maps that predict.
    let teacher = &maps[..if let Head::Dfl(head) = head { head.pairs() } else { maps.len() }];
    let student: Vec<Vec<f32>> = maps
        .iter()
        .map(|m| m.data.iter().enumerate().map(|(i, v)| apart(0.8 * v + 0.1 * (i % 5) as f32, *v)).collect())
        .collect();
    let distill = Distill { weight: 2.0, gains };
    let at = |data: &[Vec<f32>]| {
        let student: Vec<_> = maps.iter().zip(data).map(|(m, data)| RawMap { data, ..*m }).collect();
        distill.evaluate(head, &student, teacher).unwrap()
    };
    let out = at(&student);
    assert!(out.value.total > 0.01, "{:?}", out.value);
    let direction = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 1000.0 - 0.4;
    let moved = |by: f32| {
        let mut data = student.clone();
        data.iter_mut().flatten().enumerate().for_each(|(i, v)| *v += by * direction(i));
        f64::from(at(&data).value.total)
    };
    let slope = (moved(0.01) - moved(-0.01)) / 0.02;
    let along: f64 = out.grads.iter().flatten().enumerate().map(|(i, &g)| f64::from(g * direction(i))).sum();
    assert!((slope - along).abs() < 1e-3 * slope.abs(), "slope {slope}, gradient {along}");

    let same: Vec<Vec<f32>> = maps.iter().map(|m| m.data.to_vec()).collect();
    let none = at(&same);
    assert!(none.value.total.abs() < 1e-5, "{:?}", none.value);
    assert!(none.grads.iter().flatten().all(|g| g.abs() < 1e-6));
}

#[test]
fn distillation_of_anchor_maps_has_the_slope_it_says() {
    check_distillation(
        &Golden::open("loss_v5.safetensors"),
        &Head::Anchor(v5_head()),
        Criterion::V5(V5Loss::default()),
    );
}

#[test]
fn distillation_of_distributions_has_the_slope_it_says() {
    check_distillation(&Golden::open("loss_v8.safetensors"), &Head::Dfl(v8_head()), Criterion::V8(V8Loss::default()));
}

#[test]
fn distillation_of_end_to_end_maps_has_the_slope_it_says() {
    for (file, reg_max) in [("loss_e2e_l1.safetensors", 1), ("loss_e2e_dfl.safetensors", 4)] {
        let head = e2e_head(reg_max);
        let gains = Criterion::EndToEnd(E2eLoss::of(&head));
        check_distillation(&Golden::open(file), &Head::Dfl(head), gains);
    }
}

#[test]
fn distillation_of_decoupled_maps_has_the_slope_it_says() {
    let head = Head::Yolox(yolox_head());
    check_distillation(&Golden::open("loss_yolox.safetensors"), &head, Criterion::Yolox(YoloxLoss::default()));
}

/// Maps of one image, 1 x 2 cells each, and a teacher's, which is hardly ever sure where `sure` is low.
fn taught(channels: &[usize], sure: f32) -> [Vec<Vec<f32>>; 2] {
    let value = |i: usize| ((i * 7919) % 97) as f32 / 48.5 - 1.0;
    let maps = |from: usize, less: f32| {
        let map = |(m, &c): (usize, &usize)| (0..2 * c).map(|i| value(from + 31 * m + i) - less).collect();
        channels.iter().enumerate().map(map).collect()
    };
    [maps(3, 0.0), maps(50, sure)]
}

fn all_maps<'a>(data: &'a [Vec<f32>], channels: &[usize]) -> Vec<RawMap<'a>> {
    data.iter().zip(channels).map(|(data, &c)| RawMap { n: 1, h: 1, w: 2, c, data }).collect()
}

fn distilled(head: &Head, gains: Criterion, channels: &[usize], [student, teacher]: &[Vec<Vec<f32>>; 2]) -> [f64; 3] {
    let out = Distill { weight: 2.0, gains }
        .evaluate(head, &all_maps(student, channels), &all_maps(teacher, channels))
        .unwrap();
    out.value.parts.map(|(_, part)| f64::from(part) / 2.0)
}

fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

/// How far one coin is from another.
fn divergence(student: f32, teacher: f32) -> f64 {
    let (s, t) = (sigmoid(student), sigmoid(teacher));
    t * (t / s).ln() + (1.0 - t) * ((1.0 - t) / (1.0 - s)).ln()
}

fn parts_are(name: &str, found: [f64; 3], expected: [f64; 3]) {
    for (found, expected) in found.iter().zip(expected) {
        // A divergence is the small difference of two cross-entropies in f32.
        assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{name}: {found} for {expected}");
    }
}

/// Means over a level weighed by the teacher's objectness; the finest level's objectness counts most.
#[test]
fn distillation_of_anchor_maps_is_its_definition() {
    for classes in [1, 2] {
        let level = |stride| AnchorLevel { stride, anchors: vec![[8.0, 8.0]], decode: BoxDecode::V5 };
        let head = AnchorHead { classes, levels: vec![level(8), level(16)] };
        let channels = [5 + classes; 2];
        let taught = taught(&channels, 0.0);
        let mut expected = [0.0; 3];
        for (balance, (student, teacher)) in [4.0, 1.0].into_iter().zip(taught[0].iter().zip(&taught[1])) {
            let rows: Vec<_> = student.chunks(channels[0]).zip(teacher.chunks(channels[0])).collect();
            let sure: f64 = rows.iter().map(|(_, t)| sigmoid(t[4])).sum();
            for (s, t) in rows {
                let boxes: f64 = (0..4).map(|k| f64::from(s[k] - t[k]).powi(2)).sum();
                let told: f64 = (5..channels[0]).map(|k| divergence(s[k], t[k])).sum();
                expected[0] += 0.05 * sigmoid(t[4]) * boxes / 4.0 / sure;
                expected[1] += balance * divergence(s[4], t[4]) / 2.0;
                // One class says nothing that objectness does not.
                let told = if classes > 1 { told } else { 0.0 };
                expected[2] += 0.5 * sigmoid(t[4]) * told / classes as f64 / sure;
            }
        }
        let found = distilled(&Head::Anchor(head), Criterion::V5(V5Loss::default()), &channels, &taught);
        parts_are(&format!("{classes} classes"), found, expected);
    }
}

/// Sums divided by that of the teacher's objectness, by 1 where it sees next to nothing.
#[test]
fn distillation_of_decoupled_maps_is_its_definition() {
    for sure in [0.0, 9.0] {
        let head = Head::Yolox(YoloxHead { classes: 3, strides: vec![8, 16] });
        let channels = [4, 1, 3, 4, 1, 3];
        let taught = taught(&channels, sure);
        let (mut expected, mut objects) = ([0.0; 3], 0.0);
        for (s, t) in taught[0].chunks(3).zip(taught[1].chunks(3)) {
            for i in 0..2 {
                let there = sigmoid(t[1][i]);
                objects += there;
                let boxes = 4 * i..4 * i + 4;
                expected[0] += 5.0 / 4.0 * there * boxes.map(|k| f64::from(s[0][k] - t[0][k]).powi(2)).sum::<f64>();
                expected[1] += divergence(s[1][i], t[1][i]);
                expected[2] += there * (3 * i..3 * i + 3).map(|k| divergence(s[2][k], t[2][k])).sum::<f64>();
            }
        }
        let found = distilled(&head, Criterion::Yolox(YoloxLoss::default()), &channels, &taught);
        parts_are(&format!("less {sure}"), found, expected.map(|part| part / f64::max(objects, 1.0)));
    }
}

/// Distances count as a share of the image along their own axis.
#[test]
fn distillation_of_distances_is_its_definition() {
    for sure in [0.0, 9.0] {
        let dfl = DflHead::new(2, 1, vec![8]);
        let gains = Criterion::V8(V8Loss::of(&dfl));
        let channels = [4, 2];
        let taught = taught(&channels, sure);
        let [[boxes, classes], [their_boxes, their_classes]] = [&taught[0][..], &taught[1][..]].map(|m| [&m[0], &m[1]]);
        let (mut expected, mut objects) = ([0.0; 3], 0.0);
        for i in 0..2 {
            let there = sigmoid(their_classes[2 * i].max(their_classes[2 * i + 1]));
            objects += there;
            expected[1] += 0.5 * (2 * i..2 * i + 2).map(|k| divergence(classes[k], their_classes[k])).sum::<f64>();
            let off = |k: usize| f64::from(boxes[4 * i + k] - their_boxes[4 * i + k]).abs();
            // Two cells across, one down.
            expected[2] += 1.5 / 4.0 * there * (0..4).map(|k| off(k) / [2.0, 1.0][k % 2]).sum::<f64>();
        }
        let found = distilled(&Head::Dfl(dfl), gains, &channels, &taught);
        parts_are(&format!("less {sure}"), found, expected.map(|part| part / f64::max(objects, 1.0)));
    }
}

#[test]
fn losses_add_up() {
    let golden = Golden::open("loss_v5.safetensors");
    let once = V5Loss::default().evaluate(&v5_head(), &golden.maps(), &golden.targets()).unwrap();
    let mut twice = once.clone();
    twice.add(&once);
    assert_eq!(twice.value.total, 2.0 * once.value.total);
    assert!(twice.value.parts.iter().zip(once.value.parts).all(|(two, one)| two.1 == 2.0 * one.1));
    assert!(twice.grads.iter().flatten().zip(once.grads.iter().flatten()).all(|(two, one)| *two == 2.0 * one));
}

#[test]
fn distances_are_not_taught_as_distributions_nor_the_other_way_round() {
    let [one, four] = [1, 4].map(|reg_max| DflHead::new(2, reg_max, vec![8]));
    for (head, other) in [(&one, &four), (&four, &one)] {
        let channels = [4 * head.reg_max, 2];
        let data = channels.map(|c| vec![0.5; 2 * c]);
        let maps = [0, 1].map(|k| RawMap { n: 1, h: 1, w: 2, c: channels[k], data: &data[k] });
        assert!(V8Loss::of(head).evaluate(head, &maps, &[]).is_ok());
        let error = V8Loss::of(other).evaluate(head, &maps, &[]).unwrap_err().to_string();
        assert!(error.contains("another loss"), "{error}");
    }
}

/// Whether map number `map` of `head` has boxes at `channel`.
fn tells_boxes(head: &Head, map: usize, channel: usize) -> bool {
    match head {
        Head::Anchor(h) => channel % (5 + h.classes) < 4,
        Head::Dfl(_) => map.is_multiple_of(2),
        Head::Yolox(_) => map.is_multiple_of(3),
    }
}

#[test]
fn boxes_alone_are_taught_as_beside_the_rest() {
    let cases = [
        ("loss_v5.safetensors", Head::Anchor(v5_head())),
        ("loss_v8.safetensors", Head::Dfl(v8_head())),
        ("loss_e2e_l1.safetensors", Head::Dfl(e2e_head(1))),
        ("loss_yolox.safetensors", Head::Yolox(yolox_head())),
    ];
    for (file, head) in cases {
        let golden = Golden::open(file);
        let (maps, targets) = (golden.maps(), golden.targets());
        let all = Criterion::of(&head, 96).unwrap();
        let boxes = all.clone().boxes_alone().evaluate(&head, &maps, &targets).unwrap();
        let all = all.evaluate(&head, &maps, &targets).unwrap();
        for (i, (map, (boxes, all))) in maps.iter().zip(boxes.grads.iter().zip(&all.grads)).enumerate() {
            for (at, (&got, &full)) in boxes.iter().zip(all).enumerate() {
                let want = if tells_boxes(&head, i, at % map.c) { full } else { 0.0 };
                assert_eq!(got, want, "{file}, map {i}, value {at}");
            }
        }
        for ((name, got), (_, full)) in boxes.value.parts.into_iter().zip(all.value.parts) {
            assert_eq!(got, if ["obj", "cls"].contains(&name) { 0.0 } else { full }, "{file}, {name}");
        }
        assert!(boxes.value.total > 0.0, "{file}");
    }
}

#[test]
fn maps_past_their_sigmoid_have_no_loss() {
    let mut head = v5_head();
    head.levels[1].decode = BoxDecode::DarknetNew { scale_xy: 2.0 };
    let err = Criterion::of(&Head::Anchor(head), 416).unwrap_err();
    assert!(err.to_string().contains("past their sigmoid"), "{err}");
}
