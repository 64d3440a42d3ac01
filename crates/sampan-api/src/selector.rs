//! Label and field selectors (`apimachinery/pkg/labels`, `apimachinery/pkg/fields`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use crate::error::{FieldErrorKind, FieldErrors, FieldPath};

/// Requirements that all must hold. The empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// Sorted by key.
    requirements: Vec<Requirement>,
    nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// Why a selector was refused, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// `key=value` for each pair, as a Service's or a ReplicationController's selector.
    pub fn from_map(map: &BTreeMap<String, String>) -> Self {
        let requirements = map.iter().map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: BTreeSet::from([value.clone()]),
        });
        Self { requirements: requirements.collect(), nothing: false }
    }

    /// The text form: `a=b,c in (d,e),!f,g>1`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { tokens: tokens(text)?, at: 0 };
        let mut requirements = parser.requirements()?;
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(Self { requirements, nothing: false })
    }

    /// A `metav1.LabelSelector`. Null matches nothing, an empty one everything.
    pub fn from_json(selector: &Value) -> Result<Self, SelectorError> {
        let Value::Object(selector) = selector else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            requirements.push(Requirement::new(key, Operator::Equals, [value.to_owned()])?);
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| expression.get(key).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(SelectorError(format!("{other:?} is not a valid label selector operator"))),
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned);
            requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(Self { requirements, nothing: false })
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// [`LabelSelector::matches`] for labels that are held in some other form.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }

    /// True when every object matches, whatever its labels.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The value `key` must have, when the selector asks for exactly one.
    pub fn exact(&self, key: &str) -> Option<&str> {
        self.requirements.iter().find(|requirement| requirement.key == key).and_then(|requirement| {
            let one_value = requirement.values.len() == 1;
            let exact = matches!(requirement.operator, Operator::Equals | Operator::DoubleEquals | Operator::In);
            requirement.values.first().filter(|_| one_value && exact).map(String::as_str)
        })
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = match self.operator {
            Operator::Equals => ("", "="),
            Operator::DoubleEquals => ("", "=="),
            Operator::NotEquals => ("", "!="),
            Operator::In => ("", " in "),
            Operator::NotIn => ("", " notin "),
            Operator::Exists => ("", ""),
            Operator::DoesNotExist => ("!", ""),
            Operator::GreaterThan => ("", ">"),
            Operator::LessThan => ("", "<"),
        };
        let values = self.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        match self.operator {
            Operator::In | Operator::NotIn => write!(f, "{}{after}({values})", self.key),
            _ => write!(f, "{before}{}{after}{values}", self.key),
        }
    }
}

impl Requirement {
    fn new(key: &str, operator: Operator, values: impl IntoIterator<Item = String>) -> Result<Self, SelectorError> {
        let mut errors = FieldErrors::default();
        let values: BTreeSet<String> = values.into_iter().collect();
        check_key(key, &mut errors);
        let path = FieldPath::new("values");
        let shown = || Value::from_iter(values.iter().cloned());
        let wrong = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            errors.invalid(path.clone(), shown(), wrong);
        }
        for (index, value) in values.iter().enumerate() {
            if matches!(operator, Operator::GreaterThan | Operator::LessThan) && value.parse::<i64>().is_err() {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.invalid(path.index(index), value.as_str(), detail);
            }
            let problems = label_value_problems(value);
            if !problems.is_empty() {
                errors.invalid(path.key(key), value.as_str(), problems.join("; "));
            }
        }
        if errors.is_empty() {
            Ok(Self { key: key.into(), operator, values })
        } else {
            Err(SelectorError(errors.aggregate()))
        }
    }

    fn matches(&self, label: Option<&str>) -> bool {
        let is_member = || label.is_some_and(|label| self.values.contains(label));
        let compare = |holds: fn(&i64, &i64) -> bool| {
            let label = label.and_then(|label| label.parse().ok());
            let bound = self.values.first().and_then(|value| value.parse().ok());
            label.zip(bound).is_some_and(|(label, bound)| holds(&label, &bound))
        };
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => is_member(),
            Operator::NotIn | Operator::NotEquals => !is_member(),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => compare(i64::gt),
            Operator::LessThan => compare(i64::lt),
        }
    }
}

fn check_key(key: &str, errors: &mut FieldErrors) {
    let problems = qualified_name_problems(key);
    if !problems.is_empty() {
        errors.push(FieldPath::root(), FieldErrorKind::Invalid(key.into()), problems.join("; "));
    }
}

