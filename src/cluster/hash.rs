//! A hash that every version of rsnet computes alike: what hosts derive from a name, they derive without asking each other.

/// FNV-1a of the parts, each with its end, mixed so that near texts are far apart.
pub fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::hash;

    #[test]
    fn it_stays_what_it_is() {
        assert_eq!(hash(&["alpha", "7"]), hash(&["alpha", "7"]));
        assert_ne!(hash(&["alpha", "7"]), hash(&["alpha7"]));
        assert_eq!(hash(&["alpha", "4097"]), 0x750e_fa15_68ec_6539);
    }
}
