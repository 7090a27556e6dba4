//! Maps with gaps between their pixels, filled from a seed, and comparisons that name the worst element.

#![allow(dead_code, reason = "each test file uses a part of this")]

use kernels::reference::Map;
use kernels::{Layout, View, ViewMut};
use proptest::prelude::*;

/// What lies in the gaps of a map: no kernel may read it into a result or write over it.
const GAP: f32 = 1e30;

/// A buffer with a map somewhere inside.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub data: Vec<f32>,
    pub layout: Layout,
}

/// How far a map's layout is from dense: floats before the first pixel, floats between pixels.
pub type Gaps = (usize, usize);

pub fn gaps() -> impl Strategy<Value = Gaps> {
    prop_oneof![Just((0, 0)), (0usize..20, 0usize..20)]
}

/// Values in -2..2 from a hash of the position: reproducible, no two maps alike.
pub fn noise(seed: u64, i: usize) -> f32 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 22) as f32 - 2.0
}

pub fn values(seed: u64, len: usize) -> Vec<f32> {
    (0..len).map(|i| noise(seed, i)).collect()
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

impl Buffer {
    /// A map of this shape, noise inside, [`GAP`] outside.
    pub fn noise(seed: u64, [n, h, w, c]: [usize; 4], (offset, gap): Gaps) -> Self {
        let layout = Layout { n, h, w, c, pitch: c + gap, offset };
        let mut data = vec![GAP; layout.end() + gap];
        let mut view = ViewMut::new(&mut data, layout);
        for p in 0..layout.pixels() {
            view.pixel(p).iter_mut().enumerate().for_each(|(i, v)| *v = noise(seed, p * c + i));
        }
        Self { data, layout }
    }

    pub fn view(&self) -> View<'_> {
        View::new(&self.data, self.layout)
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut::new(&mut self.data, self.layout)
    }

    pub fn map(&self) -> Map {
        Map::read(self.view())
    }

    /// The gaps hold what they held.
    pub fn assert_gaps(&self) {
        let l = self.layout;
        for (i, v) in self.data.iter().enumerate() {
            let inside = i >= l.offset && (i - l.offset) % l.pitch < l.c && (i - l.offset) / l.pitch < l.pixels();
            assert!(inside || *v == GAP, "float {i} lies in a gap of {l:?} and became {v}");
        }
    }

    /// Every value within `tolerance` of `expected`, relative to the larger of 1 and the expected value.
    pub fn assert_close(&self, expected: &Map, tolerance: f64) {
        self.assert_gaps();
        assert_close(&wide_map(self), &expected.data, tolerance);
    }
}

fn wide_map(b: &Buffer) -> Vec<f64> {
    b.map().data
}

pub fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * e.abs().max(1.0), "element {i}: {g} instead of {e}");
    }
}

/// `base + d`, element by element.
pub fn plus(base: &Map, d: &Map) -> Map {
    Map { data: base.data.iter().zip(&d.data).map(|(a, b)| a + b).collect(), ..base.clone() }
}

/// The gradient of `f` by central differences, each element moved by `step`.
pub fn differences(x: &[f64], step: f64, mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + step;
            let up = f(&x);
            x[i] = at - step;
            let down = f(&x);
            x[i] = at;
            (up - down) / (2.0 * step)
        })
        .collect()
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
