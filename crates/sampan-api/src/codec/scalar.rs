//! The leaves: canonical forms of times, durations, byte strings and numbers, and what upstream's parsers say of
//! malformed ones.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

/// Standard alphabet, padding required, as Go's `encoding/base64.StdEncoding`.
pub const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical)
        .with_decode_allow_trailing_bits(true),
);

const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Re-encodes base64 without line breaks. The error is Go's.
pub fn canonical_base64(text: &str) -> Result<String, String> {
    decode_base64(text).map(|bytes| BASE64.encode(bytes))
}

pub fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    let clean: String;
    let text = if text.contains(['\r', '\n']) {
        clean = text.replace(['\r', '\n'], "");
        &clean
    } else {
        text
    };
    BASE64.decode(text).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
        };
        format!("illegal base64 data at input byte {at}")
    })
}

/// A `metav1.Time` in canonical form, `None` for the zero time, which is written as null.
pub fn canonical_time(text: &str) -> Result<Option<String>, String> {
    Ok(parse_layout(text, RFC3339)?.map(|(time, _)| format_time(time)))
}

/// A `metav1.MicroTime` in canonical form.
pub fn canonical_micro_time(text: &str) -> Result<Option<String>, String> {
    Ok(parse_layout(text, RFC3339_MICRO)?.map(|(time, nanos)| format_micro_time(time, nanos)))
}

/// The instant of a canonical or client-written time.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let (time, nanos) = parse_layout(text, RFC3339).ok()??;
    Timestamp::new(time, nanos).ok()
}

/// `2006-01-02T15:04:05Z` for seconds since 1970.
pub fn format_time(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => "0001-01-01T00:00:00Z".into(),
    }
}

pub fn format_micro_time(seconds: i64, nanos: i32) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => format!("{}.{:06}Z", time.strftime("%Y-%m-%dT%H:%M:%S"), nanos.clamp(0, 999_999_999) / 1000),
        Err(_) => "0001-01-01T00:00:00.000000Z".into(),
    }
}

/// Seconds and nanoseconds of a canonical time, for protobuf.
pub fn time_parts(text: &str) -> Option<(i64, i32)> {
    parse_layout(text, RFC3339).ok()?
}

/// Reads one of the two layouts; `None` for Go's zero time. The error names the part that does not fit, as `time.Parse`.
fn parse_layout(text: &str, layout: &'static str) -> Result<Option<(i64, i32)>, String> {
    let error = |rest: &str, element: &str| {
        Err(format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}"))
    };
    let out_of_range = |what: &str| Err(format!("parsing time {text:?}: {what} out of range"));
    let mut rest = text;
    let mut numbers = [0_i64; 6];
    for (index, (element, width, after)) in
        [("2006", 4, "-"), ("01", 2, "-"), ("02", 2, "T"), ("15", 2, ":"), ("04", 2, ":"), ("05", 2, "")]
            .into_iter()
            .enumerate()
    {
        match rest.get(..width).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit())) {
            Some(digits) => numbers[index] = digits.parse().unwrap_or(0),
            None => return error(rest, element),
        }
        rest = &rest[width..];
        match rest.strip_prefix(after) {
            Some(tail) => rest = tail,
            None => return error(rest, after),
        }
    }
    let [year, month, day, hour, minute, second] = numbers;

    let mut nanos = 0;
    let fraction =
        rest.strip_prefix(['.', ',']).map(|tail| &tail[..tail.bytes().take_while(u8::is_ascii_digit).count()]);
    let exact = layout == RFC3339_MICRO;
    match fraction {
        Some(digits) if !digits.is_empty() && (!exact || digits.len() == 6) => {
            let nine: String = digits.chars().chain(std::iter::repeat('0')).take(9).collect();
            nanos = nine.parse().unwrap_or(0);
            rest = &rest[1 + digits.len()..];
        }
        _ if exact => return error(rest, ".000000"),
        _ => {}
    }

    let offset = if let Some(tail) = rest.strip_prefix('Z') {
        rest = tail;
        0
    } else {
        let sign = match rest.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return error(rest, "Z07:00"),
        };
        let bytes = rest.as_bytes();
        let digit =
            |index: usize| bytes.get(index).filter(|byte| byte.is_ascii_digit()).map(|byte| i32::from(byte - b'0'));
        let (Some(h1), Some(h2), Some(b':'), Some(m1), Some(m2)) =
            (digit(1), digit(2), bytes.get(3), digit(4), digit(5))
        else {
            return error(rest, "Z07:00");
        };
        rest = &rest[6..];
        let (hours, minutes) = (h1 * 10 + h2, m1 * 10 + m2);
        if hours > 24 || minutes > 60 {
            return out_of_range("time zone offset");
        }
        sign * (hours * 3600 + minutes * 60)
    };
    if !rest.is_empty() {
        return Err(format!("parsing time {text:?}: extra text: {rest:?}"));
    }
    for (value, range, what) in
        [(month, 1..=12, "month"), (hour, 0..=23, "hour"), (minute, 0..=59, "minute"), (second, 0..=59, "second")]
    {
        if !range.contains(&value) {
            return out_of_range(what);
        }
    }
    if [year, month, day, hour, minute, second] == [1, 1, 1, 0, 0, 0] && offset == 0 {
        return Ok(None);
    }
    let small = |value: i64| i8::try_from(value).unwrap_or(0);
    let civil = i16::try_from(year).ok().and_then(|year| {
        DateTime::new(year, small(month), small(day), small(hour), small(minute), small(second), 0).ok()
    });
    let instant = civil.and_then(|civil| Offset::from_seconds(offset).ok()?.to_timestamp(civil).ok());
    match instant {
        Some(instant) => Ok(Some((instant.as_second(), nanos))),
        None => out_of_range("day"),
    }
}

