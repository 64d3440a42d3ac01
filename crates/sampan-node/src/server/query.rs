//! Reading the parameters of a request.

use jiff::Timestamp;
use sampan_base::Clock;

use super::Refusal;
use crate::logs::Query;

/// Name and value, in order.
pub fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect()
}

fn given<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
}

/// `1` and `true`.
pub fn flag(pairs: &[(String, String)], name: &str) -> bool {
    given(pairs, name).is_some_and(|value| matches!(value, "1" | "true"))
}

pub fn logs(query: Option<&str>, clock: &Clock) -> Result<Query, Refusal> {
    let pairs = pairs(query);
    let number = |name: &str| -> Result<Option<i64>, Refusal> {
        given(&pairs, name)
            .map(|text| text.parse::<i64>().ok().filter(|number| *number >= 0))
            .map(|number| number.ok_or_else(|| Refusal::bad_request(format!("{name} must not be negative\n"))))
            .transpose()
    };
    let since_seconds = number("sinceSeconds")?
        .map(|seconds| clock.now().saturating_sub(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN));
    let since_time = given(&pairs, "sinceTime")
        .map(|text| text.parse::<Timestamp>().map_err(|error| Refusal::bad_request(format!("sinceTime: {error}\n"))))
        .transpose()?;
    let stream = match given(&pairs, "stream") {
        None | Some("All") => None,
        Some("Stdout") => Some(false),
        Some("Stderr") => Some(true),
        Some(other) => return Err(Refusal::bad_request(format!("stream: {other:?} is not All, Stdout or Stderr\n"))),
    };
    Ok(Query {
        follow: flag(&pairs, "follow"),
        previous: flag(&pairs, "previous"),
        timestamps: flag(&pairs, "timestamps"),
        tail: number("tailLines")?.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
        since: since_seconds.or(since_time),
        limit_bytes: number("limitBytes")?.map(i64::unsigned_abs),
        only_stderr: stream,
    })
}
