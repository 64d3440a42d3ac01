//! Certificates and keys: certificate authorities, what they issue, and the key that signs service-account tokens.
//!
//! All keys are ECDSA P-256 in PKCS#8, made by the operating system's generator (never by seeded dice: a reproducible key
//! is no secret). Files are PEM, written with mode 0600 through [`sampan_base::disk`].

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sampan_base::disk::Disk;
use sampan_base::{Clock, Dice};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long a certificate was valid before it was made: covers clocks of other machines that lag behind.
const BACKDATE: Duration = Duration::from_secs(3600);
/// Upstream's life of a cluster authority (kubeadm).
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Upstream's life of what kubeadm issues.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    #[error("{what} is not a usable PEM file: {why}")]
    Pem { what: String, why: String },
    #[error("the certificate cannot be made: {0}")]
    Issue(#[from] rcgen::Error),
    #[error("the certificate cannot be read: {0}")]
    Parse(String),
    #[error("the key cannot be used: {0}")]
    Key(String),
    /// The library under this module writes each kind of name at most once.
    #[error("a certificate for {0} cannot name more than one organisation")]
    Organisations(String),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Whom a certificate is for: the common name is the user, the organisations are the groups. Any number is read; at most one
/// is issued.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub cn: String,
    pub orgs: Vec<String>,
}

impl Subject {
    pub fn new(cn: &str, orgs: &[&str]) -> Self {
        Self { cn: cn.into(), orgs: orgs.iter().map(|org| (*org).to_owned()).collect() }
    }
}

/// What a certificate may be used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Usage {
    Server {
        dns: Vec<String>,
        ips: Vec<IpAddr>,
    },
    Client,
    /// Both ends of a connection between equals.
    Peer {
        dns: Vec<String>,
        ips: Vec<IpAddr>,
    },
}

/// A certificate chain and its private key, as PEM text.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The leaf first.
    pub certificate_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

impl Identity {
    /// When the leaf stops being valid.
    pub fn not_after(&self) -> Result<Timestamp, Error> {
        Ok(describe(&leaf(&self.certificate_pem)?)?.not_after)
    }

    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        certificates(&self.certificate_pem)
    }

    pub fn key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| Error::Pem { what: "the private key".into(), why: error.to_string() })
    }

    /// Reads `NAME.crt` and `NAME.key`; `None` when the certificate is not there.
    pub fn load(disk: &dyn Disk, dir: &Path, name: &str) -> Result<Option<Self>, Error> {
        let Some(certificate_pem) = read(disk, &dir.join(format!("{name}.crt")))? else { return Ok(None) };
        let key_path = dir.join(format!("{name}.key"));
        let key_pem = read(disk, &key_path)?.ok_or_else(|| missing(&key_path))?;
        let identity = Self { certificate_pem, key_pem };
        identity.key()?;
        leaf(&identity.certificate_pem)?;
        Ok(Some(identity))
    }

    /// Writes `NAME.key` and `NAME.crt`, in this order: a crash in between leaves a key without a certificate, which the
    /// next start replaces.
    pub fn store(&self, disk: &dyn Disk, dir: &Path, name: &str) -> Result<(), Error> {
        write(disk, &dir.join(format!("{name}.key")), &self.key_pem)?;
        write(disk, &dir.join(format!("{name}.crt")), &self.certificate_pem)
    }
}

