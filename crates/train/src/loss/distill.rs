//! Distillation: a student's raw maps learn a teacher's, where the teacher sees an object.
//!
//! Probabilities are matched by cross-entropy against the teacher's (Hinton et al., 2015), less the teacher's own
//! entropy, so that equal maps cost 0. Boxes and classes count in proportion to the teacher's certainty that an object is
//! there (Mehta and Ozturk, "Object detection at 200 frames per second", 2018): its objectness, or its best class
//! probability where the head has none.

use graph::{AnchorHead, DflHead, Error, Head, Result, YoloxHead};

use super::bce::{bce, entropy, sigmoid};
use super::v8::sides;
use super::{Criterion, E2eLoss, LossOutput, RawMap, V5Loss, V8Loss, YoloxLoss, dims, v5, yolox};

/// The distillation term. Its parts have the names and gains of the detection loss it is added to.
#[derive(Clone, Debug, PartialEq)]
pub struct Distill {
    /// Factor of the whole term.
    pub weight: f32,
    /// The detection loss whose gains are used.
    pub gains: Criterion,
}

impl Distill {
    /// Value and gradient by the student's maps. Both sets of maps are as `head` reads them.
    ///
    /// Anchor heads, each level: mean squared difference of the four raw box values and mean class cross-entropy, both
    /// weighted by teacher objectness; mean objectness cross-entropy over all anchors. Distribution heads: cross-entropy
    /// of the sides' distributions ("dfl") and of the classes, weighted by the teacher's best class; "box" is 0. Where they tell
    /// distances, the absolute difference as a share of the image ("l1"). Of end-to-end heads the branches that predict; their
    /// teacher has no others.
    /// YOLOX's heads: what anchor heads with one anchor learn, all levels together and divided, as their loss is, by the
    /// number of objects' points, here the sum of the teacher's objectness.
    ///
    /// # Errors
    /// `head` is not the kind the gains are for.
    ///
    /// # Panics
    /// If student and teacher maps are not those of `head` for one batch.
    pub fn evaluate(&self, head: &Head, student: &[RawMap], teacher: &[RawMap]) -> Result<LossOutput> {
        let taught = if let Head::Dfl(h) = head { h.pairs() } else { head.inputs() };
        assert!(student.len() == head.inputs() && teacher.len() == taught, "maps of student and teacher");
        for (s, t) in student.iter().zip(teacher) {
            assert_eq!((s.n, s.h, s.w, s.c), (t.n, t.h, t.w, t.c), "maps of student and teacher differ");
        }
        match (&self.gains, head) {
            (Criterion::V5(gains), Head::Anchor(h)) => Ok(self.anchor(gains, h, student, teacher)),
            (Criterion::V8(gains), Head::Dfl(h)) => Ok(self.dfl(gains, h, student, teacher)),
            (Criterion::EndToEnd(gains), Head::Dfl(h)) => Ok(self.end_to_end(gains, h, student, teacher)),
            (Criterion::Yolox(gains), Head::Yolox(h)) => Ok(self.yolox(gains, h, student, teacher)),
            _ => Err(Error::node("head", "the distillation is set up for another kind of head")),
        }
    }

