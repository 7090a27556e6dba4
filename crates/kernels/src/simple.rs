//! First, plain versions of the whole interface, on the reference loops; replaced one by one by fast kernels.
#![allow(missing_docs)]

use graph::Act;

use crate::reference::{self as r, Map};
use crate::{Layout, View, ViewMut};

fn add_to(to: &mut [f32], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t = (f64::from(*t) + f) as f32);
}

fn shape_of(l: Layout) -> Map {
    Map::zeros(l.n, l.h, l.w, l.c)
}

pub struct BatchStats {
    pub mean: Vec<f32>,
    pub var: Vec<f32>,
}

pub fn batch_stats(x: View) -> BatchStats {
    let (mean, var) = r::batch_stats(&Map::read(x));
    let narrow = |v: Vec<f64>| v.iter().map(|v| *v as f32).collect();
    BatchStats { mean: narrow(mean), var: narrow(var) }
}

#[derive(Clone, Copy, Debug)]
pub struct BnAct<'a> {
    pub mean: &'a [f32],
    pub inv_std: &'a [f32],
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub act: Act,
}

pub fn bn_act_forward(x: View, bn: &BnAct, mut y: ViewMut) {
    for p in 0..x.layout.pixels() {
        for (c, (y, x)) in y.pixel(p).iter_mut().zip(x.pixel(p)).enumerate() {
            let z = bn.gamma[c] * (x - bn.mean[c]) * bn.inv_std[c] + bn.beta[c];
            *y = r::value(bn.act, f64::from(z)) as f32;
        }
    }
}

pub fn bn_act_backward(x: View, dy: View, bn: &BnAct, mut dx: ViewMut, dgamma: &mut [f32], dbeta: &mut [f32]) {
    let count = x.layout.pixels();
    let terms = |p: usize, c: usize| {
        let hat = f64::from(x.pixel(p)[c] - bn.mean[c]) * f64::from(bn.inv_std[c]);
        let z = f64::from(bn.gamma[c]) * hat + f64::from(bn.beta[c]);
        (hat, f64::from(dy.pixel(p)[c]) * r::slope(bn.act, z))
    };
    for c in 0..x.layout.c {
        let (mut g, mut b) = (0.0, 0.0);
        for p in 0..count {
            let (hat, dz) = terms(p, c);
            g += hat * dz;
            b += dz;
        }
        for p in 0..count {
            let (hat, dz) = terms(p, c);
            let scale = f64::from(bn.gamma[c]) * f64::from(bn.inv_std[c]);
            dx.pixel(p)[c] = (scale * (dz - (b + hat * g) / count as f64)) as f32;
        }
        add_to(&mut dgamma[c..=c], &[g]);
        add_to(&mut dbeta[c..=c], &[b]);
    }
}

pub fn act_forward(act: Act, x: View, mut y: ViewMut) {
    for p in 0..x.layout.pixels() {
        y.pixel(p).iter_mut().zip(x.pixel(p)).for_each(|(y, x)| *y = r::value(act, f64::from(*x)) as f32);
    }
}

pub fn act_backward(act: Act, x: View, dy: View, mut dx: ViewMut, accumulate: bool) {
    for p in 0..x.layout.pixels() {
        for (dx, (x, dy)) in dx.pixel(p).iter_mut().zip(x.pixel(p).iter().zip(dy.pixel(p))) {
            let d = (f64::from(*dy) * r::slope(act, f64::from(*x))) as f32;
            *dx = if accumulate { *dx + d } else { d };
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub kernel: usize,
    pub stride: usize,
    pub pad: [usize; 2],
}

pub fn max_pool_forward(pool: Pool, x: View, y: ViewMut) {
    r::max_pool_forward(pool, &Map::read(x), (y.layout.h, y.layout.w)).write(y, false);
}

pub fn max_pool_backward(pool: Pool, x: View, dy: View, dx: ViewMut) {
    r::max_pool_backward(pool, &Map::read(x), &Map::read(dy)).write(dx, true);
}

pub fn upsample_forward(factor: usize, x: View, y: ViewMut) {
    r::upsample_forward(factor, &Map::read(x)).write(y, false);
}

pub fn upsample_backward(factor: usize, dy: View, dx: ViewMut, accumulate: bool) {
    r::upsample_backward(factor, &Map::read(dy), &shape_of(dx.layout)).write(dx, accumulate);
}

pub fn copy(x: View, y: ViewMut, accumulate: bool) {
    Map::read(x).write(y, accumulate);
}

pub fn add(a: View, b: View, mut y: ViewMut) {
    for p in 0..a.layout.pixels() {
        y.pixel(p).iter_mut().zip(a.pixel(p).iter().zip(b.pixel(p))).for_each(|(y, (a, b))| *y = a + b);
    }
}
