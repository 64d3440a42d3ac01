//! Durations in text: Go's form (`1h2m3s`), which the API reads and writes, and the short one of tables (`5d3h`).

use jiff::SignedDuration;

/// An age as tables show it: two units at most, fewer the longer it is (`k8s.io/apimachinery/pkg/util/duration`).
pub fn human(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let pair = |large: i64, unit: &str, small: i64, rest: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{rest}"),
    };
    match () {
        // Clocks may differ by a second or two.
        () if seconds < -1 => "<invalid>".into(),
        () if seconds < 0 => "0s".into(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => pair(days, "d", hours % 24, "h"),
        () if years < 2 => format!("{days}d"),
        () if years < 8 => pair(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

/// Nanoseconds in a unit, in the order Go accepts them.
const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads Go's form: `300ms`, `-1.5h`, `2h45m`, `0`. `None` when it is not that, or beyond 292 years.
pub fn parse_go(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut nanos: i128 = 0;
    loop {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(number);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(*unit)?)?;
        let mut scale = *unit;
        for digit in fraction.bytes() {
            scale /= 10;
            nanos += i128::from(digit - b'0') * scale;
        }
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    let nanos = i64::try_from(if negative { -nanos } else { nanos }).ok()?;
    Some(SignedDuration::from_nanos(nanos))
}

/// Writes Go's form.
pub fn format_go(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos();
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.abs();
    let fraction = |unit: i128| {
        let digits = unit.ilog10() as usize;
        let rest = format!("{:0digits$}", nanos % unit);
        let rest = rest.trim_end_matches('0');
        if rest.is_empty() { String::new() } else { format!(".{rest}") }
    };
    match nanos {
        0 => "0s".into(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => format!("{sign}{}{}µs", nanos / 1_000, fraction(1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}{}ms", nanos / 1_000_000, fraction(1_000_000)),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let mut text = String::from(sign);
            if hours > 0 {
                text += &format!("{hours}h");
            }
            if hours > 0 || minutes > 0 {
                text += &format!("{minutes}m");
            }
            text + &format!("{}{}s", seconds % 60, fraction(1_000_000_000))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ages() {
        const MINUTE: i64 = 60;
        const HOUR: i64 = 3600;
        const DAY: i64 = 24 * HOUR;
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (9 * MINUTE + 59, "9m59s"),
            (10 * MINUTE + 59, "10m"),
            (179 * MINUTE, "179m"),
            (3 * HOUR, "3h"),
            (7 * HOUR + 59 * MINUTE, "7h59m"),
            (8 * HOUR + 59 * MINUTE, "8h"),
            (47 * HOUR, "47h"),
            (48 * HOUR, "2d"),
            (7 * DAY + 23 * HOUR, "7d23h"),
            (8 * DAY + 23 * HOUR, "8d"),
            (729 * DAY, "729d"),
            (730 * DAY, "2y"),
            (731 * DAY, "2y1d"),
            (8 * 365 * DAY + DAY, "8y"),
        ] {
            assert_eq!(human(SignedDuration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn go_form() {
        for (text, canonical) in [
            ("0", "0s"),
            ("1h2m3s", "1h2m3s"),
            ("90m", "1h30m0s"),
            ("1.5h", "1h30m0s"),
            ("-1m", "-1m0s"),
            ("1500ms", "1.5s"),
            ("1us", "1µs"),
            ("1.25ms", "1.25ms"),
            (".5s", "500ms"),
        ] {
            assert_eq!(parse_go(text).map(format_go).as_deref(), Some(canonical), "{text}");
        }
        for wrong in ["", "-", "1", "1x", "h", "1..2s", ".s", "1h-2m", "3000000h", "1h "] {
            assert_eq!(parse_go(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn go_form_reads_back(nanos in any::<i64>()) {
            let duration = SignedDuration::from_nanos(nanos);
            prop_assert_eq!(parse_go(&format_go(duration)), Some(duration));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,20}") {
            let _ = parse_go(&text);
        }
    }
}
