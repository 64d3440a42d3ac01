//! Encryption at rest: values are sealed before they reach the log and opened when they come back; plain text lives in
//! the state only.
//!
//! A sealed value starts with a tag and a key id, so that plain values, several keys and later schemes can stand beside
//! each other. AES-256-GCM is bound to the path of the key: a value moved to another path doesn't open. It is not bound
//! to the revision (not known yet when a value is sealed): who can write the files can put back an older value.
//!
//! ```text
//! tag 0 | key id 0 (u32 LE)  | stamp + 1 (varint, 0: none) | bytes
//! tag 1 | key id (u32 LE)    | nonce (12) | AES-256-GCM of (stamp + 1 (varint) | bytes) | authentication tag (16)
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::Bytes;
use sampan_base::Dice;
use sampan_base::disk::Disk;
use serde::{Deserialize, Serialize};

use crate::Payload;
use crate::codec::{Cursor, put_varint};

const TAG_PLAIN: u8 = 0;
const TAG_AES_256_GCM: u8 = 1;
const HEADER_LENGTH: usize = 5;
const SECRET_LENGTH: usize = 32;

/// The name of the key file's format in the manifest of formats.
pub(crate) const FORMAT: (&str, u32) = ("keys", 1);

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{file}: {source}")]
    Io { file: String, source: io::Error },
    #[error("{file}: not a key file: {reason}")]
    Malformed { file: String, reason: String },
    #[error("{file}: written by a newer version (key file format {found}, this program knows {known})")]
    Newer { file: String, found: u32, known: u32 },
}

/// Why a stored value does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenValueError {
    #[error("the value was sealed with key {0}, which is not in the key file")]
    UnknownKey(u32),
    #[error("the value has the unknown encoding {0}")]
    UnknownEncoding(u8),
    #[error("the value does not open: not sealed for this path with this key, or changed since")]
    Rejected,
    #[error("the value is too short or its stamp is outside of it")]
    Malformed,
}

/// The keys that values are sealed with: the newest (highest id) seals, all open. Cheap to clone.
#[derive(Clone)]
pub struct KeyRing(Arc<Ring>);

struct Ring {
    secrets: BTreeMap<u32, [u8; SECRET_LENGTH]>,
    ciphers: BTreeMap<u32, LessSafeKey>,
    dice: Dice,
    nonces: Mutex<Nonces>,
}

/// Nonces that don't repeat: a random 64-bit prefix for each process and each 2^32 values, then a counter. (With wholly
/// random nonces a key would be used up after 2^32 values: days of steady writing.)
#[derive(Default)]
struct Nonces {
    prefix: u64,
    counter: u32,
}

#[derive(Serialize, Deserialize)]
struct KeyFile {
    version: u32,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    id: u32,
    /// Hexadecimal.
    secret: String,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KeyRing").field(&self.0.secrets.keys()).finish()
    }
}

impl KeyRing {
    /// No keys: values are stored in plain text. For tests, and to look at data that never was encrypted.
    pub fn plain() -> Self {
        Self::new(BTreeMap::new(), Dice::system())
    }

    /// Keys by id (from 1 on). `dice` makes nonces and new keys.
    pub fn new(secrets: BTreeMap<u32, [u8; SECRET_LENGTH]>, dice: Dice) -> Self {
        let cipher = |secret: &[u8; SECRET_LENGTH]| UnboundKey::new(&AES_256_GCM, secret).ok().map(LessSafeKey::new);
        let ciphers = secrets.iter().filter_map(|(id, secret)| Some((*id, cipher(secret)?))).collect();
        Self(Arc::new(Ring { secrets, ciphers, dice, nonces: Mutex::default() }))
    }

