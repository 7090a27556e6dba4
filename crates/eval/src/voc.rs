//! Pascal VOC average precision: 11-point (VOC 2007) and every-point (since 2010), one class at a time.
//!
//! Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010, and the development kit's matching: each
//! detection goes to the object it overlaps most, whether or not that one is already taken.

/// How a precision-recall curve becomes one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Mean of the best precision at recall 0, 0.1, ..., 1 (VOC 2007).
    ElevenPoint,
    /// Area under the curve made monotonic (since VOC 2010).
    EveryPoint,
}

/// A labelled object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Index of the image.
    pub image: usize,
    /// x1, y1, x2, y2 in pixels, the last row and column included.
    pub bbox: [f64; 4],
    /// Neither to be found nor counted against a detection that finds it.
    pub difficult: bool,
}

/// A detected object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Index of the image.
    pub image: usize,
    /// x1, y1, x2, y2 in pixels, the last row and column included.
    pub bbox: [f64; 4],
    pub score: f64,
}

/// Average precision of one class at an IoU threshold; `None` if there is no object to find.
///
/// Detections whose score is not a number are left out; equal scores keep their order.
pub fn average_precision(
    objects: &[Object],
    found: &[Found],
    threshold: f64,
    interpolation: Interpolation,
) -> Option<f64> {
    let instances = objects.iter().filter(|object| !object.difficult).count();
    if instances == 0 {
        return None;
    }
    let points = curve(objects, found, threshold, instances);
    Some(match interpolation {
        Interpolation::ElevenPoint => eleven_point(&points),
        Interpolation::EveryPoint => every_point(&points),
    })
}

/// (recall, precision) after every detection that counts.
fn curve(objects: &[Object], found: &[Found], threshold: f64, instances: usize) -> Vec<(f64, f64)> {
    let mut by_image: Vec<Vec<usize>> = Vec::new();
    for (i, object) in objects.iter().enumerate() {
        if by_image.len() <= object.image {
            by_image.resize(object.image + 1, Vec::new());
        }
        by_image[object.image].push(i);
    }
    let mut order: Vec<&Found> = found.iter().filter(|found| !found.score.is_nan()).collect();
    order.sort_by(|a, b| b.score.total_cmp(&a.score));

    let mut taken = vec![false; objects.len()];
    let (mut right, mut wrong) = (0.0, 0.0);
    let mut points = Vec::new();
    for found in order {
        let mut best: Option<(usize, f64)> = None;
        for &i in by_image.get(found.image).map_or(&[][..], Vec::as_slice) {
            let overlap = iou(&objects[i].bbox, &found.bbox);
            if overlap >= threshold && best.is_none_or(|(_, most)| overlap > most) {
                best = Some((i, overlap));
            }
        }
        match best {
            Some((i, _)) if objects[i].difficult => continue,
            Some((i, _)) if !taken[i] => {
                taken[i] = true;
                right += 1.0;
            }
            _ => wrong += 1.0,
        }
        points.push((right / instances as f64, right / (right + wrong)));
    }
    points
}

fn eleven_point(points: &[(f64, f64)]) -> f64 {
    let best = |tenth: u32| {
        let wanted = f64::from(tenth) * 0.1;
        points.iter().filter(|(recall, _)| *recall >= wanted).map(|(_, precision)| *precision).fold(0.0, f64::max)
    };
    (0..=10).map(best).sum::<f64>() / 11.0
}

fn every_point(points: &[(f64, f64)]) -> f64 {
    let mut area = 0.0;
    let mut best: f64 = 0.0;
    for (i, &(recall, precision)) in points.iter().enumerate().rev() {
        best = best.max(precision);
        let before = if i == 0 { 0.0 } else { points[i - 1].0 };
        area += (recall - before) * best;
    }
    area
}

/// Intersection over union with the development kit's count of pixels: a box from x1 to x2 is x2 - x1 + 1 wide.
fn iou(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let w = a[2].min(b[2]) - a[0].max(b[0]) + 1.0;
    let h = a[3].min(b[3]) - a[1].max(b[1]) + 1.0;
    if w <= 0.0 || h <= 0.0 {
        return 0.0;
    }
    let area = |r: &[f64; 4]| (r[2] - r[0] + 1.0) * (r[3] - r[1] + 1.0);
    let inter = w * h;
    inter / (area(a) + area(b) - inter)
}
