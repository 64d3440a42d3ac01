//! Which form an answer takes and which form a body has: `Accept` and `Content-Type`
//! (`k8s.io/apiserver/pkg/endpoints/handlers/negotiation`). Pure.

use http::{HeaderMap, header};
use sampan_api::{Failure, Reason};

use crate::request_info::RequestInfo;

/// How an answer is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    Json,
    Yaml,
    Protobuf,
}

/// What of an object is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// The object itself.
    Object,
    /// Rows for people; the text is the version of `meta.k8s.io`.
    Table(MetaVersion),
    /// Type and metadata only, of one object or of each item of a list.
    Metadata(MetaVersion),
}

/// The served versions of `meta.k8s.io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetaVersion {
    V1,
    V1Beta1,
}

impl MetaVersion {
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1Beta1),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    pub wire: Wire,
    pub shape: Shape,
    pub pretty: bool,
}

impl Format {
    pub const JSON: Self = Self { wire: Wire::Json, shape: Shape::Object, pretty: false };

    pub fn content_type(self, watch: bool) -> &'static str {
        match (self.wire, watch) {
            (Wire::Json, _) => "application/json",
            (Wire::Yaml, _) => "application/yaml",
            (Wire::Protobuf, false) => "application/vnd.kubernetes.protobuf",
            (Wire::Protobuf, true) => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }
}

const OBJECTS: &[(&str, Wire)] = &[
    ("application/json", Wire::Json),
    ("application/yaml", Wire::Yaml),
    ("application/vnd.kubernetes.protobuf", Wire::Protobuf),
];

/// What an endpoint can answer with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offer {
    pub watch: bool,
    /// A collection: metadata only is asked for as `PartialObjectMetadataList`.
    pub list: bool,
    /// Tables and metadata are served.
    pub transforms: bool,
    /// The kind has a protobuf form.
    pub protobuf: bool,
}

/// One clause of an `Accept` header.
struct Clause<'a> {
    media: &'a str,
    quality: f32,
    parameters: Vec<(&'a str, &'a str)>,
}

fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(|text| {
            let mut parts = text.split(';').map(str::trim);
            let media = parts.next().filter(|media| !media.is_empty())?;
            let mut clause = Clause { media, quality: 1.0, parameters: Vec::new() };
            for part in parts {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                match key.trim() {
                    "q" => clause.quality = value.trim().parse().unwrap_or(1.0),
                    key => clause.parameters.push((key, value.trim().trim_matches('"'))),
                }
            }
            Some(clause)
        })
        .collect();
    // Stable: equal qualities keep their order.
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

/// The first clause that can be met. `None`: none can.
fn choose(accept: &str, offer: Offer) -> Option<(Wire, Shape, bool)> {
    for clause in clauses(accept) {
        for (media, wire) in OBJECTS {
            let asked = clause.media == *media || clause.media == "*/*" || clause.media == "application/*";
            let offered = match wire {
                Wire::Json => true,
                Wire::Yaml => !offer.watch,
                Wire::Protobuf => offer.protobuf || clause.parameters.iter().any(|(key, _)| *key == "as"),
            };
            if !asked || !offered {
                continue;
            }
            if let Some((shape, pretty)) = transform(&clause, *wire, offer) {
                return Some((*wire, shape, pretty));
            }
        }
    }
    None
}

fn transform(clause: &Clause<'_>, wire: Wire, offer: Offer) -> Option<(Shape, bool)> {
    let (mut kind, mut group, mut version, mut pretty) = (None, "", "", false);
    for (key, value) in &clause.parameters {
        match *key {
            "as" => kind = Some(*value),
            "g" => group = value,
            "v" => version = value,
            "pretty" => pretty = *value == "1",
            "stream" if !value.is_empty() && *value != "watch" => return None,
            "sv" if !value.is_empty() => return None,
            _ => {}
        }
    }
    let Some(kind) = kind else {
        return (group.is_empty() && version.is_empty()).then_some((Shape::Object, pretty));
    };
    if group != "meta.k8s.io" || !offer.transforms {
        return None;
    }
    let version = MetaVersion::parse(version)?;
    let shape = match kind {
        // Tables have no protobuf form.
        "Table" if wire != Wire::Protobuf => Shape::Table(version),
        "PartialObjectMetadata" if !offer.list => Shape::Metadata(version),
        "PartialObjectMetadataList" if offer.list => Shape::Metadata(version),
        _ => return None,
    };
    Some((shape, pretty))
}

