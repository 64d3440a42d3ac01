//! `resource.Quantity`: exact fixed-point amounts with decimal, binary or exponent suffixes.
//!
//! The rules are upstream's (`apimachinery/pkg/api/resource`). Amounts are kept in nano units in 128 bits: from one nano
//! to 10²⁹. Larger ones (`1e30`), which upstream would keep, are refused.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::str::FromStr;

/// Units of the finest amount in one.
const NANO: i128 = 1_000_000_000;

/// An amount and the family of suffixes it is written with. Equal amounts are equal whatever their family.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::Decimal };

    /// A plain number, written with decimal suffixes.
    pub fn from_value(value: i64) -> Self {
        Self { nanos: i128::from(value) * NANO, format: Format::Decimal }
    }

    /// Thousandths, written with decimal suffixes.
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::Decimal }
    }

    /// A number of bytes, written with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANO, format: Format::Binary }
    }

    /// Whole units, rounded away from zero, capped at the ends of `i64`.
    pub fn value(&self) -> i64 {
        rounded(self.nanos, NANO)
    }

    /// Thousandths, rounded away from zero, capped at the ends of `i64`.
    pub fn milli_value(&self) -> i64 {
        rounded(self.nanos, NANO / 1000)
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// The nearest floating-point number.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }
}

fn rounded(nanos: i128, unit: i128) -> i64 {
    let units = divided_away_from_zero(nanos, unit);
    i64::try_from(units).unwrap_or(if units < 0 { i64::MIN } else { i64::MAX })
}

fn divided_away_from_zero(value: i128, by: i128) -> i128 {
    value / by + if value % by == 0 { 0 } else { value.signum() }
}

/// What the text says, before any arithmetic.
struct Parts<'a> {
    negative: bool,
    /// Without leading zeros.
    whole: &'a str,
    fraction: &'a str,
    suffix: Suffix,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Suffix {
    /// A power of ten.
    Decimal(i32),
    Exponent(i32),
    /// A power of two.
    Binary(u32),
}

fn parts(text: &str) -> Result<Parts<'_>, QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    let negative = text.starts_with('-');
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = unsigned.split_at(digits(unsigned));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.bytes().take_while(|byte| b"eEinumkKMGTP".contains(byte)).count();
    let tail = suffix.get(letters..).unwrap_or_default();
    let number = tail.strip_prefix(['+', '-']).unwrap_or(tail);
    if digits(number) != number.len() {
        return Err(QuantityError::Format);
    }
    let suffix = if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        Suffix::Decimal(*power)
    } else if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        Suffix::Binary(*power)
    } else {
        let exponent = suffix.strip_prefix(['e', 'E']).and_then(|power| power.parse().ok());
        Suffix::Exponent(exponent.ok_or(QuantityError::Suffix)?)
    };
    Ok(Parts { negative, whole: whole.trim_start_matches('0'), fraction, suffix })
}