    /// Reads the key file; an absent one is made with one new key (mode 0600, durable when this returns).
    pub fn load_or_create(disk: &dyn Disk, path: &Path, dice: &Dice) -> Result<Self, KeyError> {
        match disk.read(path) {
            Ok(text) => Self::parse(&text, dice).map_err(|problem| problem.in_file(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let ring = Self::new(BTreeMap::new(), dice.clone()).with_new_key();
                ring.save(disk, path)?;
                Ok(ring)
            }
            Err(source) => Err(KeyError::Io { file: path.display().to_string(), source }),
        }
    }

    /// The ring with one more key, which seals from now on. Save it before a store uses it.
    pub fn with_new_key(&self) -> Self {
        let mut secret = [0; SECRET_LENGTH];
        self.0.dice.fill(&mut secret);
        let id = self.0.secrets.last_key_value().map_or(1, |(id, _)| id.saturating_add(1));
        let mut secrets = self.0.secrets.clone();
        secrets.insert(id, secret);
        Self::new(secrets, self.0.dice.clone())
    }

    /// Replaces the key file.
    pub fn save(&self, disk: &dyn Disk, path: &Path) -> Result<(), KeyError> {
        let failed = |source| KeyError::Io { file: path.display().to_string(), source };
        let keys = self.0.secrets.iter().map(|(id, secret)| StoredKey { id: *id, secret: to_hex(secret) }).collect();
        let text = serde_json::to_vec_pretty(&KeyFile { version: FORMAT.1, keys }).map_err(|e| failed(e.into()))?;
        if let Some(parent) = path.parent() {
            disk.create_dir_all(parent).map_err(failed)?;
        }
        disk.replace(path, &text).map_err(failed)
    }

    fn parse(text: &[u8], dice: &Dice) -> Result<Self, Problem> {
        /// Read first: a newer file may differ in all else.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let malformed = |error: serde_json::Error| Problem::Malformed(error.to_string());
        let Version { version } = serde_json::from_slice(text).map_err(malformed)?;
        if version > FORMAT.1 {
            return Err(Problem::Newer(version));
        }
        let file: KeyFile = serde_json::from_slice(text).map_err(malformed)?;
        let mut secrets = BTreeMap::new();
        for key in file.keys {
            let secret = from_hex(&key.secret)
                .ok_or_else(|| Problem::Malformed(format!("key {} is not 64 hexadecimal digits", key.id)))?;
            if key.id == 0 || secrets.insert(key.id, secret).is_some() {
                return Err(Problem::Malformed(format!("key id {} is zero or there twice", key.id)));
            }
        }
        if secrets.is_empty() {
            // An emptied file must not turn encryption off.
            return Err(Problem::Malformed("it holds no key".to_owned()));
        }
        Ok(Self::new(secrets, dice.clone()))
    }

    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonces = self.0.nonces.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if nonces.counter == 0 {
            nonces.prefix = self.0.dice.next_u64();
        }
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&nonces.prefix.to_le_bytes());
        nonce[8..].copy_from_slice(&nonces.counter.to_le_bytes());
        nonces.counter = nonces.counter.wrapping_add(1);
        nonce
    }

    /// What the log stores for a payload at `path`.
    pub fn seal(&self, path: &str, payload: &Payload) -> Bytes {
        let room = HEADER_LENGTH + NONCE_LEN + 5 + payload.bytes.len() + AES_256_GCM.tag_len();
        let mut sealed = Vec::with_capacity(room);
        let mut content_start = HEADER_LENGTH;
        let cipher = self.0.ciphers.last_key_value();
        let nonce = self.nonce();
        match cipher {
            None => put_header(&mut sealed, TAG_PLAIN, 0),
            Some((id, _)) => {
                put_header(&mut sealed, TAG_AES_256_GCM, *id);
                sealed.extend_from_slice(&nonce);
                content_start += NONCE_LEN;
            }
        }
        put_varint(&mut sealed, payload.stamp.map_or(0, |stamp| u64::from(stamp) + 1));
        sealed.extend_from_slice(&payload.bytes);
        if let Some((_, cipher)) = cipher {
            let aad = associated(&sealed[..HEADER_LENGTH], path);
            // Fails only for contents beyond 64 GiB, which a transaction can't hold.
            let tag = cipher
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed[content_start..])
                .expect("a value below 64 GiB can be sealed");
            sealed.extend_from_slice(tag.as_ref());
        }
        Bytes::from(sealed)
    }

    /// The payload that was sealed for `path`.
    pub fn open(&self, path: &str, sealed: &Bytes) -> Result<Payload, OpenValueError> {
        let (header, rest) = sealed.split_at_checked(HEADER_LENGTH).ok_or(OpenValueError::Malformed)?;
        let (tag, id) = header.split_first().ok_or(OpenValueError::Malformed)?;
        let content = match *tag {
            TAG_PLAIN => sealed.slice(HEADER_LENGTH..),
            TAG_AES_256_GCM => {
                let id = u32::from_le_bytes(id.try_into().map_err(|_| OpenValueError::Malformed)?);
                let cipher = self.0.ciphers.get(&id).ok_or(OpenValueError::UnknownKey(id))?;
                let (nonce, content) = rest.split_at_checked(NONCE_LEN).ok_or(OpenValueError::Malformed)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenValueError::Malformed)?;
                let mut content = content.to_vec();
                let length = cipher
                    .open_in_place(nonce, associated(header, path), &mut content)
                    .map_err(|_| OpenValueError::Rejected)?
                    .len();
                content.truncate(length);
                Bytes::from(content)
            }
            other => return Err(OpenValueError::UnknownEncoding(other)),
        };
        let mut cursor = Cursor::new(&content);
        let stamp = cursor.varint().ok_or(OpenValueError::Malformed)?;
        let bytes = content.slice(cursor.position()..);
        let stamp = match stamp.checked_sub(1) {
            None => None,
            Some(stamp) if stamp <= bytes.len() as u64 => Some(stamp as u32),
            Some(_) => return Err(OpenValueError::Malformed),
        };
        Ok(Payload { bytes, stamp })
    }
}

