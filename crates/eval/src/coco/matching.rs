//! Which detection finds which object, for every IoU threshold and area range at once.

use super::{Annotation, ScoredBox};

/// IoU thresholds 0.5, 0.55, ..., 0.95.
pub(super) const THRESHOLDS: usize = 10;
/// Area ranges: all, small, medium, large.
pub(super) const AREAS: usize = 4;
/// Detections of one class that count in one image.
pub(super) const MAX_DETECTIONS: usize = 100;

const AREA_RANGES: [[f64; 2]; AREAS] = [[0.0, 1e10], [0.0, 1024.0], [1024.0, 9216.0], [9216.0, 1e10]];

/// `numpy.linspace(0.5, 0.95, 10)`, rounding included.
fn threshold(i: usize) -> f64 {
    if i + 1 == THRESHOLDS { 0.95 } else { i as f64 * ((0.95 - 0.5) / 9.0) + 0.5 }
}

/// One class's objects and detections in all images, in the order they were given.
#[derive(Default)]
pub(super) struct ClassInput {
    pub truth: Vec<Gt>,
    pub detections: Vec<Det>,
}

/// An object.
pub(super) struct Gt {
    image: usize,
    bbox: [f64; 4],
    area: f64,
    crowd: bool,
}

impl Gt {
    pub fn new(image: usize, annotation: &Annotation) -> Self {
        Self { image, bbox: annotation.bbox, area: annotation.area, crowd: annotation.crowd }
    }

    fn ignored(&self, area: usize) -> bool {
        self.crowd || outside(self.area, area)
    }
}

/// A detection.
pub(super) struct Det {
    image: usize,
    bbox: [f64; 4],
    score: f64,
}

impl Det {
    pub fn new(image: usize, detection: &ScoredBox) -> Self {
        // Adding zero makes -0 equal 0 in the total order that sorting uses.
        Self { image, bbox: detection.bbox, score: detection.score + 0.0 }
    }
}

/// One class after matching.
pub(super) struct Matched {
    /// By image, then rank within the image.
    pub hits: Vec<Hit>,
    /// Objects that count, by area range.
    pub instances: [usize; AREAS],
    /// Images with at least one object that is no crowd.
    pub images: usize,
}

/// What became of a detection.
#[derive(Clone, Debug)]
pub(super) struct Hit {
    pub score: f64,
    /// Place by score among the image's detections of this class.
    pub rank: usize,
    /// By area range: bit t is set if the detection found an object at threshold t.
    pub matched: [u16; AREAS],
    /// By area range: bit t is set if it counts neither as right nor as wrong at threshold t.
    pub ignored: [u16; AREAS],
}

impl ClassInput {
    /// Matches image by image.
    pub fn matched(mut self) -> Matched {
        self.truth.sort_by_key(|gt| gt.image);
        // Stable and descending: equal scores keep their order in the file, as numpy's mergesort does.
        self.detections.sort_by(|a, b| a.image.cmp(&b.image).then(b.score.total_cmp(&a.score)));
        let instances = std::array::from_fn(|area| self.truth.iter().filter(|gt| !gt.ignored(area)).count());
        let images =
            self.truth.chunk_by(|a, b| a.image == b.image).filter(|image| image.iter().any(|gt| !gt.crowd)).count();

        let mut hits = Vec::with_capacity(self.detections.len());
        let mut truth = self.truth.as_slice();
        for detections in self.detections.chunk_by(|a, b| a.image == b.image) {
            let image = detections[0].image;
            truth = &truth[truth.partition_point(|gt| gt.image < image)..];
            let (here, later) = truth.split_at(truth.partition_point(|gt| gt.image == image));
            truth = later;
            match_image(here, &detections[..detections.len().min(MAX_DETECTIONS)], &mut hits);
        }
        Matched { hits, instances, images }
    }
}

/// Appends the hits of one image; `detections` by falling score.
fn match_image(truth: &[Gt], detections: &[Det], hits: &mut Vec<Hit>) {
    let first = hits.len();
    hits.extend(detections.iter().enumerate().map(|(rank, det)| {
        let outside = |area| if outside(det.bbox[2] * det.bbox[3], area) { u16::MAX } else { 0 };
        Hit { score: det.score, rank, matched: [0; AREAS], ignored: std::array::from_fn(outside) }
    }));
    if truth.is_empty() {
        return;
    }
    let overlaps: Vec<f64> = detections.iter().flat_map(|det| truth.iter().map(|gt| iou(det, gt))).collect();
    let near: Vec<usize> = (0..detections.len())
        .filter(|d| overlaps[d * truth.len()..(d + 1) * truth.len()].iter().any(|&o| o >= threshold(0)))
        .collect();
    let mut taken = vec![false; truth.len()];
    for area in 0..AREAS {
        // Objects that count come first: a detection falls back on an ignored one only if no other fits.
        let (mut order, ignored): (Vec<usize>, Vec<usize>) = (0..truth.len()).partition(|&g| !truth[g].ignored(area));
        let counting = order.len();
        order.extend(ignored);
        for t in 0..THRESHOLDS {
            taken.fill(false);
            for &d in &near {
                let overlaps = &overlaps[d * truth.len()..(d + 1) * truth.len()];
                let free = |g: &usize| !taken[*g] || truth[*g].crowd;
                let (counted, fallback) = order.split_at(counting);
                let found = best(overlaps, counted.iter().copied().filter(free), threshold(t));
                let of_ignored = || best(overlaps, fallback.iter().copied().filter(free), threshold(t));
                let Some(g) = found.or_else(of_ignored) else { continue };
                taken[g] = true;
                let (hit, bit) = (&mut hits[first + d], 1 << t);
                hit.matched[area] |= bit;
                hit.ignored[area] = hit.ignored[area] & !bit | if found.is_none() { bit } else { 0 };
            }
        }
    }
}

/// The object of largest overlap, the last among equals, if it reaches the threshold.
fn best(overlaps: &[f64], candidates: impl Iterator<Item = usize>, threshold: f64) -> Option<usize> {
    let mut found = None;
    let mut least = threshold;
    for g in candidates {
        if overlaps[g] >= least {
            least = overlaps[g];
            found = Some(g);
        }
    }
    found
}

fn outside(value: f64, area: usize) -> bool {
    let [low, high] = AREA_RANGES[area];
    value < low || value > high
}

/// Intersection over union; over the detection's own area if the object is a crowd.
fn iou(det: &Det, gt: &Gt) -> f64 {
    let (d, g) = (&det.bbox, &gt.bbox);
    let w = (d[2] + d[0]).min(g[2] + g[0]) - d[0].max(g[0]);
    let h = (d[3] + d[1]).min(g[3] + g[1]) - d[1].max(g[1]);
    if w <= 0.0 || h <= 0.0 {
        return 0.0;
    }
    let inter = w * h;
    let area = d[2] * d[3];
    inter / if gt.crowd { area } else { area + g[2] * g[3] - inter }
}