impl Parts<'_> {
    fn quantity(&self) -> Result<Quantity, QuantityError> {
        let digits = [self.whole, self.fraction].concat();
        let digits = digits.trim_start_matches('0');
        let fraction = i32::try_from(self.fraction.len()).map_err(|_| QuantityError::Numeric)?;
        let (power, factor, format) = match self.suffix {
            Suffix::Decimal(power) => (power, 1, Format::Decimal),
            Suffix::Exponent(power) => (power, 1, Format::Exponent),
            Suffix::Binary(power) => (0, 1_i128 << power, Format::Binary),
        };
        let power = power.saturating_add(9).saturating_sub(fraction);
        let mut nanos = match scaled(digits, power, factor) {
            Some(nanos) => nanos,
            // Only a binary amount is capped; see below.
            None if format == Format::Binary => i128::MAX,
            None => return Err(QuantityError::Numeric),
        };
        let mut format = format;
        if format == Format::Binary {
            nanos = nanos.min(i128::from(i64::MAX) * NANO);
            // Written in decimal, so that nothing is lost.
            if nanos > 0 && nanos < NANO {
                format = Format::Decimal;
            }
        }
        Ok(Quantity { nanos: if self.negative { -nanos } else { nanos }, format })
    }

    /// Upstream keeps a text that its fast scanner takes for canonical, although it may have a fraction of three or six
    /// digits (`1.250`), a plus sign or leading zeros.
    fn kept_as_written(&self) -> bool {
        let digits = [if self.whole.is_empty() { "0" } else { self.whole }, self.fraction].concat();
        match self.suffix {
            Suffix::Decimal(power) | Suffix::Exponent(power) => {
                let scale = power.saturating_sub(i32::try_from(self.fraction.len()).unwrap_or(i32::MAX));
                digits.len() <= 18
                    && scale >= -9
                    && scale % 3 == 0
                    && !digits.ends_with("000")
                    && !digits.starts_with('0')
            }
            Suffix::Binary(power) => {
                let room = 14 - i64::from(power * 3 / 10);
                self.fraction.is_empty()
                    && i64::try_from(digits.len()).is_ok_and(|length| length <= room)
                    && digits.parse::<i64>().is_ok_and(|value| value % 8 != 0)
            }
        }
    }
}

/// `digits × 10^power × factor`, rounded up to a whole number; `None` when it is too large.
fn scaled(digits: &str, power: i32, factor: i128) -> Option<i128> {
    if digits.is_empty() {
        return Some(0);
    }
    if power >= 0 {
        let mantissa: i128 = digits.parse().ok()?;
        return mantissa.checked_mul(10_i128.checked_pow(power.unsigned_abs())?)?.checked_mul(factor);
    }
    // Digits far below one nano can't change the result but by rounding up. 18 of them are kept, which leaves room for
    // the largest factor.
    const KEPT: usize = 18;
    let dropped = usize::try_from(power.unsigned_abs()).ok()?;
    let excess = dropped.saturating_sub(KEPT).min(digits.len());
    let (kept, lost) = digits.split_at(digits.len() - excess);
    let inexact = lost.bytes().any(|byte| byte != b'0');
    let mantissa: i128 = if kept.is_empty() { 0 } else { kept.parse().ok()? };
    let divisor = 10_i128.pow(u32::try_from(dropped.min(KEPT)).ok()?);
    let (whole, rest) = (mantissa / divisor, mantissa % divisor);
    let fraction = rest.checked_mul(factor)?;
    let up = fraction % divisor != 0 || inexact;
    whole.checked_mul(factor)?.checked_add(fraction / divisor)?.checked_add(i128::from(up))
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parts(text)?.quantity()
    }
}

/// The form in which the API stores and shows `text`.
pub fn canonicalize(text: &str) -> Result<String, QuantityError> {
    let parts = parts(text)?;
    let quantity = parts.quantity()?;
    Ok(if parts.kept_as_written() { text.into() } else { quantity.to_string() })
}

