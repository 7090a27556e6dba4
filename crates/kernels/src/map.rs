//! Feature maps as the kernels see them: NHWC, possibly a channel range of a wider map.

/// Where a feature map of shape (N, H, W, C) lies in a buffer: the channels of pixel `p` (images, rows and columns counted
/// together) start at `offset + p * pitch`. A `pitch` above `c` makes concat and slice free: their parts are views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    /// Floats from one pixel to the next, at least `c`.
    pub pitch: usize,
    /// Floats before the first pixel's first channel.
    pub offset: usize,
}

impl Layout {
    /// A map of its own: no gap between pixels.
    pub fn dense(n: usize, h: usize, w: usize, c: usize) -> Self {
        Self { n, h, w, c, pitch: c, offset: 0 }
    }

    /// Channels `start..start + len` of this map.
    pub fn channels(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.c, "channels {start}..{} of {}", start + len, self.c);
        Self { c: len, offset: self.offset + start, ..self }
    }

    /// Pixels of all images.
    pub fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }

    /// Panics where two maps that must have one shape (N, H, W, C) do not: a programming error.
    pub(crate) fn assert_same_shape(self, other: Self) {
        let shape = |l: Self| [l.n, l.h, l.w, l.c];
        assert_eq!(shape(self), shape(other), "shapes (N, H, W, C) of {self:?} and {other:?}");
    }

    /// This map with `factor` times the rows and columns.
    pub(crate) fn upsampled(self, factor: usize) -> Self {
        Self { h: self.h * factor, w: self.w * factor, ..self }
    }

    /// Every image's pixels, row by row, cut into `areas` images of one row.
    pub(crate) fn areas(self, areas: usize) -> Self {
        assert_eq!(self.h * self.w % areas, 0, "areas of {self:?}");
        Self { n: self.n * areas, h: 1, w: self.h * self.w / areas, ..self }
    }

    /// Maps of one shape as loops over channels are fastest on: where nothing lies between the pixels of any of them, all floats are
    /// the channels of a single pixel. Narrow maps would otherwise be worked on in parts of vectors, each waiting for the one before
    /// it to be written.
    pub(crate) fn joined<const N: usize>(maps: [Self; N]) -> [Self; N] {
        if maps.iter().any(|l| l.pitch != l.c) {
            return maps;
        }
        maps.map(|l| Self { n: 1, h: 1, w: 1, c: l.pixels() * l.c, pitch: l.pixels() * l.c, ..l })
    }

    /// How many pixels of each of these maps, of one shape, to work on side by side, so that vectors of `lanes` are full or nearly so:
    /// one where something lies between the pixels.
    pub(crate) fn together<const N: usize>(maps: [Self; N], lanes: usize) -> usize {
        /// Floats side by side at most: what is known of each of them has to stay in the first cache level.
        const WIDE: usize = 512;
        /// And as many as a loop over them should have to be worth its start.
        const WORTH: usize = 128;
        let c = maps[0].c;
        if maps.iter().any(|l| l.pitch != l.c) {
            return 1;
        }
        let full = (1..=lanes).find(|pixels| (pixels * c).is_multiple_of(lanes)).filter(|pixels| pixels * c <= WIDE);
        let nearly = || (1..=lanes).find(|pixels| 8 * (pixels * c) >= 7 * (pixels * c).next_multiple_of(lanes));
        let pixels = full.or_else(nearly).unwrap_or(1);
        pixels * (WORTH / (pixels * c).max(1)).max(1)
    }

    /// Floats a buffer must hold for this layout.
    pub fn end(&self) -> usize {
        if self.pixels() == 0 { self.offset } else { self.offset + (self.pixels() - 1) * self.pitch + self.c }
    }
}

/// A feature map to read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub layout: Layout,
}

/// A feature map to write.
#[derive(Debug)]
pub struct ViewMut<'a> {
    pub data: &'a mut [f32],
    pub layout: Layout,
}

impl<'a> View<'a> {
    /// Panics where `data` is too short for `layout` (a programming error): every kernel relies on this check.
    pub fn new(data: &'a [f32], layout: Layout) -> Self {
        assert!(layout.pitch >= layout.c && data.len() >= layout.end(), "{} floats for {layout:?}", data.len());
        Self { data, layout }
    }

