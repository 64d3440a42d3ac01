//! Image names: `nginx` is `docker.io/library/nginx:latest`. Pure; the grammar is that of the distribution project's
//! `reference` package, the defaults are Docker's.

use std::fmt;

use crate::{Error, ImageErrorKind};

/// A parsed, normalised name. At least one of `tag` and `digest` is set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`
    pub registry: String,
    /// `library/nginx`
    pub repository: String,
    pub tag: Option<String>,
    /// `sha256:…`
    pub digest: Option<String>,
}

impl Reference {
    /// Errors are of kind [`ImageErrorKind::InvalidName`] and say what is wrong with the name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |message: &str| Error::Image {
            reference: text.to_owned(),
            kind: ImageErrorKind::InvalidName,
            message: format!("invalid reference: {message}"),
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(invalid("the digest is not sha256: and 64 lower-case hexadecimal digits")),
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(invalid("the tag has characters a tag cannot have"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path))
                if first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_uppercase()) =>
            {
                (first, path)
            }
            _ => ("docker.io", name),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let host = |b: u8| b.is_ascii_alphanumeric() || b".-:[]".contains(&b);
        if !registry.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') || !registry.bytes().all(host) {
            return Err(invalid("the registry is not a host name"));
        }
        let repository =
            if registry == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        if path.is_empty() || !repository.split('/').all(is_component) {
            return Err(invalid("the repository must be lower-case letters, digits and single separators"));
        }
        if registry.len() + repository.len() > 255 {
            return Err(invalid("the name is longer than 255 characters"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// `docker.io/library/nginx:1.27`, without the digest.
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}/{}:{tag}", self.registry, self.repository))
    }

    /// `docker.io/library/nginx@sha256:…`
    pub fn with_digest(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_sha256)
}

/// 64 lower-case hexadecimal digits.
pub fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_tag(tag: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(valid) && !tag.starts_with(['.', '-'])
}

/// Runs of lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = component.split(alphanumeric).filter(|s| !s.is_empty());
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && separators.into_iter().all(|s| s == "." || s == "_" || s == "__" || s.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(Reference::parse(text).map(|r| r.to_string()).as_deref(), Ok(expected));
    }

    #[test]
    fn short_names_get_docker_hubs_defaults() {
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.27", "docker.io/library/nginx:1.27");
        check("bitnami/redis", "docker.io/bitnami/redis:latest");
        check("index.docker.io/library/a", "docker.io/library/a:latest");
        check("localhost/a", "localhost/a:latest");
        check("localhost:5000/a/b:v1", "localhost:5000/a/b:v1");
        check("registry.k8s.io/pause", "registry.k8s.io/pause:latest");
        let digest = format!("sha256:{}", "a".repeat(64));
        check(&format!("nginx@{digest}"), &format!("docker.io/library/nginx@{digest}"));
        check(&format!("nginx:1@{digest}"), &format!("docker.io/library/nginx:1@{digest}"));
    }

    #[test]
    fn wrong_names_are_refused() {
        for text in
            ["", ":", "a:", "UPPER", "a b", "a//b", "a@sha256:12", "-a", "a:-t", "../a", "a/../b", "a.", "host.x/"]
        {
            let error = Reference::parse(text).expect_err(text);
            assert!(matches!(error, Error::Image { kind: ImageErrorKind::InvalidName, .. }), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_is_a_fixed_point(text in "([a-z0-9.]{1,8}(:[0-9]{2})?/)?[a-z0-9._-]{1,9}(/[a-z]{1,5})?(:[a-zA-Z0-9._-]{1,5})?") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
            }
        }
    }
}
