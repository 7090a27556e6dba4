//! Pixel shuffle: every `factor` x `factor` channels become one, with as many times the rows and columns.

use rayon::prelude::*;

use crate::{View, ViewMut};

/// Channel `(c * factor + dy) * factor + dx` of x (N, H, W, C * factor^2) becomes row dy and column dx of every block of
/// channel c in y (N, H * factor, W * factor, C).
pub fn shuffle_forward(factor: usize, x: View, y: ViewMut) {
    let (l, phases) = (x.layout, factor * factor);
    assert_eq!([l.n, l.h * factor, l.w * factor, l.c], [y.layout.n, y.layout.h, y.layout.w, y.layout.c * phases]);
    y.bands(factor).into_par_iter().for_each(|mut band| {
        let x = x.rows(band.image, band.row / factor, 1);
        for (column, phase) in (0..l.w).flat_map(|column| (0..phases).map(move |phase| (column, phase))) {
            let from = &x.pixel(column)[phase..];
            let to = band.view.pixel((phase / factor * l.w + column) * factor + phase % factor);
            to.iter_mut().zip(from.iter().step_by(phases)).for_each(|(to, from)| *to = *from);
        }
    });
}

/// The gradient of [`shuffle_forward`]: every value goes back to where it came from; dx is overwritten or added to.
pub fn shuffle_backward(factor: usize, dy: View, dx: ViewMut, accumulate: bool) {
    let (l, phases) = (dx.layout, factor * factor);
    assert_eq!([l.n, l.h * factor, l.w * factor, l.c], [dy.layout.n, dy.layout.h, dy.layout.w, dy.layout.c * phases]);
    dx.bands(1).into_par_iter().for_each(|mut band| {
        let dy = dy.rows(band.image, band.row * factor, factor);
        for (column, phase) in (0..l.w).flat_map(|column| (0..phases).map(move |phase| (column, phase))) {
            let from = dy.pixel((phase / factor * l.w + column) * factor + phase % factor);
            let to = band.view.pixel(column)[phase..].iter_mut().step_by(phases);
            to.zip(from).for_each(|(to, from)| *to = if accumulate { *to + from } else { *from });
        }
    });
}