    /// Channels of pixel `p`.
    pub fn pixel(&self, p: usize) -> &'a [f32] {
        let at = self.layout.offset + p * self.layout.pitch;
        &self.data[at..at + self.layout.c]
    }

    /// Channels of `count` pixels from `p` on, between which nothing lies.
    pub(crate) fn stretch(&self, p: usize, count: usize) -> &'a [f32] {
        let Layout { offset, pitch, c, .. } = self.layout;
        debug_assert!(count == 1 || pitch == c);
        &self.data[offset + p * pitch..][..count * c]
    }

    /// Channels `start..start + len`.
    pub(crate) fn channels(self, start: usize, len: usize) -> Self {
        Self { layout: self.layout.channels(start, len), ..self }
    }

    /// Image `n` alone.
    pub(crate) fn image(self, n: usize) -> Self {
        self.rows(n, 0, self.layout.h)
    }

    /// Rows `row..row + rows` of image `n`.
    pub(crate) fn rows(self, n: usize, row: usize, rows: usize) -> Self {
        let l = self.layout;
        let offset = l.offset + (n * l.h + row) * l.w * l.pitch;
        Self { data: self.data, layout: Layout { n: 1, h: rows, offset, ..l } }
    }
}

impl<'a> ViewMut<'a> {
    /// Panics where `data` is too short for `layout` (a programming error): every kernel relies on this check.
    pub fn new(data: &'a mut [f32], layout: Layout) -> Self {
        assert!(layout.pitch >= layout.c && data.len() >= layout.end(), "{} floats for {layout:?}", data.len());
        Self { data, layout }
    }

    /// Channels of pixel `p`.
    pub fn pixel(&mut self, p: usize) -> &mut [f32] {
        let at = self.layout.offset + p * self.layout.pitch;
        &mut self.data[at..at + self.layout.c]
    }

    /// Channels of `count` pixels from `p` on, between which nothing lies.
    pub(crate) fn stretch(&mut self, p: usize, count: usize) -> &mut [f32] {
        let Layout { offset, pitch, c, .. } = self.layout;
        debug_assert!(count == 1 || pitch == c);
        &mut self.data[offset + p * pitch..][..count * c]
    }

    /// The same view for a shorter time.
    pub(crate) fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { data: self.data, layout: self.layout }
    }

    /// Channels `start..start + len`.
    pub(crate) fn channels(self, start: usize, len: usize) -> Self {
        Self { layout: self.layout.channels(start, len), ..self }
    }

    /// Cuts every image into bands of at most `rows` rows, each a view of its own: what tasks write to in parallel.
    pub(crate) fn bands(self, rows: usize) -> Vec<Band<'a>> {
        let l = self.layout;
        let mut bands = Vec::with_capacity(l.n * l.h.div_ceil(rows.max(1)));
        let mut rest = if l.pixels() == 0 { &mut [] } else { &mut self.data[l.offset..] };
        for (image, row) in (0..l.n).flat_map(|n| (0..l.h).step_by(rows.max(1)).map(move |row| (n, row))) {
            let layout = Layout { n: 1, h: rows.min(l.h - row), offset: 0, ..l };
            let (data, after) = rest.split_at_mut((layout.h * l.w * l.pitch).min(rest.len()));
            rest = after;
            bands.push(Band { image, row, view: ViewMut { data, layout } });
        }
        bands
    }
}

/// Some rows of one image, to write.
#[derive(Debug)]
pub(crate) struct Band<'a> {
    pub image: usize,
    /// The first row's number in its image.
    pub row: usize,
    pub view: ViewMut<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_side_by_side_fill_vectors() {
        for lanes in [4, 8, 16] {
            for c in 1..300 {
                let map = Layout::dense(2, 9, 7, c);
                let floats = Layout::together([map, map], lanes) * c;
                let used = floats as f64 / floats.next_multiple_of(lanes) as f64;
                assert!(used >= 7.0 / 8.0 && floats <= 512.max(c), "{c} channels in {lanes}: {floats}");
                assert_eq!(Layout::together([map, Layout { pitch: c + 1, ..map }], lanes), 1);
                let [joined] = Layout::joined([map]);
                assert_eq!((joined.pixels(), joined.c, joined.end()), (1, 126 * c, map.end()));
            }
        }
    }
}
