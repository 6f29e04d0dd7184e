//! A keyed permutation of 0..n without a table (pure): any place can be asked for, in constant time and memory.
//!
//! The numbers below the next power of two are split into two halves of bits, and each half in turn is xored with a hash
//! of the other: a Feistel network, which is a permutation whatever the hash is. Results of n and above are fed in again
//! until one falls below n (cycle walking): fewer than two passes on average, since more than half of them do.

/// Rounds of the network. Four make it hard to tell from a random one over large domains; the halves of small ones have
/// few bits, so there are some more.
const ROUNDS: usize = 6;

/// One permutation of `0..len`.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    len: u64,
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// Any `len` from 1 to 2^62.
    pub(crate) fn new(len: u64, key: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let low_bits = bits.div_ceil(2);
        let mut state = key;
        let keys = std::array::from_fn(|_| {
            state = state.wrapping_add(GOLDEN);
            fold(state, MULTIPLIER)
        });
        Self { len, low_bits, low_mask: mask(low_bits), high_mask: mask(bits - low_bits), keys }
    }

    /// Where `place` goes. `place` must be below `len`.
    pub(crate) fn apply(&self, place: u64) -> u64 {
        debug_assert!(place < self.len, "{place} of {}", self.len);
        let mut number = place;
        // It ends: the walk stays on the cycle of `place`, which is itself below `len`.
        loop {
            number = self.pass(number);
            if number < self.len {
                return number;
            }
        }
    }

    fn pass(&self, number: u64) -> u64 {
        let mut low = number & self.low_mask;
        let mut high = number >> self.low_bits;
        for pair in self.keys.chunks_exact(2) {
            low ^= fold(high ^ pair[0], MULTIPLIER) & self.low_mask;
            high ^= fold(low ^ pair[1], MULTIPLIER) & self.high_mask;
        }
        high << self.low_bits | low
    }
}

/// 2^64 divided by the golden ratio: steps by it are spread evenly.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A large odd prime (PRIME64_2 of the XXH64 specification): its product carries every bit of the other factor upwards.
const MULTIPLIER: u64 = 0xC2B2_AE3D_27D4_EB4F;

/// Both halves of a product, xored: every bit of the result depends on every bit of `a`.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ GOLDEN) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are what is wanted")]
    let (low, high) = (product as u64, (product >> 64) as u64);
    low ^ high
}

fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_place_is_taken_once(len in 1u64..3000, key in any::<u64>()) {
            let permutation = Permutation::new(len, key);
            let mut taken: Vec<u64> = (0..len).map(|place| permutation.apply(place)).collect();
            taken.sort_unstable();
            prop_assert!(taken.into_iter().eq(0..len));
        }
    }

    #[test]
    fn large_domains_stay_inside() {
        for len in [1 << 40, (1 << 40) + 1, (1 << 62) - 1, 1 << 62] {
            let permutation = Permutation::new(len, 7);
            assert!((0..1000).all(|place| permutation.apply(len - 1 - place) < len));
        }
    }

    /// Chi-square over the first place of small domains and many keys: every value about equally often.
    #[test]
    fn small_domains_are_even() {
        for len in [2u64, 3, 5, 8, 13, 64] {
            for place in [0, len - 1] {
                let draws = 1000 * len;
                let mut counts = vec![0f64; usize::try_from(len).unwrap()];
                for key in 0..draws {
                    let value = Permutation::new(len, key.wrapping_mul(GOLDEN)).apply(place);
                    counts[usize::try_from(value).unwrap()] += 1.0;
                }
                let chi: f64 = counts.iter().map(|count| (count - 1000.0).powi(2) / 1000.0).sum();
                let freedom = f64::from(u32::try_from(len - 1).unwrap());
                assert!(chi < freedom + 5.0 * (2.0 * freedom).sqrt(), "{len} {place}: {chi}");
            }
        }
    }
}