fn put_header(sealed: &mut Vec<u8>, tag: u8, id: u32) {
    sealed.push(tag);
    sealed.extend_from_slice(&id.to_le_bytes());
}

fn associated(header: &[u8], path: &str) -> Aad<Vec<u8>> {
    Aad::from([header, path.as_bytes()].concat())
}

enum Problem {
    Malformed(String),
    Newer(u32),
}

impl Problem {
    fn in_file(self, path: &Path) -> KeyError {
        let file = path.display().to_string();
        match self {
            Self::Malformed(reason) => KeyError::Malformed { file, reason },
            Self::Newer(found) => KeyError::Newer { file, found, known: FORMAT.1 },
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; SECRET_LENGTH]> {
    let mut secret = [0; SECRET_LENGTH];
    if text.len() != 2 * SECRET_LENGTH {
        return None;
    }
    for (byte, digits) in secret.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(secret)
}

#[cfg(test)]
mod tests {
    use sampan_base::disk::MemoryDisk;

    use super::*;

    fn payload(text: &'static str, stamp: Option<u32>) -> Payload {
        Payload { bytes: Bytes::from_static(text.as_bytes()), stamp }
    }

    fn same(a: &Payload, b: &Payload) -> bool {
        a.bytes == b.bytes && a.stamp == b.stamp
    }

    #[test]
    fn sealed_values_open_at_their_path_only() {
        let ring = KeyRing::new(BTreeMap::new(), Dice::seeded(1)).with_new_key();
        let secret = payload("a secret value", Some(3));
        let sealed = ring.seal("/secrets/a", &secret);
        assert!(!sealed.windows(6).any(|window| window == b"secret"), "plain text in {sealed:?}");
        assert!(same(&ring.open("/secrets/a", &sealed).expect("opens"), &secret));
        assert_eq!(ring.open("/secrets/b", &sealed).err(), Some(OpenValueError::Rejected));
        for index in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[index] ^= 1;
            assert!(ring.open("/secrets/a", &Bytes::from(changed)).is_err(), "byte {index} is not covered");
        }
        assert_ne!(sealed, ring.seal("/secrets/a", &secret), "nonces repeat");
    }

    #[test]
    fn newest_key_seals_and_all_open() {
        let old = KeyRing::new(BTreeMap::new(), Dice::seeded(1)).with_new_key();
        let new = old.with_new_key();
        let value = payload("v", None);
        let (by_old, by_new) = (old.seal("/a", &value), new.seal("/a", &value));
        assert!(same(&new.open("/a", &by_old).expect("the old key stays"), &value));
        assert!(same(&new.open("/a", &by_new).expect("the new key"), &value));
        assert_eq!(old.open("/a", &by_new).err(), Some(OpenValueError::UnknownKey(2)));
        let plain = KeyRing::plain().seal("/a", &value);
        assert!(same(&new.open("/a", &plain).expect("plain values open beside sealed ones"), &value));
    }

    #[test]
    fn the_key_file_lasts_and_a_bad_one_is_refused() {
        let disk = MemoryDisk::default();
        let path = Path::new("/data/keys.json");
        let first = KeyRing::load_or_create(&disk, path, &Dice::seeded(5)).expect("created");
        let sealed = first.seal("/a", &payload("v", None));
        let second = KeyRing::load_or_create(&disk, path, &Dice::seeded(6)).expect("loaded");
        assert!(second.open("/a", &sealed).is_ok());
        for (content, newer) in [
            (&b"{\"version\":2,\"rings\":[]}"[..], true),
            (b"{\"version\":1,\"keys\":[]}", false),
            (b"{\"version\":1,\"keys\":[{\"id\":1,\"secret\":\"00\"}]}", false),
            (b"", false),
        ] {
            disk.replace(path, content).expect("replaced");
            let error = KeyRing::load_or_create(&disk, path, &Dice::seeded(7)).expect_err("refused");
            assert_eq!(matches!(error, KeyError::Newer { found: 2, .. }), newer, "{error}");
        }
    }
}
