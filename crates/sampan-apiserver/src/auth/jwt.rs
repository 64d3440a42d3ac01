//! JSON Web Tokens as this server makes and takes them: compact form, ES256, nothing else. What `alg` a token claims
//! decides nothing: another one is refused.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use sampan_wire::pki::{self, TokenKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Longer ones are refused unread: ours are about 1 KiB.
const MAX_LENGTH: usize = 16 * 1024;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not a token of this server's form")]
    Malformed,
    #[error("signed by an unknown key")]
    UnknownKey,
    #[error("the signature is wrong")]
    Signature,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// The name of a key: a digest of its public part, as upstream derives it.
pub fn key_id(key: &TokenKey) -> String {
    BASE64URL.encode(digest(&SHA256, key.public_key_der()))
}

/// Signs `claims`.
pub fn sign<T: Serialize>(claims: &T, key: &TokenKey) -> Result<String, pki::Error> {
    let part = |value: serde_json::Result<Vec<u8>>| {
        value.map(|bytes| BASE64URL.encode(bytes)).map_err(|error| pki::Error::Key(error.to_string()))
    };
    let header = Header { alg: "ES256".into(), kid: key_id(key) };
    let message = format!("{}.{}", part(serde_json::to_vec(&header))?, part(serde_json::to_vec(claims))?);
    let signature = BASE64URL.encode(key.sign(message.as_bytes())?);
    Ok(format!("{message}.{signature}"))
}

/// The claims of a token that one of `keys` signed. Times and audiences are the caller's to check.
pub fn verify<T: DeserializeOwned>(token: &str, keys: &[&TokenKey]) -> Result<T, Error> {
    if token.len() > MAX_LENGTH {
        return Err(Error::Malformed);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(Error::Malformed)?;
    let (header, claims) = message.split_once('.').ok_or(Error::Malformed)?;
    let bytes = |part: &str| BASE64URL.decode(part).map_err(|_| Error::Malformed);
    let header: Header = serde_json::from_slice(&bytes(header)?).map_err(|_| Error::Malformed)?;
    if header.alg != "ES256" {
        return Err(Error::Malformed);
    }
    let key = keys.iter().find(|key| key_id(key) == header.kid).ok_or(Error::UnknownKey)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_point())
        .verify(message.as_bytes(), &bytes(signature)?)
        .map_err(|_| Error::Signature)?;
    serde_json::from_slice(&bytes(claims)?).map_err(|_| Error::Malformed)
}

/// One entry of a JWKS.
pub fn jwk(key: &TokenKey) -> Value {
    let point = key.public_point();
    let (x, y) = point.get(1..).unwrap_or_default().split_at_checked(32).unwrap_or_default();
    let encode = |part: &[u8]| BASE64URL.encode(part);
    json!({"use": "sig", "kty": "EC", "kid": key_id(key), "crv": "P-256", "alg": "ES256", "x": encode(x), "y": encode(y)})
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_we_signed_is_accepted() {
        let (ours, _) = TokenKey::generate().expect("a key");
        let (theirs, _) = TokenKey::generate().expect("a key");
        let claims = json!({"sub": "a"});
        let token = sign(&claims, &ours).expect("signed");
        assert_eq!(verify::<Value>(&token, &[&theirs, &ours]), Ok(claims));
        assert_eq!(verify::<Value>(&token, &[&theirs]), Err(Error::UnknownKey));
        let (head, signature) = token.rsplit_once('.').expect("three parts");
        let (header, _) = head.split_once('.').expect("three parts");
        let forged = format!("{header}.{}.{signature}", BASE64URL.encode(r#"{"sub":"b"}"#));
        assert_eq!(verify::<Value>(&forged, &[&ours]), Err(Error::Signature));
        let none = BASE64URL.encode(json!({"alg": "none", "kid": key_id(&ours)}).to_string());
        let unsigned = format!("{none}.{}.", BASE64URL.encode("{}"));
        assert_eq!(verify::<Value>(&unsigned, &[&ours]), Err(Error::Malformed));
    }

    #[test]
    fn the_published_key_is_the_public_point() {
        let (key, _) = TokenKey::generate().expect("a key");
        let jwk = jwk(&key);
        let part = |name: &str| BASE64URL.decode(jwk[name].as_str().expect("text")).expect("base64");
        assert_eq!([vec![4], part("x"), part("y")].concat(), key.public_point());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_and_never_panics(text in "[A-Za-z0-9_.-]{0,200}") {
            let (key, _) = TokenKey::generate().expect("a key");
            prop_assert!(verify::<Value>(&text, &[&key]).is_err());
        }
    }
}
