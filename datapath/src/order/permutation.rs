//! A keyed permutation of 0..n without a table (pure): any place can be asked for, in constant time and memory.
//!
//! The numbers below the next power of two are split into two halves of bits, and each half in turn is xored with a hash
//! of the other: a Feistel network, which is a permutation whatever the hash is. Results of n and above are fed in again
//! until one falls below n (cycle walking): fewer than two passes on average, since more than half of them do.

/// Rounds over domains of [`LARGE_BITS`] and more: four make it hard to tell from a random one, two are margin.
const ROUNDS: usize = 6;

/// Rounds over smaller domains. Their halves have few bits to hash, and walks make the unevenness of a few rounds visible:
/// over 3 or 5 places, 6 rounds favour a place by tenths, 16 by hundredths, and at 24 a chi-square test sees none.
const SMALL_ROUNDS: usize = 24;

/// Bits from which on a domain is large.
const LARGE_BITS: u32 = 10;

/// One permutation of `0..len`.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    len: u64,
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
    rounds: usize,
    keys: [u64; SMALL_ROUNDS],
}

impl Permutation {
    /// Any `len` from 1 to 2^62 (each half then has at most 31 bits).
    pub(crate) fn new(len: u64, key: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let low_bits = bits.div_ceil(2);
        let rounds = if bits < LARGE_BITS { SMALL_ROUNDS } else { ROUNDS };
        let mut state = key;
        let mut keys = [0; SMALL_ROUNDS];
        for round_key in &mut keys[..rounds] {
            state = state.wrapping_add(GOLDEN);
            *round_key = fold(state);
        }
        Self { len, low_bits, low_mask: mask(low_bits), high_mask: mask(bits - low_bits), rounds, keys }
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
        for pair in self.keys[..self.rounds].chunks_exact(2) {
            low ^= fold(high ^ pair[0]) >> 32 & self.low_mask;
            high ^= fold(low ^ pair[1]) >> 32 & self.high_mask;
        }
        high << self.low_bits | low
    }
}

/// 2^64 divided by the golden ratio: steps by it are spread evenly.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A large odd prime (PRIME64_2 of the XXH64 specification): its product carries every bit of the other factor upwards.
const MULTIPLIER: u64 = 0xC2B2_AE3D_27D4_EB4F;

/// Both halves of a product, xored: the middle bits depend on all bits of `number`.
fn fold(number: u64) -> u64 {
    let product = u128::from(number ^ GOLDEN) * u128::from(MULTIPLIER);
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
    use xxhash_rust::xxh3::xxh3_64;

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
        for len in [2u64, 3, 5, 8, 13, 64, 1500] {
            for place in [0, len - 1] {
                let draws = 1000 * len;
                let mut counts = vec![0f64; usize::try_from(len).unwrap()];
                for key in 0..draws {
                    let value = Permutation::new(len, xxh3_64(&key.to_le_bytes())).apply(place);
                    counts[usize::try_from(value).unwrap()] += 1.0;
                }
                let chi: f64 = counts.iter().map(|count| (count - 1000.0).powi(2) / 1000.0).sum();
                let freedom = f64::from(u32::try_from(len - 1).unwrap());
                assert!(chi < freedom + 6.0 * (2.0 * freedom).sqrt(), "{len} {place}: {chi}");
            }
        }
    }
}