/// A certificate authority.
pub struct Ca {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// A new self-signed authority.
    pub fn generate(cn: &str, lifetime: Duration, clock: &Clock, dice: &Dice) -> Result<(Self, Identity), Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(&Subject::new(cn, &[]), lifetime, clock, dice)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key)?.pem();
        let identity = Identity { certificate_pem, key_pem: key.serialize_pem() };
        Ok((Self::from_identity(&identity)?, identity))
    }

    pub fn from_identity(identity: &Identity) -> Result<Self, Error> {
        let certificate = leaf(&identity.certificate_pem)?;
        let key = KeyPair::from_pem(&identity.key_pem)?;
        let parsed = describe(&certificate)?;
        if parsed.public_key != key.subject_public_key_info() {
            return Err(Error::Key("the authority's key does not belong to its certificate".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, certificate_pem: identity.certificate_pem.clone(), issuer })
    }

    /// Reads `NAME.crt` and `NAME.key` from `dir`, or makes them.
    pub fn load_or_create(
        disk: &dyn Disk,
        dir: &Path,
        name: &str,
        cn: &str,
        clock: &Clock,
        dice: &Dice,
    ) -> Result<Self, Error> {
        if let Some(identity) = Identity::load(disk, dir, name)? {
            return Self::from_identity(&identity);
        }
        let (ca, identity) = Self::generate(cn, CA_LIFETIME, clock, dice)?;
        make_dir(disk, dir)?;
        identity.store(disk, dir, name)?;
        Ok(ca)
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A new key and a certificate for it.
    pub fn issue(
        &self,
        subject: &Subject,
        usage: &Usage,
        lifetime: Duration,
        clock: &Clock,
        dice: &Dice,
    ) -> Result<Identity, Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(subject, lifetime, clock, dice)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let (purposes, names): (&[ExtendedKeyUsagePurpose], _) = match usage {
            Usage::Server { dns, ips } => (&[ExtendedKeyUsagePurpose::ServerAuth], Some((dns, ips))),
            Usage::Client => (&[ExtendedKeyUsagePurpose::ClientAuth], None),
            Usage::Peer { dns, ips } => {
                (&[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth], Some((dns, ips)))
            }
        };
        params.extended_key_usages = purposes.to_vec();
        if let Some((dns, ips)) = names {
            for name in dns {
                params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
            }
            params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Reads `NAME.crt` and `NAME.key` from `dir`. Issues and writes them when they are absent, are not this authority's, name
    /// another subject, lack a name of `usage`, or have less than a third of their life left.
    pub fn load_or_issue(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        name: &str,
        subject: &Subject,
        usage: &Usage,
        lifetime: Duration,
        clock: &Clock,
        dice: &Dice,
    ) -> Result<Identity, Error> {
        if let Some(identity) = Identity::load(disk, dir, name)? {
            let found = describe(&leaf(&identity.certificate_pem)?)?;
            let remaining = found.not_after.duration_since(clock.now());
            let fresh = remaining.as_secs() >= i64::try_from(lifetime.as_secs() / 3).unwrap_or(i64::MAX);
            if fresh && found.subject == *subject && found.covers(usage) && self.issued(&identity) {
                return Ok(identity);
            }
        }
        let identity = self.issue(subject, usage, lifetime, clock, dice)?;
        make_dir(disk, dir)?;
        identity.store(disk, dir, name)?;
        Ok(identity)
    }

    /// Whether this authority signed the leaf.
    fn issued(&self, identity: &Identity) -> bool {
        let Ok(leaf) = leaf(&identity.certificate_pem) else { return false };
        let (Ok((_, leaf)), Ok((_, own))) =
            (X509Certificate::from_der(&leaf), X509Certificate::from_der(&self.certificate))
        else {
            return false;
        };
        leaf.verify_signature(Some(own.public_key())).is_ok()
    }
}

fn params(subject: &Subject, lifetime: Duration, clock: &Clock, dice: &Dice) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    match subject.orgs.as_slice() {
        [] => {}
        [org] => name.push(DnType::OrganizationName, org.as_str()),
        _ => return Err(Error::Organisations(subject.cn.clone())),
    }
    name.push(DnType::CommonName, subject.cn.as_str());
    params.distinguished_name = name;
    let mut serial = [0; 16];
    dice.fill(&mut serial);
    // RFC 5280, 4.1.2.2: positive and at most 20 octets.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let now = Duration::from_secs(u64::try_from(clock.now().as_second()).unwrap_or_default());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + (now + lifetime);
    Ok(params)
}

/// What a certificate says of itself. Nothing here is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub subject: Subject,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
    /// DER of the subject public key info.
    pub public_key: Vec<u8>,
}