    fn anchor(&self, gains: &V5Loss, head: &AnchorHead, student: &[RawMap], teacher: &[RawMap]) -> LossOutput {
        let columns = 5 + head.classes;
        let batch = student.first().map_or(0, |m| m.n);
        let (mut parts, mut grads) = ([0.0f64; 3], Vec::with_capacity(student.len()));
        for (i, (s, t)) in student.iter().zip(teacher).enumerate() {
            dims(s, columns * head.levels[i].anchors.len());
            let rows = || s.data.chunks_exact(columns).zip(t.data.chunks_exact(columns));
            let certain: f64 = rows().map(|(_, t)| f64::from(sigmoid(t[4]))).sum();
            let anchors = (s.data.len() / columns) as f64;
            let weight = f64::from(self.weight);
            let box_scale = weight * f64::from(gains.box_gain) / (4.0 * certain);
            let obj_scale = weight * f64::from(gains.obj_gain * v5::balance(head, i)) / anchors;
            let cls_scale = weight * f64::from(gains.cls_gain) / (head.classes as f64 * certain);

            let mut grad = vec![0.0f32; s.data.len()];
            for ((s, t), grad) in rows().zip(grad.chunks_exact_mut(columns)) {
                let certainty = sigmoid(t[4]);
                for k in 0..4 {
                    let d = s[k] - t[k];
                    parts[0] += box_scale * f64::from(certainty * d * d);
                    grad[k] = (box_scale * batch as f64) as f32 * 2.0 * certainty * d;
                }
                let (value, d) = divergence(s[4], certainty);
                parts[1] += obj_scale * f64::from(value);
                grad[4] = (obj_scale * batch as f64) as f32 * d;
                // A head of one class says everything by its objectness.
                if head.classes > 1 {
                    for k in 5..columns {
                        let (value, d) = divergence(s[k], sigmoid(t[k]));
                        parts[2] += cls_scale * f64::from(certainty * value);
                        grad[k] = (cls_scale * batch as f64) as f32 * certainty * d;
                    }
                }
            }
            grads.push(grad);
        }
        LossOutput::new([0, 1, 2].map(|k| (v5::PARTS[k], parts[k])), batch as f64, grads)
    }

    fn yolox(&self, gains: &YoloxLoss, head: &YoloxHead, student: &[RawMap], teacher: &[RawMap]) -> LossOutput {
        let factor = yolox::factor(student.first().map_or(0, |m| m.n));
        let objectness = teacher.iter().skip(1).step_by(3).flat_map(|m| m.data);
        let certain = objectness.map(|&raw| f64::from(sigmoid(raw))).sum::<f64>().max(1.0);
        let scale = |gain: f32| f64::from(self.weight * gain) / certain;
        let [box_scale, obj_scale, cls_scale] =
            [scale(gains.box_gain) / 4.0, scale(gains.obj_gain), scale(gains.cls_gain)];

        let mut parts = [0.0f64; 3];
        let mut grads: Vec<Vec<f32>> = student.iter().map(|m| vec![0.0; m.data.len()]).collect();
        for (level, grads) in grads.chunks_exact_mut(3).enumerate() {
            let maps: [_; 3] = [0, 1, 2].map(|k| (&student[3 * level + k], &teacher[3 * level + k]));
            for ((map, _), channels) in maps.iter().zip([4, 1, head.classes]) {
                dims(map, channels);
            }
            for (i, &raw) in maps[1].1.data.iter().enumerate() {
                let certainty = sigmoid(raw);
                for (k, grad) in grads[0].iter_mut().enumerate().skip(4 * i).take(4) {
                    let d = maps[0].0.data[k] - maps[0].1.data[k];
                    parts[0] += box_scale * f64::from(certainty * d * d);
                    *grad = (box_scale * factor) as f32 * 2.0 * certainty * d;
                }
                let (value, d) = divergence(maps[1].0.data[i], certainty);
                parts[1] += obj_scale * f64::from(value);
                grads[1][i] = (obj_scale * factor) as f32 * d;
                let classes = grads[2].iter_mut().enumerate().skip(head.classes * i).take(head.classes);
                for (k, grad) in classes {
                    let (value, d) = divergence(maps[2].0.data[k], sigmoid(maps[2].1.data[k]));
                    parts[2] += cls_scale * f64::from(certainty * value);
                    *grad = (cls_scale * factor) as f32 * certainty * d;
                }
            }
        }
        LossOutput::new([0, 1, 2].map(|k| (yolox::PARTS[k], parts[k])), factor, grads)
    }

