//! Parsers of single values, each with a message that says what would have been right.

use std::str::FromStr;

use prune::{Amount, Multiple};
use train::net::Isa;

/// A whole number of at least one.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("not a whole number of at least 1".into()),
        Ok(n) => Ok(n),
    }
}

/// A whole number.
pub fn whole(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "not a whole number of at least 0".into())
}

/// A whole number of epochs, maybe none.
pub fn epochs(text: &str) -> Result<usize, String> {
    whole(text).map(|n| n as usize)
}

/// A number of images at a time. Far more than memory holds are a slip of the hand.
pub fn batch(text: &str) -> Result<usize, String> {
    positive(text).ok().filter(|n| *n <= 4096).ok_or_else(|| "not a whole number from 1 to 4096".into())
}

/// How often something is timed.
pub fn runs(text: &str) -> Result<usize, String> {
    positive(text).ok().filter(|n| *n <= 1_000_000).ok_or_else(|| "not a whole number from 1 to 1000000".into())
}

/// A number of threads. Far more than any machine has cores take minutes to start and then get in each other's way.
pub fn threads(text: &str) -> Result<usize, String> {
    positive(text).ok().filter(|n| *n <= 1024).ok_or_else(|| "not a whole number from 1 to 1024".into())
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

/// A share in (0, 1).
pub fn share_within(text: &str) -> Result<f64, String> {
    share_to_remove(text).ok().filter(|v| *v > 0.0).ok_or_else(|| "not a share above 0 and below 1, such as 0.5".into())
}

/// A share in [0, 1].
pub fn share(text: &str) -> Result<f64, String> {
    number(text).filter(|v| (0.0..=1.0).contains(v)).ok_or_else(|| "not a share between 0 and 1".into())
}

/// A finite number above zero.
pub fn rate(text: &str) -> Result<f64, String> {
    number(text).filter(|v| *v > 0.0).ok_or_else(|| "not a number above 0".into())
}

/// A share in (0, 1], or a size with its unit: `2MB`, `700 kB`, `700000B`; units are decimal.
pub fn bytes(text: &str) -> Result<Amount, String> {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("KB", 1e3), ("B", 1.0)];
    amount(text, &units)
        .ok_or_else(|| "neither a share above 0 and at most 1, such as 0.5, nor a size such as 2MB".into())
}

/// A share in (0, 1], or milliseconds: `12ms`.
pub fn latency(text: &str) -> Result<Amount, String> {
    amount(text, &[("ms", 1.0)])
        .ok_or_else(|| "neither a share above 0 and at most 1, such as 0.5, nor a time such as 12ms".into())
}

/// A whole number of at least one, or `auto`.
pub fn multiple(text: &str) -> Result<Multiple, String> {
    match text {
        "auto" => Ok(Multiple::Vectors),
        _ => positive(text).map(Multiple::Of).map_err(|_| "neither `auto` nor a whole number of at least 1".into()),
    }
}

fn amount(text: &str, units: &[(&str, f64)]) -> Option<Amount> {
    for (unit, factor) in units {
        if let Some(value) = text.strip_suffix(unit) {
            return number(value.trim_end()).filter(|v| *v > 0.0).map(|v| Amount::Absolute(v * factor));
        }
    }
    share_to_keep(text).ok().map(Amount::Share)
}

fn number(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|v| v.is_finite())
}

/// What computes: the CPU, with the widest of its instruction sets or one by name. Other devices are refused, so that a script
/// written for a GPU does not silently crawl. Exported models run as the embedded runtime sees fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(Isa);

impl Device {
    /// Calls `f` with everything that is called from this thread computing on this device.
    pub fn scope<R>(self, f: impl FnOnce() -> R) -> R {
        self.0.scope(f)
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let here = Isa::available();
        match text.strip_prefix("cpu") {
            Some("") => return Ok(Self(here[0])),
            Some(rest) => {
                let wanted = here.iter().find(|isa| rest.strip_prefix(':') == Some(isa.name()));
                if let Some(isa) = wanted {
                    return Ok(Self(*isa));
                }
            }
            None => {}
        }
        let names: Vec<String> = here.iter().map(|isa| format!("`cpu:{}`", isa.name())).collect();
        Err(format!("Prunella computes on the CPU; `cpu` takes the best of what this one has: {}", names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shares_or_have_a_unit() {
        assert_eq!(bytes("0.5"), Ok(Amount::Share(0.5)));
        assert_eq!(bytes("2MB"), Ok(Amount::Absolute(2e6)));
        assert_eq!(bytes("700.5 kB"), Ok(Amount::Absolute(700_500.0)));
        assert_eq!(bytes("64B"), Ok(Amount::Absolute(64.0)));
        assert_eq!(latency("12.5ms"), Ok(Amount::Absolute(12.5)));
        for bad in ["2000000", "0", "0MB", "-1MB", "MB", "nanMB", "infMB", "2 XB", ""] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        for bad in ["12", "0ms", "1.5", "12s", "ms"] {
            assert!(latency(bad).is_err(), "{bad}");
        }
        assert_eq!(multiple("auto"), Ok(Multiple::Vectors));
        assert_eq!(multiple("8"), Ok(Multiple::Of(8)));
        assert!(multiple("0").is_err() && multiple("many").is_err());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert_eq!(positive("3"), Ok(3));
        for bad in ["0", "-1", "1.5", "x", ""] {
            assert!(positive(bad).is_err(), "{bad}");
        }
        assert_eq!(share_to_keep("1"), Ok(1.0));
        assert!(threads("1024") == Ok(1024) && threads("1025").is_err() && threads("0").is_err());
        assert!(share_to_keep("0").is_err() && share_to_keep("50").is_err() && share_to_keep("nan").is_err());
        assert_eq!(share_to_remove("0"), Ok(0.0));
        assert!(share_to_remove("1").is_err() && share_to_remove("inf").is_err());
        assert!(share_within("0").is_err() && share_within("1").is_err() && share_within("0.5") == Ok(0.5));
        assert!(rate("0").is_err() && rate("1e-3").is_ok());
        assert!(batch("4096") == Ok(4096) && batch("4097").is_err() && runs("1000001").is_err());
    }

    #[test]
    fn devices_are_instruction_sets_of_this_cpu() {
        assert_eq!(Device::from_str("cpu"), Ok(Device(Isa::available()[0])));
        for isa in Isa::available() {
            let device = Device::from_str(&format!("cpu:{}", isa.name()));
            assert_eq!(device, Ok(Device(isa)));
            assert_eq!(device.unwrap().scope(Isa::current), isa);
        }
        for bad in ["cuda:0", "0", "mps", "", "cpu:", "cpu:cpu", "cpubaseline", "cpu:Baseline", "cpu:0"] {
            let message = Device::from_str(bad).unwrap_err();
            assert!(message.contains("on the CPU") && message.contains("`cpu:baseline`"), "{bad}: {message}");
        }
    }
}
