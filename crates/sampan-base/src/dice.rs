//! Randomness: UIDs, name suffixes, keys, jitter. Seeded, the same calls give the same answers.
//!
//! What needs secrecy (keys, tokens) uses [`Dice::fill`], which on system dice is the operating system's generator.

use std::sync::{Arc, Mutex};

/// A cheap handle on a source of randomness. Clone it freely; clones share one stream.
#[derive(Clone)]
pub struct Dice(Source);

#[derive(Clone)]
enum Source {
    System,
    Seeded(Arc<Mutex<u64>>),
}

/// The characters of generated names, upstream's `k8s.io/apimachinery/pkg/util/rand`: no vowels, nothing that looks
/// like another character.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

impl Dice {
    /// The operating system's generator.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A reproducible stream. Not for secrets outside tests.
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Mutex::new(seed))))
    }

    /// Fills `buffer` with random bytes.
    pub fn fill(&self, buffer: &mut [u8]) {
        match &self.0 {
            Source::System => {
                // The operating system's generator does not fail once the machine has booted; going on without
                // randomness would hand out guessable keys.
                aws_lc_rs::rand::fill(buffer).expect("the operating system's random generator works");
            }
            Source::Seeded(state) => {
                let mut state = state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                for chunk in buffer.chunks_mut(8) {
                    let word = splitmix64(&mut state).to_le_bytes();
                    chunk.copy_from_slice(&word[..chunk.len()]);
                }
            }
        }
    }

    pub fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number in `0..bound`; 0 when `bound` is 0.
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        // The multiply-shift reduction: bias is below 2^-64 times the bound, far under anything a caller can see.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A version 4 UUID, the form of `metadata.uid`.
    pub fn uid(&self) -> String {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    /// `length` characters of the alphabet of generated names.
    pub fn suffix(&self, length: usize) -> String {
        (0..length).map(|_| SUFFIX_ALPHABET[self.below(SUFFIX_ALPHABET.len() as u64) as usize] as char).collect()
    }
}

/// Steele, Lea and Flood's SplitMix64: enough for reproducible choices, not for secrets.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_stream() {
        let (a, b) = (Dice::seeded(7), Dice::seeded(7));
        assert_eq!(a.uid(), b.uid());
        assert_eq!(a.suffix(5), b.suffix(5));
        assert_ne!(a.suffix(5), Dice::seeded(8).suffix(5));
    }

    #[test]
    fn below_stays_below() {
        let dice = Dice::system();
        assert!((0..1000).all(|_| dice.below(3) < 3));
        assert_eq!(dice.below(0), 0);
    }
}