/// What is wrong with a label or annotation key (`validation.IsQualifiedName`); empty when nothing is.
pub fn qualified_name_problems(key: &str) -> Vec<String> {
    const FORM: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                        alphanumeric character";
    let mut problems = Vec::new();
    let mut pieces = key.splitn(3, '/');
    let name = match (pieces.next(), pieces.next(), pieces.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".into());
            } else if !is_subdomain(prefix) {
                problems.push(
                    "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
                     '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used \
                     for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                        .into(),
                );
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {FORM} (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        problems.push("name part must be no more than 63 bytes".into());
    }
    if !is_word(name) {
        problems.push(format!(
            "name part {FORM} (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
             '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        ));
    }
    problems
}

/// What is wrong with a label's value (`validation.IsValidLabelValue`); empty when nothing is.
pub fn label_value_problems(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > 63 {
        problems.push("must be no more than 63 bytes".into());
    }
    if !value.is_empty() && !is_word(value) {
        problems.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
             validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .into(),
        );
    }
    problems
}

/// Alphanumeric at both ends, `-`, `_`, `.` between; not empty.
fn is_word(text: &str) -> bool {
    let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    end(bytes.first())
        && end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn is_subdomain(text: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            bytes.first().is_some_and(plain)
                && bytes.last().is_some_and(plain)
                && bytes.iter().all(|byte| plain(byte) || *byte == b'-')
        })
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A word; whether `in` and `notin` are operators depends on the place.
    Word(&'a str),
    Symbol(&'a str),
    End,
}

impl Token<'_> {
    fn text(&self) -> &str {
        match self {
            Self::Word(text) | Self::Symbol(text) => text,
            Self::End => "",
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, SelectorError> {
    const SYMBOLS: [&str; 10] = ["==", "!=", "=", "!", ",", "(", ")", ">", "<", "\0"];
    let mut rest = text;
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if rest.is_empty() {
            found.push(Token::End);
            return Ok(found);
        }
        if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            if *symbol == "\0" {
                return Err(SelectorError("found '\0', expected: !, identifier, or 'end of string'".into()));
            }
            found.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let end = rest.find(|c| " \t\r\n=!,()<>\0".contains(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            found.push(Token::Word(word));
            rest = after;
        }
    }
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => {
                    let requirement = self
                        .requirement()
                        .map_err(|error| SelectorError(format!("unable to parse requirement: {error}")));
                    requirements.push(requirement?);
                    match self.next() {
                        Token::End => return Ok(requirements),
                        Token::Symbol(",") => match self.peek() {
                            Token::Word(_) | Token::Symbol("!") => {}
                            other => return Err(found(&other, "identifier after ','")),
                        },
                        other => return Err(found(&other, "',' or 'end of string'")),
                    }
                }
                Token::End => return Ok(requirements),
                other => return Err(found(&other, "!, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let absent = self.peek() == Token::Symbol("!");
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return Err(found(&other, "identifier")),
        };
        let mut errors = FieldErrors::default();
        check_key(key, &mut errors);
        if !errors.is_empty() {
            return Err(SelectorError(errors.aggregate()));
        }
        let bare = matches!(self.peek(), Token::End | Token::Symbol(","));
        if absent || bare {
            return Requirement::new(key, if absent { Operator::DoesNotExist } else { Operator::Exists }, []);
        }
        let operator = match self.next() {
            Token::Word("in") => Operator::In,
            Token::Word("notin") => Operator::NotIn,
            Token::Symbol("=") => Operator::Equals,
            Token::Symbol("==") => Operator::DoubleEquals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            other => return Err(found(&other, "in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.list()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key, operator, values)
    }

    /// `(a,b)`; a missing value between commas is the empty one.
    fn list(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(SelectorError(format!("found '{}' expected: '('", other.text()))),
        }
        if self.peek() == Token::Symbol(")") {
            self.next();
            return Ok(Vec::new());
        }
        let mut values = Vec::new();
        loop {
            match self.peek() {
                Token::Word(word) => {
                    self.next();
                    values.push(word.to_owned());
                }
                Token::Symbol("," | ")") => values.push(String::new()),
                other => return Err(found(&other, "',', or identifier")),
            }
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => return Ok(values),
                other => return Err(found(&other, "',' or ')'")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(word) => {
                self.next();
                Ok(word.to_owned())
            }
            other => Err(found(&other, "identifier")),
        }
    }
}

fn found(token: &Token<'_>, expected: &str) -> SelectorError {
    SelectorError(format!("found '{}', expected: {expected}", token.text()))
}

/// Terms on field paths that all must hold: `metadata.name=x,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub path: String,
    /// `!=` instead of `=`.
    pub negated: bool,
    pub value: String,
}

impl FieldSelector {
    /// Commas, equal signs and backslashes in values are escaped with a backslash.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let wrong = || SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'"));
            let (path, negated, value) = split_term(term).ok_or_else(wrong)?;
            let value = unescaped(value).ok_or_else(|| {
                SelectorError(format!(
                    "invalid field selector: invalid escape sequence or special character in '{value}'"
                ))
            })?;
            terms.push(FieldTerm { path: path.into(), negated, value });
        }
        Ok(Self { terms })
    }

    /// `field` answers with a field's value, absent ones as the empty string or `None`, which are the same.
    pub fn matches(&self, field: impl Fn(&str) -> Option<String>) -> bool {
        self.terms.iter().all(|term| (field(&term.path).unwrap_or_default() == term.value) != term.negated)
    }

    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that the field at `path` must have.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.path == path && !term.negated).map(|term| term.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}{}{value}", term.path, if term.negated { "!=" } else { "=" })?;
        }
        Ok(())
    }
}

/// Splits at commas that are not escaped.
fn split_terms(text: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c| {
        let here = !escaped && c == ',';
        escaped = !escaped && c == '\\';
        here
    })
}

/// The first operator divides path and value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.char_indices().find_map(|(at, c)| (c == '=' || term[at..].starts_with("!=")).then_some(at))?;
    let (path, rest) = term.split_at(at);
    [("!=", true), ("==", false), ("=", false)]
        .into_iter()
        .find_map(|(operator, negated)| Some((path, negated, rest.strip_prefix(operator)?)))
}

