//! The number of a shard in the user fragments of its viewers, so that whoever reads a check knows whose it is without asking.

/// The characters that a user fragment is made of (RFC 8839 section 5.4): six bits each.
pub(crate) const ICE_CHARS: &[u8; 64] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Characters of a tag: 18 bits, more shards than ports.
const TAG_CHARS: usize = 3;

/// Shards that can be told apart (count).
pub(crate) const SHARDS_MAX: usize = 1 << (6 * TAG_CHARS);

/// What the user fragments of a shard's viewers begin with.
pub(crate) fn tag(shard: usize) -> String {
    (0..TAG_CHARS)
        .rev()
        .map(|place| char::from(ICE_CHARS[(shard >> (6 * place)) % ICE_CHARS.len()]))
        .collect()
}

/// The shard that a user fragment names.
pub(crate) fn shard_of(ufrag: &str) -> Option<usize> {
    let tag = ufrag.as_bytes().get(..TAG_CHARS)?;
    tag.iter().try_fold(0, |shard, byte| {
        let value = ICE_CHARS.iter().position(|char| char == byte)?;
        Some(shard << 6 | value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_name_their_shard() {
        for shard in [0, 1, 63, 64, 4095, 65_535, SHARDS_MAX - 1] {
            let ufrag = format!("{}random", tag(shard));
            assert_eq!(shard_of(&ufrag), Some(shard), "{ufrag}");
        }
        for ufrag in ["", "AB", "A-Brandom", "äöü"] {
            assert_eq!(shard_of(ufrag), None, "{ufrag}");
        }
    }
}
