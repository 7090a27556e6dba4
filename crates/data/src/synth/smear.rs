//! One field of a blood smear under the microscope: dyes absorb light, so where cells overlap it grows darker.

use std::f32::consts::{PI, TAU};

use image::RgbImage;
use rand::{Rng, RngExt};

/// A rendered field and its boxes (class, then left, top, right, bottom in pixels).
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub image: RgbImage,
    pub boxes: Vec<(usize, [f32; 4])>,
}

/// How strongly red, green and blue are absorbed by haemoglobin and by the dye of nuclei, at full depth.
const RED_CELL: [f32; 3] = [0.10, 0.42, 0.34];
const NUCLEUS: [f32; 3] = [0.85, 1.35, 0.48];
const CYTOPLASM: [f32; 3] = [0.20, 0.30, 0.08];

/// Renders a square field of `size` pixels a side; all that varies is drawn from `rng`.
pub fn render(size: u32, rng: &mut impl Rng) -> Sample {
    let mut field = Field::new(size as usize);
    let unit = size as f32;
    let stain: f32 = uniform(rng, 0.75, 1.25);
    let mut cells: Vec<([f32; 2], f32)> = Vec::new();

    // White cells are rare and large; red ones give way to them.
    let white = [0, 1, 1, 1, 1, 2][rng.random_range(0..6)];
    for _ in 0..white {
        let radius = uniform(rng, 0.11, 0.16) * unit;
        if let Some(centre) = place(&cells, radius, 1.05, unit, rng) {
            cells.push((centre, radius));
            white_cell(&mut field, centre, radius, stain, rng);
        }
    }
    let typical = uniform(rng, 0.062, 0.085) * unit;
    let crowding = uniform(rng, 0.72, 1.05);
    for _ in 0..rng.random_range(9..26) {
        let radius = typical * uniform(rng, 0.85, 1.15);
        if let Some(centre) = place(&cells, radius, crowding, unit, rng) {
            cells.push((centre, radius));
            red_cell(&mut field, centre, radius, stain, rng);
        }
    }
    for _ in 0..rng.random_range(0..5) {
        let radius = uniform(rng, 0.018, 0.032) * unit;
        if let Some(centre) = place(&cells, radius, 1.0, unit, rng) {
            cells.push((centre, radius));
            platelet(&mut field, centre, radius, stain, rng);
        }
    }
    let image = field.expose(rng);
    Sample { image, boxes: field.boxes }
}

/// A place where a new cell keeps `distance` times the sum of radii from every other; `None` if a few tries find none.
fn place(cells: &[([f32; 2], f32)], radius: f32, distance: f32, unit: f32, rng: &mut impl Rng) -> Option<[f32; 2]> {
    (0..30).find_map(|_| {
        let at = [0.0; 2].map(|_: f32| uniform(rng, -0.02, 1.02) * unit);
        let free = |&(c, r): &([f32; 2], f32)| (c[0] - at[0]).hypot(c[1] - at[1]) > distance * (radius + r);
        cells.iter().all(free).then_some(at)
    })
}

/// A closed curve about a centre: an ellipse with a few waves on it.
struct Outline {
    centre: [f32; 2],
    radius: f32,
    stretch: f32,
    turn: f32,
    /// Amplitude and phase of two, three, … waves round the curve.
    waves: [(f32, f32); 4],
}

impl Outline {
    fn new(centre: [f32; 2], radius: f32, rough: f32, rng: &mut impl Rng) -> Self {
        let mut wave = |k: usize| (uniform(rng, 0.0, rough) / (k as f32 + 1.0), uniform(rng, 0.0, TAU));
        let waves = [wave(0), wave(1), wave(2), wave(3)];
        Self { centre, radius, stretch: uniform(rng, 0.88, 1.12), turn: uniform(rng, 0.0, PI), waves }
    }

    /// Distance from the centre, 1 on the curve.
    fn depth(&self, x: f32, y: f32) -> f32 {
        let (sin, cos) = self.turn.sin_cos();
        let (dx, dy) = (x - self.centre[0], y - self.centre[1]);
        let (u, v) = ((dx * cos + dy * sin) * self.stretch, (dy * cos - dx * sin) / self.stretch);
        let angle = v.atan2(u);
        let swell: f32 = self.waves.iter().zip(2..).map(|((a, p), k)| a * (k as f32 * angle + p).cos()).sum();
        u.hypot(v) / (self.radius * (1.0 + swell))
    }

    /// How much of a pixel at that depth lies inside, the edge being `soft` pixels wide.
    fn cover(&self, depth: f32, soft: f32) -> f32 {
        let t = ((1.0 - depth) * self.radius / soft + 0.5).clamp(0.0, 1.0);
        t * t * (3.0 - 2.0 * t)
    }
}