impl Description {
    fn covers(&self, usage: &Usage) -> bool {
        match usage {
            Usage::Client => true,
            Usage::Server { dns, ips } | Usage::Peer { dns, ips } => {
                dns.iter().all(|name| self.dns.contains(name)) && ips.iter().all(|ip| self.ips.contains(ip))
            }
        }
    }
}

/// Reads the fields of a certificate this crate uses.
pub fn describe(certificate: &CertificateDer<'_>) -> Result<Description, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| Error::Parse(error.to_string()))?;
    let texts = |attributes: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| {
        attributes.filter_map(|one| one.as_str().ok().map(str::to_owned)).collect::<Vec<_>>()
    };
    let subject = Subject {
        cn: texts(&mut parsed.subject().iter_common_name()).into_iter().next().unwrap_or_default(),
        orgs: texts(&mut parsed.subject().iter_organization()),
    };
    let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|error| Error::Parse(error.to_string()));
    let (mut dns, mut ips) = (Vec::new(), Vec::new());
    if let Ok(Some(names)) = parsed.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                x509_parser::extensions::GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                x509_parser::extensions::GeneralName::IPAddress(bytes) => {
                    if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                        ips.push(v4.into());
                    } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                        ips.push(v6.into());
                    }
                }
                _ => {}
            }
        }
    }
    Ok(Description {
        subject,
        not_before: time(parsed.validity().not_before.timestamp())?,
        not_after: time(parsed.validity().not_after.timestamp())?,
        dns,
        ips,
        public_key: parsed.public_key().raw.to_vec(),
    })
}

/// All certificates of a PEM text; an error when there is none.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::Pem { what: "the certificate".into(), why: error.to_string() })?;
    if found.is_empty() {
        return Err(Error::Pem { what: "the certificate".into(), why: "it holds no certificate".into() });
    }
    Ok(found)
}

fn leaf(pem: &str) -> Result<CertificateDer<'static>, Error> {
    certificates(pem).map(|mut all| all.swap_remove(0))
}

/// The key pair that signs service-account tokens (ES256).
pub struct TokenKey {
    pair: EcdsaKeyPair,
    /// DER of the subject public key info.
    public_key: Vec<u8>,
}

impl TokenKey {
    pub fn generate() -> Result<(Self, String), Error> {
        let pem = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?.serialize_pem();
        Ok((Self::from_pem(&pem)?, pem))
    }

    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(pem)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der())
            .map_err(|error| Error::Key(error.to_string()))?;
        Ok(Self { pair, public_key: key.subject_public_key_info() })
    }

    /// Reads `NAME.key` from `dir`, or makes it.
    pub fn load_or_create(disk: &dyn Disk, dir: &Path, name: &str) -> Result<Self, Error> {
        let path = dir.join(format!("{name}.key"));
        if let Some(pem) = read(disk, &path)? {
            return Self::from_pem(&pem);
        }
        let (key, pem) = Self::generate()?;
        make_dir(disk, dir)?;
        write(disk, &path, &pem)?;
        Ok(key)
    }

    /// DER of the subject public key info.
    pub fn public_key_der(&self) -> &[u8] {
        &self.public_key
    }

    /// The uncompressed point: 0x04, 32 bytes x, 32 bytes y.
    pub fn public_point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// 64 bytes: r and s, as JWS wants them.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature = self.pair.sign(&SystemRandom::new(), message).map_err(|error| Error::Key(error.to_string()))?;
        Ok(signature.as_ref().to_vec())
    }
}

/// One cluster, one user and one context, all called `name`, with the certificates inline.
pub fn kubeconfig(name: &str, server: &str, ca_pem: &str, identity: &Identity) -> String {
    // A JSON string is a YAML string.
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let (name, server) = (quote(name), quote(server));
    let [ca, certificate, key] =
        [ca_pem, &identity.certificate_pem, &identity.key_pem].map(|text| BASE64.encode(text.as_bytes()));
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {name}\n  user:\n    client-certificate-data: {certificate}\n    \
         client-key-data: {key}\ncontexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\n\
         current-context: {name}\n"
    )
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Option<String>, Error> {
    match disk.read(path) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Error::Pem { what: path.display().to_string(), why: "it is not text".into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.display().to_string(), source }),
    }
}