/// The form of the answer; 406 when nothing asked for can be served.
pub fn answer(headers: &HeaderMap, info: &RequestInfo, offer: Offer) -> Result<Format, Failure> {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let accept = accept.collect::<Vec<_>>().join(",");
    let chosen =
        if accept.trim().is_empty() { Some((Wire::Json, Shape::Object, false)) } else { choose(&accept, offer) };
    let Some((wire, shape, pretty)) = chosen else {
        let media = OBJECTS.iter().filter(|(_, wire)| match wire {
            Wire::Json => true,
            Wire::Yaml => !offer.watch,
            Wire::Protobuf => offer.protobuf,
        });
        let suffix = if offer.watch { ";stream=watch" } else { "" };
        let media: Vec<String> = media.map(|(media, _)| format!("{media}{suffix}")).collect();
        let message = format!("only the following media types are accepted: {}", media.join(", "));
        return Err(Failure::new(Reason::NotAcceptable, message));
    };
    Ok(Format { wire, shape, pretty: wire == Wire::Json && !offer.watch && (pretty || human(headers, info)) })
}

/// Indents for `?pretty=true` and for the usual tools people read with.
fn human(headers: &HeaderMap, info: &RequestInfo) -> bool {
    if let Some(value) = info.given("pretty") {
        return matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|tool| agent.starts_with(tool))
}

/// The media type of a body, without its parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// How a body is written down; 415 for what is not known. No header means JSON.
pub fn body(headers: &HeaderMap) -> Result<Wire, Failure> {
    let media = media_type(headers);
    if media.is_empty() {
        return Ok(Wire::Json);
    }
    let known: Vec<&str> = OBJECTS.iter().map(|(media, _)| *media).collect();
    OBJECTS
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(media))
        .map(|(_, wire)| *wire)
        .ok_or_else(|| unsupported_media(&known))
}

pub fn unsupported_media(accepted: &[&str]) -> Failure {
    let message = format!(
        "the body of the request was in an unknown format - accepted media types include: {}",
        accepted.join(", ")
    );
    Failure::new(Reason::UnsupportedMediaType, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(accept: &str, offer: Offer) -> Result<(Wire, Shape), u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().expect("a header"));
        answer(&headers, &RequestInfo::default(), offer)
            .map(|format| (format.wire, format.shape))
            .map_err(|failure| failure.code)
    }

    #[test]
    fn the_first_clause_that_can_be_met_wins() {
        let list = Offer { list: true, transforms: true, protobuf: true, watch: false };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let proto = "application/vnd.kubernetes.protobuf, application/json";
        let metadata =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let table = [
            (kubectl, list, Ok((Wire::Json, Shape::Table(MetaVersion::V1)))),
            (kubectl, Offer { transforms: false, ..list }, Ok((Wire::Json, Shape::Object))),
            (proto, list, Ok((Wire::Protobuf, Shape::Object))),
            (proto, Offer { protobuf: false, ..list }, Ok((Wire::Json, Shape::Object))),
            (metadata, list, Ok((Wire::Protobuf, Shape::Metadata(MetaVersion::V1)))),
            (metadata, Offer { list: false, ..list }, Ok((Wire::Json, Shape::Object))),
            ("*/*", list, Ok((Wire::Json, Shape::Object))),
            ("application/yaml", list, Ok((Wire::Yaml, Shape::Object))),
            ("application/json;q=0.5,application/yaml", list, Ok((Wire::Yaml, Shape::Object))),
            ("application/yaml", Offer { watch: true, ..list }, Err(406)),
            ("text/html", list, Err(406)),
            ("application/json;as=Pod;v=v1;g=", list, Err(406)),
        ];
        for (accept, offer, expected) in table {
            assert_eq!(format(accept, offer), expected, "{accept}");
        }
    }

    #[test]
    fn bodies() {
        let mut headers = HeaderMap::new();
        assert_eq!(body(&headers), Ok(Wire::Json));
        headers.insert(header::CONTENT_TYPE, "application/yaml; charset=utf-8".parse().expect("a header"));
        assert_eq!(body(&headers), Ok(Wire::Yaml));
        headers.insert(header::CONTENT_TYPE, "text/plain".parse().expect("a header"));
        assert_eq!(body(&headers).expect_err("not known").code, 415);
    }
}