/// Nanoseconds of Go's duration text (`1h2m3.5s`); the error is Go's.
pub fn parse_go_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, after) = tail.split_at(unit_end);
        let nanos: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            other => return Err(format!("time: unknown unit {other:?} in duration {text:?}")),
        };
        let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<i128>().ok() };
        total = parse(whole).and_then(|whole| whole.checked_mul(nanos)?.checked_add(total)).ok_or_else(invalid)?;
        let fraction = &fraction[..fraction.len().min(18)];
        let scale = 10_i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        total += parse(fraction).ok_or_else(invalid)? * nanos / scale;
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

/// Go's duration text for nanoseconds.
pub fn go_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    let decimal = |amount: u64, unit: u64| {
        let fraction = amount % unit;
        if fraction == 0 {
            return (amount / unit).to_string();
        }
        let width = unit.ilog10() as usize;
        format!("{}.{}", amount / unit, format!("{fraction:0width$}").trim_end_matches('0'))
    };
    let text = match total {
        0 => "0s".into(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(total, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(total, 1_000_000)),
        _ => {
            let minutes = total / 60_000_000_000;
            let seconds = decimal(total % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// A float as Go's `encoding/json` writes it.
pub fn go_float(number: f64) -> String {
    let magnitude = number.abs();
    if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        let text = format!("{number:e}");
        return match text.split_once('e') {
            Some((mantissa, exponent)) if !exponent.starts_with('-') => format!("{mantissa}e+{exponent}"),
            _ => text,
        };
    }
    format!("{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_whole_seconds() {
        assert_eq!(canonical_time("2026-11-23T21:30:00.999+01:00").unwrap().unwrap(), "2026-11-23T20:30:00Z");
        assert_eq!(canonical_time("0001-01-01T00:00:00Z"), Ok(None));
        assert_eq!(
            canonical_micro_time("2026-11-23T20:30:00.123456Z").unwrap().unwrap(),
            "2026-11-23T20:30:00.123456Z"
        );
    }

    #[test]
    fn malformed_times_name_the_part() {
        let cases = [
            ("x", r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#),
            ("2026-13-01T00:00:00Z", r#"parsing time "2026-13-01T00:00:00Z": month out of range"#),
            ("2026-02-30T00:00:00Z", r#"parsing time "2026-02-30T00:00:00Z": day out of range"#),
            (
                "2026-01-01 00:00:00Z",
                r#"parsing time "2026-01-01 00:00:00Z" as "2006-01-02T15:04:05Z07:00": cannot parse " 00:00:00Z" as "T""#,
            ),
            ("2026-01-01T00:00:00Zx", r#"parsing time "2026-01-01T00:00:00Zx": extra text: "x""#),
        ];
        for (text, message) in cases {
            assert_eq!(canonical_time(text).unwrap_err(), message);
        }
        assert!(canonical_micro_time("2026-11-23T20:30:00Z").unwrap_err().contains(r#"as ".000000""#));
    }

    #[test]
    fn durations_round_trip_in_go_form() {
        for (text, nanos) in [
            ("0s", 0),
            ("1.5s", 1_500_000_000),
            ("1h2m3s", 3_723_000_000_000),
            ("2m0s", 120_000_000_000),
            ("15ms", 15_000_000),
            ("1.5µs", 1_500),
            ("-7ns", -7),
        ] {
            assert_eq!(parse_go_duration(text), Ok(nanos));
            assert_eq!(go_duration(nanos), text);
        }
        assert_eq!(parse_go_duration("5"), Err(r#"time: missing unit in duration "5""#.into()));
        assert_eq!(parse_go_duration("x"), Err(r#"time: invalid duration "x""#.into()));
    }

    #[test]
    fn base64_errors_say_where() {
        assert_eq!(canonical_base64("YQ=="), Ok("YQ==".into()));
        assert_eq!(canonical_base64("YW\nJj"), Ok("YWJj".into()));
        assert_eq!(canonical_base64("Y!=="), Err("illegal base64 data at input byte 1".into()));
    }

    #[test]
    fn floats_are_written_as_go_does() {
        for (number, text) in [(1.0, "1"), (0.5, "0.5"), (1e21, "1e+21"), (1e-7, "1e-7"), (-2.25, "-2.25")] {
            assert_eq!(go_float(number), text);
        }
    }
}
