//! Numbers and lists as people read them.

/// Three significant digits with a unit: `1.77M`, `4.16G`, `512`.
pub fn count(value: u64) -> String {
    scaled(value as f64, 1000.0, &["", "k", "M", "G", "T"])
}

/// A file size: `3.87 MB` (decimal, as YOLO users quote them).
pub fn bytes(value: u64) -> String {
    scaled(value as f64, 1000.0, &[" B", " kB", " MB", " GB", " TB"])
}

/// The first `most` of `names`, and how many more there are.
pub fn listed<S: AsRef<str>>(names: &[S], most: usize) -> String {
    let (told, more) = names.split_at(names.len().min(most));
    let told = told.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    if more.is_empty() { told } else { format!("{told} and {} more", more.len()) }
}

/// `value` with `digits` decimals, or a dash where there is none.
pub fn fixed(value: Option<f64>, digits: usize) -> String {
    value.filter(|v| v.is_finite()).map_or_else(|| "–".into(), |v| format!("{v:.digits$}"))
}

fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    // 999.5 would be written as 1000.
    while value >= base - 0.5 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_three_digits() {
        let cases = [
            (0, "0"),
            (7, "7"),
            (999, "999"),
            (1000, "1.00k"),
            (9_999, "10.0k"),
            (99_960, "100k"),
            (999_499, "999k"),
            (999_501, "1.00M"),
            (1_765_270, "1.77M"),
            (2_253_000_000, "2.25G"),
        ];
        for (value, want) in cases {
            assert_eq!(count(value), want, "{value}");
        }
        assert_eq!(bytes(3_870_000), "3.87 MB");
        assert_eq!(fixed(Some(0.12345), 3), "0.123");
        assert_eq!(fixed(None, 3), "–");
        assert_eq!(fixed(Some(f64::NAN), 3), "–");
    }
}
