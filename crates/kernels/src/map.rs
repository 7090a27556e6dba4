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
}