fn unescaped(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().filter(|c| ['\\', ',', '='].contains(c))?),
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.into(), value.into())).collect()
    }

    #[test]
    fn labels_match() {
        for (selector, object, expected) in [
            ("", "a=b", true),
            ("a=b", "a=b", true),
            ("a==b", "a=c", false),
            ("a!=b", "", true),
            ("a in (b,c)", "a=c", true),
            ("a notin (b,c)", "a=c", false),
            ("a notin (b,c)", "x=y", true),
            ("a", "a=", true),
            ("!a", "a=b", false),
            ("a=", "a=", true),
            ("a in (,b)", "a=", true),
            ("a=b,c in (d,e),!f,g>1", "a=b,c=e,g=2", true),
            ("a=b,c in (d,e),!f,g>1", "a=b,c=e,g=1", false),
            ("g<5", "g=4", true),
            ("g<5", "g=x", false),
            ("in in (in,notin)", "in=notin", true),
            ("example.com/a = b", "example.com/a=b", true),
        ] {
            let parsed = LabelSelector::parse(selector).expect(selector);
            assert_eq!(parsed.matches(&labels(object)), expected, "{selector} on {object}");
        }
    }

    #[test]
    fn label_selectors_refused() {
        for (selector, message) in [
            ("a=b,", "found '', expected: identifier after ','"),
            ("=b", "found '=', expected: !, identifier, or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
        ] {
            assert_eq!(LabelSelector::parse(selector).expect_err(selector).to_string(), message);
        }
        for selector in ["a>x", "a in ()", "-a=b", "a=-", "/a", "a/b/c", "a in (b"] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }

    #[test]
    fn a_structured_selector_says_the_same_as_its_text() {
        let selector = json!({"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]},
            {"key": "c", "operator": "DoesNotExist"},
        ]});
        let selector = LabelSelector::from_json(&selector).expect("valid");
        assert_eq!(selector.to_string(), "a in (x,y),b=1,!c");
        assert_eq!(selector.exact("b"), Some("1"));
        assert!(LabelSelector::from_json(&json!({})).expect("valid").is_everything());
        assert!(!LabelSelector::from_json(&Value::Null).expect("valid").matches(&BTreeMap::new()));
        let unknown = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
        assert!(LabelSelector::from_json(&unknown).is_err());
    }

    #[test]
    fn fields_match() {
        let selector = FieldSelector::parse("metadata.name=x,status.phase!=Running").expect("valid");
        let object =
            |phase: &'static str| move |path: &str| Some(if path == "metadata.name" { "x" } else { phase }.into());
        assert!(selector.matches(object("Pending")));
        assert!(!selector.matches(object("Running")));
        assert_eq!(selector.exact("metadata.name"), Some("x"));
        assert_eq!(selector.exact("status.phase"), None);
        let escaped = FieldSelector::parse(r"a=b\,c\=d\\").expect("valid");
        assert_eq!(escaped.terms()[0].value, r"b,c=d\");
        assert_eq!(escaped.to_string(), r"a=b\,c\=d\\");
        for wrong in ["a", r"a=b\c", "a=b=c"] {
            assert!(FieldSelector::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_label_selector_reads_back(text in "[a-c](=|==|!=)[x-z]?(,[d-f] (in|notin) \\([x-z],[x-z]\\))?(,!?[g-i])?(,[j-l](<|>)[0-9])?") {
            let selector = LabelSelector::parse(&text).expect("valid");
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).expect("valid"), selector);
        }

        #[test]
        fn any_text_is_accepted_or_refused(text in "[a-c=!,() <>\\\\\0é]{0,20}") {
            let _ = LabelSelector::parse(&text);
            if let Ok(selector) = FieldSelector::parse(&text) {
                prop_assert_eq!(FieldSelector::parse(&selector.to_string()).expect("valid"), selector);
            }
        }
    }
}