/// The canonical form: no fraction, the largest suffix that leaves a whole number.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos % NANO == 0;
        if self.format == Format::Binary && whole && self.nanos.abs() >= 1024 * NANO {
            let mut amount = self.nanos / NANO;
            let mut suffix = "";
            for (name, _) in BINARY {
                if amount % 1024 != 0 {
                    break;
                }
                amount /= 1024;
                suffix = name;
            }
            return write!(f, "{amount}{suffix}");
        }
        let (mut amount, mut power) = (self.nanos, -9);
        while amount % 1000 == 0 {
            amount /= 1000;
            power += 3;
        }
        write!(f, "{amount}")?;
        match DECIMAL.iter().find(|(_, candidate)| *candidate == power) {
            _ if power == 0 => Ok(()),
            Some((suffix, _)) if self.format != Format::Exponent => f.write_str(suffix),
            _ => write!(f, "e{power}"),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Default for Quantity {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Quantity {
    /// A sum is written as its first part is, unless that is zero.
    fn with(self, nanos: i128, other: Self) -> Self {
        Self { nanos, format: if self.nanos == 0 { other.format } else { self.format } }
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.with(self.nanos.saturating_add(other.nanos), other)
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.with(self.nanos.saturating_sub(other.nanos), other)
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, canonical: &str) {
        assert_eq!(canonicalize(text).as_deref(), Ok(canonical), "{text}");
    }

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("-0", "0"),
            ("0Ki", "0"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1000", "1k"),
            ("0.5", "500m"),
            ("1024", "1024"),
            ("1000m", "1"),
            ("2048Ki", "2Mi"),
            ("1000Ki", "1000Ki"),
            ("0.5Ki", "512"),
            ("0.5Mi", "512Ki"),
            ("100m", "100m"),
            ("1e3", "1e3"),
            ("1000e0", "1e3"),
            ("1E", "1E"),
            ("1000E", "1e21"),
            ("-1.5", "-1500m"),
            ("18446744073709551616", "18446744073709551616"),
            ("1.2345", "1234500u"),
            ("8Ei", "9223372036854775807"),
            ("100Ei", "9223372036854775807"),
            ("99999999999999999999999999999999999999999Ei", "9223372036854775807"),
            ("0.9n", "1n"),
            ("0.00000000000000000000000000000000000000001", "1n"),
            ("-0.1n", "-1n"),
            ("1.00000000000000000000000000000000000000000Ei", "1Ei"),
            ("0.0000000000000000000000000000000000000000001Ei", "1n"),
            ("0.0001Ki", "102400u"),
            ("1.250", "1.250"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("123Mi", "123Mi"),
        ] {
            check(text, canonical);
        }
    }

    #[test]
    fn refused() {
        for (text, error) in [
            ("", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("ten", QuantityError::Format),
            ("1.2.3", QuantityError::Format),
            ("1Gib", QuantityError::Format),
            ("1ki", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1mm", QuantityError::Suffix),
            ("1e40", QuantityError::Numeric),
        ] {
            assert_eq!(canonicalize(text), Err(error), "{text}");
        }
    }

    #[test]
    fn values_round_away_from_zero() {
        let quantity = |text: &str| text.parse::<Quantity>().expect("valid");
        assert_eq!(quantity("100m").value(), 1);
        assert_eq!(quantity("-100m").value(), -1);
        assert_eq!(quantity("1Gi").value(), 1 << 30);
        assert_eq!(quantity("1u").milli_value(), 1);
        assert_eq!(quantity("1e20").value(), i64::MAX);
        assert_eq!(quantity("1Gi"), quantity("1073741824"));
        assert!(quantity("1Gi") > quantity("1G"));
    }

    #[test]
    fn sums_keep_the_first_family() {
        let quantity = |text: &str| text.parse::<Quantity>().expect("valid");
        assert_eq!((quantity("1Gi") + quantity("1024")).to_string(), "1048577Ki");
        assert_eq!((Quantity::ZERO + quantity("2Gi")).to_string(), "2Gi");
        assert_eq!((quantity("2") - quantity("500m")).to_string(), "1500m");
    }

    proptest! {
        #[test]
        fn canonical_text_is_a_fixed_point_of_equal_value(
            text in "[+-]?[0-9]{1,12}(\\.[0-9]{0,6})?(n|u|m||k|M|G|T|P|Ki|Mi|Gi|Ti|e-?[0-8])"
        ) {
            let quantity: Quantity = text.parse().expect("valid");
            let canonical = quantity.to_string();
            prop_assert_eq!(canonical.parse::<Quantity>().expect("canonical text is valid"), quantity);
            prop_assert_eq!(canonicalize(&canonical).expect("canonical text is valid"), canonical);
        }

        #[test]
        fn any_text_is_accepted_or_refused(text in ".{0,40}") {
            if let Ok(canonical) = canonicalize(&text) {
                prop_assert!(canonical.parse::<Quantity>().is_ok());
            }
        }
    }
}
