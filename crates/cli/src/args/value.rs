//! Parsers of single values, each with a message that says what would have been right.

use std::str::FromStr;

/// A whole number of at least one.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("not a whole number of at least 1".into()),
        Ok(n) => Ok(n),
    }
}

/// A share in (0, 1].
pub fn share_to_keep(text: &str) -> Result<f64, String> {
    number(text)
        .filter(|v| *v > 0.0 && *v <= 1.0)
        .ok_or_else(|| "not a share above 0 and at most 1, such as 0.5".into())
}

/// A share in [0, 1).
pub fn share_to_remove(text: &str) -> Result<f64, String> {
    number(text)
        .filter(|v| (0.0..1.0).contains(v))
        .ok_or_else(|| "not a share of at least 0 and below 1, such as 0.5".into())
}

/// A share in [0, 1].
pub fn share(text: &str) -> Result<f64, String> {
    number(text).filter(|v| (0.0..=1.0).contains(v)).ok_or_else(|| "not a share between 0 and 1".into())
}

/// A finite number above zero.
pub fn rate(text: &str) -> Result<f64, String> {
    number(text).filter(|v| *v > 0.0).ok_or_else(|| "not a number above 0".into())
}

fn number(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|v| v.is_finite())
}

/// What computes. One device so far; the name is checked so that a script written for a GPU does not silently crawl.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            _ => Err("this build computes on `cpu` only".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_refused() {
        assert_eq!(positive("3"), Ok(3));
        for bad in ["0", "-1", "1.5", "x", ""] {
            assert!(positive(bad).is_err(), "{bad}");
        }
        assert_eq!(share_to_keep("1"), Ok(1.0));
        assert!(share_to_keep("0").is_err() && share_to_keep("50").is_err() && share_to_keep("nan").is_err());
        assert_eq!(share_to_remove("0"), Ok(0.0));
        assert!(share_to_remove("1").is_err() && share_to_remove("inf").is_err());
        assert!(rate("0").is_err() && rate("1e-3").is_ok());
        assert!(Device::from_str("cuda:0").is_err());
    }
}