fn missing(path: &Path) -> Error {
    Error::File { path: path.display().to_string(), source: io::ErrorKind::NotFound.into() }
}

fn write(disk: &dyn Disk, path: &Path, text: &str) -> Result<(), Error> {
    disk.replace(path, text.as_bytes()).map_err(|source| Error::File { path: path.display().to_string(), source })
}

fn make_dir(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    disk.create_dir_all(dir).map_err(|source| Error::File { path: dir.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use sampan_base::disk::MemoryDisk;

    use super::*;

    fn tools() -> (Clock, Dice) {
        (Clock::system(), Dice::system())
    }

    #[test]
    fn what_is_issued_says_what_was_asked() {
        let (clock, dice) = tools();
        let (ca, _) = Ca::generate("kubernetes", CA_LIFETIME, &clock, &dice).expect("an authority");
        let subject = Subject::new("system:node:n1", &["system:nodes"]);
        let usage = Usage::Peer { dns: vec!["n1".into()], ips: vec![[10, 0, 0, 1].into()] };
        let identity = ca.issue(&subject, &usage, Duration::from_secs(600), &clock, &dice).expect("a certificate");
        let found = describe(&leaf(&identity.certificate_pem).expect("PEM")).expect("X.509");
        assert_eq!(found.subject, subject);
        assert_eq!((found.dns.as_slice(), found.ips.as_slice()), (&["n1".to_owned()][..], &[[10, 0, 0, 1].into()][..]));
        let left = identity.not_after().expect("a date").duration_since(clock.now()).as_secs();
        assert!((590..=600).contains(&left), "{left}");
        assert!(ca.issued(&identity));
        let (other, _) = Ca::generate("kubernetes", CA_LIFETIME, &clock, &dice).expect("an authority");
        assert!(!other.issued(&identity));
    }

    #[test]
    fn files_are_kept_and_renewed_when_they_no_longer_fit() {
        let (clock, dice) = tools();
        let disk = MemoryDisk::default();
        let dir = Path::new("/pki");
        let ca = Ca::load_or_create(&disk, dir, "ca", "kubernetes", &clock, &dice).expect("made");
        let again = Ca::load_or_create(&disk, dir, "ca", "kubernetes", &clock, &dice).expect("read");
        assert_eq!(ca.certificate(), again.certificate());
        let subject = Subject::new("kube-apiserver", &[]);
        let names = |name: &str| Usage::Server { dns: vec![name.into()], ips: vec![] };
        let issue = |usage: &Usage| {
            again
                .load_or_issue(&disk, dir, "apiserver", &subject, usage, LEAF_LIFETIME, &clock, &dice)
                .expect("an identity")
        };
        let first = issue(&names("a"));
        assert_eq!(issue(&names("a")), first);
        assert_ne!(issue(&names("b")), first, "a name was missing");
        let key = TokenKey::load_or_create(&disk, dir, "sa").expect("made");
        let same = TokenKey::load_or_create(&disk, dir, "sa").expect("read");
        assert_eq!(key.public_key_der(), same.public_key_der());
        assert_eq!(key.sign(b"x").expect("signed").len(), 64);
    }

    #[test]
    fn a_second_organisation_is_refused_and_not_dropped() {
        let (clock, dice) = tools();
        let (ca, _) = Ca::generate("a", CA_LIFETIME, &clock, &dice).expect("an authority");
        let result = ca.issue(&Subject::new("u", &["a", "b"]), &Usage::Client, LEAF_LIFETIME, &clock, &dice);
        assert!(matches!(result, Err(Error::Organisations(_))));
    }

    #[test]
    fn a_foreign_key_is_refused() {
        let (clock, dice) = tools();
        let (_, one) = Ca::generate("a", CA_LIFETIME, &clock, &dice).expect("an authority");
        let (_, two) = Ca::generate("a", CA_LIFETIME, &clock, &dice).expect("an authority");
        let mixed = Identity { certificate_pem: one.certificate_pem, key_pem: two.key_pem };
        assert!(matches!(Ca::from_identity(&mixed), Err(Error::Key(_))));
    }
}
