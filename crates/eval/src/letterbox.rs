//! The way back from the canvas a detector saw to the image it was made from.

/// How an image was put on the canvas: scaled, then moved by the padding on its left and top.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Letterbox {
    /// Canvas pixels an image pixel along x and y; both equal unless the image was stretched.
    pub scale: [f32; 2],
    /// Canvas pixels left of and above the image.
    pub pad: [f32; 2],
    /// (width, height) of the image in pixels.
    pub size: [usize; 2],
}

impl Letterbox {
    /// Maps (x1, y1, x2, y2) from canvas to image pixels and clips it to the image.
    pub fn to_image(&self, bbox: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| {
            let axis = i % 2;
            ((bbox[i] - self.pad[axis]) / self.scale[axis]).clamp(0.0, self.size[axis] as f32)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undoes_scale_and_padding_and_clips() {
        // 320x240 on a 640x640 canvas: scale 2, 80 pixels above and below.
        let letterbox = Letterbox { scale: [2.0; 2], pad: [0.0, 80.0], size: [320, 240] };
        assert_eq!(letterbox.to_image([20.0, 100.0, 220.0, 280.0]), [10.0, 10.0, 110.0, 100.0]);
        assert_eq!(letterbox.to_image([-9.0, 0.0, 700.0, 640.0]), [0.0, 0.0, 320.0, 240.0]);
    }
}