    fn end_to_end(&self, gains: &E2eLoss, head: &DflHead, student: &[RawMap], teacher: &[RawMap]) -> LossOutput {
        let (predict, help) = student.split_at(head.pairs());
        let mut out = self.dfl(&gains.one_to_one, head, predict, teacher);
        out.grads.extend(help.iter().map(|map| vec![0.0; map.data.len()]));
        out
    }

    fn dfl(&self, gains: &V8Loss, head: &DflHead, student: &[RawMap], teacher: &[RawMap]) -> LossOutput {
        let batch = student.first().map_or(0, |m| m.n);
        let certainty = |classes: &[f32]| sigmoid(classes.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let class_maps = teacher.iter().skip(1).step_by(2);
        let certain: f64 = class_maps.flat_map(|m| m.data.chunks_exact(m.c)).map(|c| f64::from(certainty(c))).sum();
        let norm = certain.max(1.0);
        let cls_scale = f64::from(self.weight * gains.cls_gain) / norm;
        let dfl_scale = f64::from(self.weight * gains.dfl_gain) / (4.0 * norm);

        let (mut cls, mut dfl) = (0.0, 0.0);
        let mut grads: Vec<Vec<f32>> = student.iter().map(|m| vec![0.0; m.data.len()]).collect();
        for (level, grads) in grads.chunks_exact_mut(2).enumerate() {
            let [boxes, classes] = [2 * level, 2 * level + 1];
            dims(&student[boxes], 4 * head.reg_max);
            dims(&student[classes], head.classes);
            let channels = |map: usize, cell: usize| cell * student[map].c..(cell + 1) * student[map].c;
            for i in 0..student[boxes].n * student[boxes].h * student[boxes].w {
                let at = channels(classes, i);
                let (s, t) = (&student[classes].data[at.clone()], &teacher[classes].data[at.clone()]);
                let weight = certainty(t);
                for ((&s, &t), g) in s.iter().zip(t).zip(&mut grads[1][at]) {
                    let (value, d) = divergence(s, sigmoid(t));
                    cls += cls_scale * f64::from(value);
                    *g = (cls_scale * batch as f64) as f32 * d;
                }
                let at = channels(boxes, i);
                if gains.distances {
                    let (map, stride) = (&student[boxes], head.strides[level] as f64);
                    let size = [map.w, map.h].map(|cells| cells as f64 * stride);
                    let both = student[boxes].data[at.clone()].iter().zip(&teacher[boxes].data[at.clone()]);
                    for (k, ((&s, &t), g)) in both.zip(&mut grads[0][at]).enumerate() {
                        let share = dfl_scale * f64::from(weight) * stride / size[k % 2];
                        let miss = f64::from(s - t);
                        dfl += share * miss.abs();
                        // No slope where nothing is missing.
                        *g = if s == t { 0.0 } else { (share * batch as f64 * miss.signum()) as f32 };
                    }
                    continue;
                }
                let (s, t) = (sides(&student[boxes].data[at.clone()]), sides(&teacher[boxes].data[at.clone()]));
                let grad = grads[0][at].chunks_exact_mut(head.reg_max);
                for ((s, t), grad) in s.iter().zip(&t).zip(grad) {
                    for (bin, g) in grad.iter_mut().enumerate() {
                        let p = t.probability(bin);
                        dfl += dfl_scale * f64::from(weight) * p * (s.cost(bin) - t.cost(bin));
                        *g = (dfl_scale * batch as f64 * f64::from(weight) * (s.probability(bin) - p)) as f32;
                    }
                }
            }
        }
        let [boxes, classes, third] = gains.parts();
        LossOutput::new([(boxes, 0.0), (classes, cls), (third, dfl)], batch as f64, grads)
    }
}

/// Kullback-Leibler divergence of the probability `sigmoid(x)` from `target`, and its slope by `x`.
fn divergence(x: f32, target: f32) -> (f32, f32) {
    let (value, slope) = bce(x, target);
    (value - entropy(target), slope)
}
