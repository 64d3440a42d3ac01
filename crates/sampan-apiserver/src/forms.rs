//! What is made of stored objects beside their canonical bytes (protobuf, metadata only, another version of the kind;
//! what selectors look at), once per object revision and shared by everyone who asks, within a bound on its bytes.
//!
//! Tables are not kept: a row holds the object's age.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use sampan_api::Failure;
use sampan_store::{Key, Revision};

use crate::negotiate::{MetaVersion, Wire};

/// Which form. The canonical one never comes here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// The object in this `apiVersion`; `bare` without what JSON lists or protobuf lists leave out of their items.
    Object {
        wire: Wire,
        api_version: String,
        bare: bool,
    },
    Metadata {
        wire: Wire,
        version: MetaVersion,
        bare: bool,
    },
}

/// What is made of one object at one revision, each at most once while it is kept. `F` says which of several.
pub struct Shared<F, V> {
    limit: usize,
    kept: Mutex<Kept<F, V>>,
    made: AtomicU64,
}

type Id<F> = (Key, Revision, F);

struct Kept<F, V> {
    slots: HashMap<Id<F>, Arc<OnceLock<V>>>,
    /// Oldest first, with what each is charged.
    order: VecDeque<(Id<F>, usize)>,
    bytes: usize,
}

impl<F, V> Default for Kept<F, V> {
    fn default() -> Self {
        Self { slots: HashMap::new(), order: VecDeque::new(), bytes: 0 }
    }
}

/// What a slot costs beside its content.
const OVERHEAD: usize = 256;

/// The content of a slot, in bytes.
pub trait Weight {
    fn weight(&self) -> usize;
}

impl Weight for Result<Bytes, Failure> {
    fn weight(&self) -> usize {
        self.as_ref().map_or(0, Bytes::len)
    }
}

pub type Forms = Shared<Form, Result<Bytes, Failure>>;

impl<F: Clone + Eq + Hash, V: Clone + Weight> Shared<F, V> {
    pub fn new(limit: usize) -> Self {
        Self { limit, kept: Mutex::default(), made: AtomicU64::new(0) }
    }

    /// How many were made since the start.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Forgets everything: the kinds have changed.
    pub fn clear(&self) {
        *self.lock() = Kept::default();
    }

    fn lock(&self) -> MutexGuard<'_, Kept<F, V>> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// `make` runs at most once while the result is kept, however many ask at once.
    pub fn get(&self, key: &Key, revision: Revision, form: F, make: impl FnOnce() -> V) -> V {
        let id = (key.clone(), revision, form);
        let slot = self.lock().slots.entry(id.clone()).or_default().clone();
        let mut made = false;
        let value = slot
            .get_or_init(|| {
                made = true;
                self.made.fetch_add(1, Ordering::Relaxed);
                make()
            })
            .clone();
        if made {
            let size = OVERHEAD + value.weight();
            let mut kept = self.lock();
            kept.bytes += size;
            kept.order.push_back((id, size));
            while kept.bytes > self.limit
                && let Some((oldest, size)) = kept.order.pop_front()
            {
                kept.bytes -= size;
                kept.slots.remove(&oldest);
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form() -> Form {
        Form::Metadata { wire: Wire::Json, version: MetaVersion::V1, bare: false }
    }

    #[test]
    fn a_form_is_made_once_while_it_is_kept() {
        let forms = Forms::new(3 * OVERHEAD);
        let get = |name: &str, revision| {
            let made = forms.get(&Key::from(name), Revision(revision), form(), || Ok(Bytes::from(vec![1; 100])));
            assert_eq!(made.expect("made").len(), 100);
        };
        get("a", 1);
        get("a", 1);
        assert_eq!(forms.made(), 1);
        get("a", 2);
        assert_eq!(forms.made(), 2);
        // Two fit; the third pushes the oldest out.
        get("b", 1);
        get("a", 2);
        assert_eq!(forms.made(), 3);
        get("a", 1);
        assert_eq!(forms.made(), 4);
        assert!(forms.lock().bytes <= 3 * OVERHEAD);
    }

    #[test]
    fn many_who_ask_at_once_share_one_encoding() {
        let forms = Forms::new(1 << 20);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| forms.get(&Key::from("a"), Revision(1), form(), || Ok(Bytes::from_static(b"x"))));
            }
        });
        assert_eq!(forms.made(), 1);
    }
}
