//! Reading `resource.Quantity`: whole numbers rounded up, as upstream's `Value()` and `MilliValue()`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Whole units, rounded up; 0 for what does not parse (the API server has validated it).
pub fn value(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1).unwrap_or(0)
}

/// Thousandths, rounded up.
pub fn milli(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1000).unwrap_or(0)
}

/// `text * scale`, rounded away from zero, clamped to `i64`.
pub fn scaled(text: &str, scale: i128) -> Option<i64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')));
    let (number, suffix) = text.split_at(split.unwrap_or(text.len()));
    let (multiplier, divisor): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(power.unsigned_abs().min(30))?;
            if power < 0 { (1, factor) } else { (factor, 1) }
        }
    };
    let negative = number.starts_with('-');
    let digits = number.trim_start_matches(['+', '-']);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(18)];
    let unscaled: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let divisor = divisor.checked_mul(10_i128.pow(u32::try_from(fraction.len()).ok()?))?;
    let product = unscaled.checked_mul(multiplier)?.checked_mul(scale)?;
    let rounded = (product + divisor - 1) / divisor;
    let signed = if negative { -rounded } else { rounded };
    Some(i64::try_from(signed).unwrap_or(if negative { i64::MIN } else { i64::MAX }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, whole, thousandths) in [
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("1.5", 2, 1500),
            ("64Mi", 64 << 20, (64 << 20) * 1000),
            ("1e3", 1000, 1_000_000),
            ("0.1Gi", 107_374_183, 107_374_182_400),
            ("2k", 2000, 2_000_000),
            ("1n", 1, 1),
            ("0", 0, 0),
        ] {
            assert_eq!((scaled(text, 1), scaled(text, 1000)), (Some(whole), Some(thousandths)), "{text}");
        }
        assert_eq!(scaled("abc", 1), None);
        assert_eq!(scaled("", 1), None);
    }
}
