//! The random numbers of guests: they follow from a seed, so that a guest computes the same on every node.

/// Most random bytes of one request.
const RANDOM_BYTES_MAX: u64 = 64 * 1024;

/// The guest asked for more random bytes than it gets at once.
#[derive(Debug, thiserror::Error)]
#[error("it asked for more than {RANDOM_BYTES_MAX} random bytes at once")]
pub(super) struct TooManyBytes;

/// A generator: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn bytes(&mut self, len: u64) -> Result<Vec<u8>, TooManyBytes> {
        if len > RANDOM_BYTES_MAX {
            return Err(TooManyBytes);
        }
        let len = usize::try_from(len).map_err(|_| TooManyBytes)?;
        let mut bytes: Vec<u8> = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        Ok(bytes)
    }
}