/// A disc, paler in the middle where it is thin; some are flat, a few are seen as thin rings.
fn red_cell(field: &mut Field, centre: [f32; 2], radius: f32, stain: f32, rng: &mut impl Rng) {
    let outline = Outline::new(centre, radius, 0.06, rng);
    let pallor = uniform(rng, 0.15, 0.85);
    let hollow = uniform(rng, 0.35, 0.6);
    let strength = stain * uniform(rng, 0.75, 1.2);
    // The hollow seldom sits quite in the middle.
    let off = [0.0; 2].map(|_: f32| uniform(rng, -0.12, 0.12) * radius);
    field.absorb(0, centre, radius, |x, y| {
        let cover = outline.cover(outline.depth(x, y), 1.6);
        let inner = (x - centre[0] - off[0]).hypot(y - centre[1] - off[1]) / (radius * hollow);
        let depth = (1.0 - pallor * (-inner * inner).exp()) * strength;
        (cover, RED_CELL.map(|a| a * depth))
    });
}

/// A large round body with a dark nucleus of one to four lobes.
fn white_cell(field: &mut Field, centre: [f32; 2], radius: f32, stain: f32, rng: &mut impl Rng) {
    let outline = Outline::new(centre, radius, 0.08, rng);
    let granules = Grain::new(rng);
    let body = stain * uniform(rng, 0.6, 1.3);
    let lobes = rng.random_range(1..5);
    let start = uniform(rng, 0.0, TAU);
    let blobs: Vec<_> = (0..lobes)
        .map(|i| {
            let angle = start + i as f32 * uniform(rng, 1.1, 1.6);
            let away = if lobes == 1 { uniform(rng, 0.0, 0.2) } else { uniform(rng, 0.32, 0.46) } * radius;
            let size = if lobes == 1 { uniform(rng, 0.6, 0.8) } else { uniform(rng, 0.30, 0.42) } * radius;
            [centre[0] + angle.cos() * away, centre[1] + angle.sin() * away, size]
        })
        .collect();
    let dark = stain * uniform(rng, 0.75, 1.1);
    field.absorb(1, centre, radius, |x, y| {
        let cover = outline.cover(outline.depth(x, y), 2.0);
        // Lobes melt into one another: the sum of their bells is cut at a level.
        let bells = blobs.iter().map(|[bx, by, r]| (-((x - bx).powi(2) + (y - by).powi(2)) / (r * r) * 0.9).exp());
        let nucleus = ((bells.sum::<f32>() - 0.4) * 6.0).clamp(0.0, 1.0);
        let grain = granules.at(x / radius * 6.0, y / radius * 6.0);
        let absorbed = std::array::from_fn(|c| {
            CYTOPLASM[c] * body * (0.7 + 0.6 * grain) + NUCLEUS[c] * dark * nucleus * (0.75 + 0.4 * grain)
        });
        (cover, absorbed)
    });
}

/// A small purple speck, darker in its middle.
fn platelet(field: &mut Field, centre: [f32; 2], radius: f32, stain: f32, rng: &mut impl Rng) {
    let outline = Outline::new(centre, radius, 0.3, rng);
    let granules = Grain::new(rng);
    let strength = stain * uniform(rng, 0.4, 0.75);
    field.absorb(2, centre, radius, |x, y| {
        let depth = outline.depth(x, y);
        let cover = outline.cover(depth, 1.5);
        let dark = (1.2 - 0.6 * depth.min(1.0)) * (0.7 + 0.6 * granules.at(x / radius * 3.0, y / radius * 3.0));
        (cover, NUCLEUS.map(|a| a * strength * dark))
    });
}

/// What light passes through: absorption per pixel and channel, and the boxes of what absorbs it.
struct Field {
    size: usize,
    /// (size, size), natural logarithm of the loss.
    absorption: Vec<[f32; 3]>,
    boxes: Vec<(usize, [f32; 4])>,
}

impl Field {
    fn new(size: usize) -> Self {
        Self { size, absorption: vec![[0.0; 3]; size * size], boxes: Vec::new() }
    }

