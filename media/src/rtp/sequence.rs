//! 16-bit sequence numbers, which wrap on the wire, as `u64` that don't.

/// The `u64` nearest to `reference` whose low 16 bits are `wire`. Of two equally near, the higher; never negative.
pub fn extend_u16(reference: u64, wire: u16) -> u64 {
    const SPAN: u64 = 1 << 16;
    let ahead = u64::from(wire).wrapping_sub(reference) & (SPAN - 1);
    let behind = SPAN - ahead;
    if ahead > SPAN / 2 && reference >= behind {
        reference - behind
    } else {
        reference.wrapping_add(ahead)
    }
}

/// Extends the 16-bit numbers of one sequence as they arrive, reordered or not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwrapper {
    newest: Option<u64>,
}

impl Unwrapper {
    /// `wire` as a number that doesn't wrap. The first comes out as it is plus 65,536, so that what was sent before it, but
    /// arrives later, is lower.
    pub fn unwrap(&mut self, wire: u16) -> u64 {
        let number = match self.newest {
            None => u64::from(wire) + 0x1_0000,
            Some(newest) => extend_u16(newest, wire),
        };
        self.newest = self.newest.max(Some(number));
        number
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sixteen_bits_at_every_edge() {
        const WRAP: u64 = 1 << 16;
        for (reference, wire, expected) in [
            (0, 0, 0),
            (0, 1, 1),
            (1, 0, 0),
            (0, 32_767, 32_767),
            (0, 32_768, 32_768),
            (0, 65_535, 65_535), // below zero there is nothing
            (32_767, 65_535, 65_535),
            (32_768, 0, WRAP),
            (32_769, 0, WRAP),
            (32_767, 0, 0),
            (65_535, 0, WRAP),
            (WRAP, 65_535, 65_535),
            (WRAP, 32_768, WRAP + 32_768),
            (WRAP, 32_769, 32_769),
            (WRAP + 1, 65_535, 65_535),
            (5 * WRAP + 65_535, 0, 6 * WRAP),
            (6 * WRAP, 65_535, 5 * WRAP + 65_535),
        ] {
            assert_eq!(
                extend_u16(reference, wire),
                expected,
                "{wire} near {reference}"
            );
        }
    }

    #[test]
    fn a_sequence_is_followed_over_wraps_and_reordering() {
        let mut unwrapper = Unwrapper::default();
        let seen = [65_534, 0, 65_535, 65_533, 2, 1].map(|wire| unwrapper.unwrap(wire));
        assert_eq!(seen, [131_070, 131_072, 131_071, 131_069, 131_074, 131_073]);
        // Late ones don't pull the reference back: 32,768 after 2 is still ahead of it.
        assert_eq!(unwrapper.unwrap(32_770), 131_072 + 32_770);
    }

    proptest! {
        #[test]
        fn what_is_near_comes_back(number in 0x1_0000_u64..u64::MAX / 2, off in -32_767_i64..=32_768) {
            let reference = number.saturating_add_signed(-off);
            let wire = u16::try_from(number & 0xffff).expect("masked");
            prop_assert_eq!(extend_u16(reference, wire), number);
        }
    }
}
