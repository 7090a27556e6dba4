//! Gains on hue, saturation and value, by lookup tables.

/// Steps of hue per sixth of the colour circle.
const SECTOR: usize = 256;

/// Multiplies hue (round the circle), saturation and value of RGB pixels by `gains`; the latter two saturate.
pub(crate) fn shift(pixels: &mut [u8], gains: [f32; 3]) {
    let circle = 6 * SECTOR;
    let hue: Vec<u16> = (0..circle).map(|h| (h as f32 * gains[0]) as usize % circle).map(|h| h as u16).collect();
    let table = |gain: f32| -> [u8; 256] { std::array::from_fn(|v| (v as f32 * gain + 0.5).min(255.0) as u8) };
    let (saturation, value) = (table(gains[1]), table(gains[2]));
    // 2^16 / d, so that dividing by the spread of a pixel is a multiplication.
    let reciprocal: [u32; 256] = std::array::from_fn(|d| if d == 0 { 0 } else { (65536 + d as u32 / 2) / d as u32 });

    for pixel in pixels.chunks_exact_mut(3) {
        let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(i32::from);
        let (high, low) = (r.max(g).max(b), r.min(g).min(b));
        let spread = high - low;
        let new_high = i32::from(value[high as usize]);
        if spread == 0 {
            pixel.fill(new_high as u8);
            continue;
        }
        // Hue: which channel is highest picks a third of the circle, the difference of the others the place in it.
        let (base, difference) = if high == r {
            (0, g - b)
        } else if high == g {
            (2, b - r)
        } else {
            (4, r - g)
        };
        let within = (difference * reciprocal[spread as usize] as i32) >> 8;
        let h = (base * SECTOR as i32 + within).rem_euclid(circle as i32);
        let h = usize::from(hue[h as usize]);
        let s = (spread as u32 * 255 * reciprocal[high as usize]) >> 16;
        let new_spread = (new_high * i32::from(saturation[s.min(255) as usize]) + 127) / 255;

        let (sector, place) = (h / SECTOR, (h % SECTOR) as i32);
        let new_low = new_high - new_spread;
        let rising = new_low + ((new_spread * place) >> 8);
        let falling = new_high - ((new_spread * place) >> 8);
        let rgb = match sector {
            0 => [new_high, rising, new_low],
            1 => [falling, new_high, new_low],
            2 => [new_low, new_high, rising],
            3 => [new_low, falling, new_high],
            4 => [rising, new_low, new_high],
            _ => [new_high, new_low, falling],
        };
        pixel.copy_from_slice(&rgb.map(|v| v as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_of_one_keep_every_colour() {
        for r in (0..256).step_by(15) {
            for g in (0..256).step_by(17) {
                for b in (0..256).step_by(5) {
                    let before = [r as u8, g as u8, b as u8];
                    let mut after = before;
                    shift(&mut after, [1.0; 3]);
                    let worst = before.iter().zip(after).map(|(a, b)| a.abs_diff(b)).max();
                    assert!(worst <= Some(3), "{before:?} became {after:?}");
                }
            }
        }
    }

    #[test]
    fn each_gain_does_its_own() {
        let mut darker = [200, 100, 50];
        shift(&mut darker, [1.0, 1.0, 0.5]);
        assert_eq!(darker.map(|v: u8| (i32::from(v) + 2) / 5), [20, 10, 5]);
        let mut grey = [200, 100, 50];
        shift(&mut grey, [1.0, 0.0, 1.0]);
        assert_eq!(grey, [200; 3]);
        let mut green = [0, 200, 0];
        shift(&mut green, [1.5, 1.0, 1.0]);
        assert_eq!(green, [0, 200, 200], "half as far again round the circle, green is cyan");
    }
}
