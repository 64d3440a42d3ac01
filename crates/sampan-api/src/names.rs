//! The syntax of names, keys, ports and addresses, with the messages of `k8s.io/apimachinery/pkg/util/validation`.
//!
//! Each function returns what is wrong, empty when nothing is. [`NameRule`] says which of them
//! an object's name obeys.

use std::net::IpAddr;

use crate::strategy::NameRule;

pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const IMMUTABLE: &str = "field is immutable";

const LABEL_1123: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_1123: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_MESSAGE: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// An object's name by its kind's rule. `prefix`: it is a `generateName`, so a trailing dash is no fault.
pub fn by_rule(rule: NameRule, name: &str, prefix: bool) -> Vec<String> {
    let masked: String;
    let name = match name.strip_suffix('-') {
        Some(rest) if prefix && !rest.is_empty() && rule != NameRule::PathSegment => {
            masked = format!("{}a", rest.char_indices().next_back().map_or("", |(last, _)| &rest[..last]));
            &masked
        }
        _ => name,
    };
    match rule {
        NameRule::Subdomain => dns1123_subdomain(name),
        NameRule::Label => dns1123_label(name),
        NameRule::Label1035 => dns1035_label(name),
        NameRule::PathSegment if prefix => path_segment_prefix(name),
        NameRule::PathSegment => path_segment(name),
    }
}

pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 63);
    if !is_label(value) {
        errors.push(pattern_error(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
             end with an alphanumeric character",
            LABEL_1123,
            &["my-name", "123-abc"],
        ));
    }
    errors
}

pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 253);
    if !value.split('.').all(is_label) {
        errors.push(pattern_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character",
            SUBDOMAIN_1123,
            &["example.com"],
        ));
    }
    errors
}

/// `*.` and a subdomain.
pub fn wildcard_subdomain(value: &str) -> Vec<String> {
    if value.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(is_label)) {
        return too_long(value, 253);
    }
    let mut errors = too_long(value, 253);
    errors.push(pattern_error(
        "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of \
         lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
        &format!("\\*\\.{SUBDOMAIN_1123}"),
        &["*.example.com"],
    ));
    errors
}

pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 63);
    if !is_label(value) || !value.starts_with(|c: char| c.is_ascii_lowercase()) {
        errors.push(pattern_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            LABEL_1035,
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// A name with an optional DNS prefix and `/`: label keys, annotation keys, finalizers, resource names.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let name = match value.split('/').collect::<Vec<_>>().as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".into());
            } else {
                errors.extend(dns1123_subdomain(prefix).into_iter().map(|error| format!("prefix part {error}")));
            }
            *name
        }
        _ => {
            let pattern = pattern_error(QUALIFIED_MESSAGE, QUALIFIED, &["MyName", "my.name", "123-abc"]);
            return vec![format!(
                "a qualified name {pattern} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else {
        errors.extend(too_long(name, 63).into_iter().map(|error| format!("name part {error}")));
    }
    if !is_qualified(name) {
        let pattern = pattern_error(QUALIFIED_MESSAGE, QUALIFIED, &["MyName", "my.name", "123-abc"]);
        errors.push(format!("name part {pattern}"));
    }
    errors
}

pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 63);
    if !value.is_empty() && !is_qualified(value) {
        errors.push(pattern_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

pub fn path_segment(value: &str) -> Vec<String> {
    match value {
        "." | ".." => vec![format!("may not be '{value}'")],
        _ => path_segment_prefix(value),
    }
}

fn path_segment_prefix(value: &str) -> Vec<String> {
    ['/', '%'].iter().filter(|c| value.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// A key of a ConfigMap or Secret.
pub fn config_key(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 253);
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        errors.push(pattern_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." | ".." => errors.push(format!("must not be '{value}'")),
        _ if value.starts_with("..") => errors.push("must not start with '..'".into()),
        _ => {}
    }
    errors
}

/// An environment variable: printable ASCII but `=`.
pub fn env_name(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    if value.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
}

pub fn port_number(port: i64) -> Option<String> {
    (!(1..=65535).contains(&port)).then(|| inclusive_range(1, 65535))
}

pub fn inclusive_range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// The name of a port (an IANA service name).
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = too_long(value, 15);
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !value.bytes().any(|byte| byte.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".into());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".into());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".into());
    }
    errors
}

pub fn http_header_name(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Vec::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![pattern_error(message, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// An address, as old clients may still write it (leading zeros).
pub fn ip(value: &str) -> Option<String> {
    parse_ip(value).is_none().then(|| "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into())
}

pub fn parse_ip(value: &str) -> Option<IpAddr> {
    if let Ok(address) = value.parse() {
        return Some(address);
    }
    let octets: Vec<&str> = value.split('.').collect();
    let sloppy = octets.len() == 4 && octets.iter().all(|octet| (1..=3).contains(&octet.len()));
    let octets: Vec<u8> = octets.iter().map_while(|octet| octet.parse().ok()).collect();
    match (sloppy, octets.as_slice()) {
        (true, [a, b, c, d]) => Some(IpAddr::from([*a, *b, *c, *d])),
        _ => None,
    }
}

pub fn cidr(value: &str) -> Option<String> {
    let valid = value.split_once('/').is_some_and(|(address, bits)| {
        let longest = match parse_ip(address) {
            Some(IpAddr::V4(_)) => 32,
            Some(IpAddr::V6(_)) => 128,
            None => return false,
        };
        !bits.starts_with('+') && bits.parse::<u8>().is_ok_and(|bits| bits <= longest)
    });
    (!valid).then(|| "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into())
}

pub fn percent(value: &str) -> Option<String> {
    let valid = value
        .strip_suffix('%')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
    (!valid).then(|| {
        let message = "a valid percent string must be a numeric string followed by an ending '%'";
        pattern_error(message, "[0-9]+%", &["1%", "93%"])
    })
}

fn too_long(value: &str, max: usize) -> Vec<String> {
    if value.len() > max { vec![format!("must be no more than {max} bytes")] } else { Vec::new() }
}

fn is_label(value: &str) -> bool {
    let inside = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    !value.is_empty() && !value.starts_with('-') && !value.ends_with('-') && value.as_bytes().iter().all(inside)
}

fn is_qualified(value: &str) -> bool {
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    end(bytes.first()) && end(bytes.last()) && bytes.iter().all(inside)
}

/// Upstream's sentence about a pattern, its odd comma included.
fn pattern_error(message: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_upstreams() {
        assert_eq!(
            dns1123_label("Bad"),
            ["a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
              and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]
        );
        assert_eq!(
            label_value("a b"),
            ["a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
              start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
              for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"]
        );
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
    }

    #[test]
    fn rules_accept_and_refuse() {
        let accepted: [(fn(&str) -> Vec<String>, &str); 8] = [
            (dns1123_subdomain, "a.b-c.1"),
            (dns1035_label, "a1"),
            (qualified_name, "example.com/My_Name.x"),
            (label_value, ""),
            (config_key, "..x".trim_start_matches('.')),
            (env_name, "1a-b.c"),
            (port_name, "http-2"),
            (path_segment, "system:node"),
        ];
        for (rule, value) in accepted {
            assert_eq!(rule(value), Vec::<String>::new(), "{value}");
        }
        let refused: [(fn(&str) -> Vec<String>, &str); 9] = [
            (dns1123_subdomain, "a..b"),
            (dns1035_label, "1a"),
            (qualified_name, "/x"),
            (qualified_name, "a/b/c"),
            (label_value, "-a"),
            (config_key, "..x"),
            (env_name, "a=b"),
            (port_name, "1-2"),
            (path_segment, "a%b"),
        ];
        for (rule, value) in refused {
            assert_ne!(rule(value), Vec::<String>::new(), "{value}");
        }
        assert_eq!((ip("10.0.0.01"), cidr("10.0.0.0/33").is_some(), cidr("::/0")), (None, true, None));
    }

    #[test]
    fn a_generated_name_may_end_in_a_dash() {
        assert_eq!(by_rule(NameRule::Subdomain, "web-", true), Vec::<String>::new());
        assert_ne!(by_rule(NameRule::Subdomain, "web-", false), Vec::<String>::new());
    }
}