    /// Adds a body; `body` gives cover and absorption at a point. If enough of it is in view, its box
    /// is noted.
    fn absorb(&mut self, class: usize, centre: [f32; 2], radius: f32, body: impl Fn(f32, f32) -> (f32, [f32; 3])) {
        let reach = (radius * 1.6).ceil() as i64 + 2;
        let (cx, cy) = (centre[0] as i64, centre[1] as i64);
        let side = self.size as i64;
        let (mut inside, mut whole) = (0u32, 0u32);
        let mut bounds = [side, side, 0, 0];
        for y in cy - reach..=cy + reach {
            for x in cx - reach..=cx + reach {
                let (cover, absorbed) = body(x as f32 + 0.5, y as f32 + 0.5);
                let solid = cover > 0.5;
                whole += u32::from(solid);
                if !(0..side).contains(&x) || !(0..side).contains(&y) || cover == 0.0 {
                    continue;
                }
                for (sum, a) in self.absorption[(y * side + x) as usize].iter_mut().zip(absorbed) {
                    *sum += a * cover;
                }
                if solid {
                    inside += 1;
                    bounds = [bounds[0].min(x), bounds[1].min(y), bounds[2].max(x + 1), bounds[3].max(y + 1)];
                }
            }
        }
        let [x1, y1, x2, y2] = bounds;
        if inside * 4 > whole && x2 - x1 > 2 && y2 - y1 > 2 {
            self.boxes.push((class, bounds.map(|v| v as f32)));
        }
    }

    /// The picture: an unevenly lit ground, seen through the absorption, a little out of focus, with a sensor's noise.
    fn expose(&self, rng: &mut impl Rng) -> RgbImage {
        let size = self.size as f32;
        let light = uniform(rng, 205.0, 240.0);
        let tint = [uniform(rng, 0.97, 1.03), uniform(rng, 0.93, 1.0), uniform(rng, 0.90, 1.02)];
        let bright = [uniform(rng, 0.25, 0.75), uniform(rng, 0.25, 0.75)];
        let fall = uniform(rng, 0.05, 0.35);
        let clouds = Grain::new(rng);
        let mut seen: Vec<[f32; 3]> = Vec::with_capacity(self.absorption.len());
        for (i, absorbed) in self.absorption.iter().enumerate() {
            let (x, y) = ((i % self.size) as f32 / size, (i / self.size) as f32 / size);
            let away = (x - bright[0]).powi(2) + (y - bright[1]).powi(2);
            let lit = light * (1.0 - fall * away) * (0.97 + 0.05 * clouds.at(x * 4.0, y * 4.0));
            seen.push(std::array::from_fn(|c| lit * tint[c] * (-absorbed[c]).exp()));
        }
        blur(&mut seen, self.size, uniform(rng, 0.1, 0.9) * size / 160.0);
        let noise = uniform(rng, 1.0, 4.0);
        let mut bytes = Vec::with_capacity(seen.len() * 3);
        for pixel in seen {
            for value in pixel {
                // Three uniform draws are near enough to a bell.
                let bell: f32 = (0..3).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 2.0;
                bytes.push((value + noise * bell).clamp(0.0, 255.0) as u8);
            }
        }
        RgbImage::from_raw(self.size as u32, self.size as u32, bytes).expect("three bytes were written per pixel")
    }
}

/// Smooth random values in 0 to 1: a 16 x 16 lattice, repeated, bilinear between its points.
struct Grain([f32; 256]);

impl Grain {
    fn new(rng: &mut impl Rng) -> Self {
        Self(std::array::from_fn(|_| rng.random()))
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        let (fx, fy) = (x.floor(), y.floor());
        let (tx, ty) = (x - fx, y - fy);
        let node = |dx: i32, dy: i32| {
            let (i, j) = ((fx as i32 + dx).rem_euclid(16), (fy as i32 + dy).rem_euclid(16));
            self.0[(j * 16 + i) as usize]
        };
        let top = node(0, 0) * (1.0 - tx) + node(1, 0) * tx;
        let bottom = node(0, 1) * (1.0 - tx) + node(1, 1) * tx;
        top * (1.0 - ty) + bottom * ty
    }
}

/// Blurs with a bell of the given width in pixels, along the rows and then the columns.
fn blur(pixels: &mut [[f32; 3]], size: usize, sigma: f32) {
    let reach = (sigma * 2.5).ceil() as i64;
    let bell: Vec<f32> = (-reach..=reach).map(|i| (-((i * i) as f32) / (2.0 * sigma * sigma)).exp()).collect();
    let total: f32 = bell.iter().sum();
    let last = size as i64 - 1;
    for step in [1, size] {
        let source = pixels.to_vec();
        for (i, pixel) in pixels.iter_mut().enumerate() {
            let place = if step == 1 { i % size } else { i / size };
            let start = i - place * step;
            *pixel = [0.0; 3];
            for (weight, offset) in bell.iter().zip(-reach..) {
                let at = start + (place as i64 + offset).clamp(0, last) as usize * step;
                for c in 0..3 {
                    pixel[c] += source[at][c] * weight / total;
                }
            }
        }
    }
}

fn uniform(rng: &mut impl Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * rng.random::<f32>()
}
