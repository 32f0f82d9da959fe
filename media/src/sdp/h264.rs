//! Which offered H.264 payload type comes nearest to a stream (RFC 6184 section 8.1).

/// The profiles that offers name, as classes: what a decoder of the class is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Profile {
    ConstrainedBaseline,
    Baseline,
    Main,
    ConstrainedHigh,
    High,
    High444,
    Other,
}

impl Profile {
    /// From profile_idc and the constraint flags (RFC 6184 table 5).
    pub(super) const fn of(profile_level_id: [u8; 3]) -> Self {
        let [idc, flags, _] = profile_level_id;
        match (idc, flags) {
            (0x42, flags) if flags & 0x40 != 0 => Self::ConstrainedBaseline,
            (0x4d, flags) if flags & 0x80 != 0 => Self::ConstrainedBaseline,
            (0x58, flags) if flags & 0xc0 == 0xc0 => Self::ConstrainedBaseline,
            (0x42, _) => Self::Baseline,
            (0x4d, _) => Self::Main,
            (0x64, flags) if flags & 0x0c == 0x0c => Self::ConstrainedHigh,
            (0x64, _) => Self::High,
            (0xf4, _) => Self::High444,
            _ => Self::Other,
        }
    }

    /// How well a payload type of profile `offered` suits a stream of this profile: lower is better.
    ///
    /// The same profile first, then the least that contains it, then what comes nearest below: decoders take more than
    /// they announce (Chromium decodes High on 42001f's payload type), so a stream is never refused for its profile.
    pub(super) fn distance(self, offered: Self) -> usize {
        use Profile::{Baseline, ConstrainedBaseline, ConstrainedHigh, High, High444, Main, Other};
        let order = match self {
            Self::ConstrainedBaseline => [
                ConstrainedBaseline,
                Baseline,
                Main,
                ConstrainedHigh,
                High,
                High444,
                Other,
            ],
            Self::Baseline => [
                Baseline,
                ConstrainedBaseline,
                Main,
                ConstrainedHigh,
                High,
                High444,
                Other,
            ],
            Self::Main => [
                Main,
                High,
                ConstrainedHigh,
                ConstrainedBaseline,
                Baseline,
                High444,
                Other,
            ],
            Self::ConstrainedHigh => [
                ConstrainedHigh,
                High,
                Main,
                ConstrainedBaseline,
                Baseline,
                High444,
                Other,
            ],
            Self::High | Self::High444 | Self::Other => [
                High,
                ConstrainedHigh,
                Main,
                ConstrainedBaseline,
                Baseline,
                High444,
                Other,
            ],
        };
        if self == offered {
            return 0;
        }
        order
            .iter()
            .position(|profile| *profile == offered)
            .map_or(order.len(), |position| position.saturating_add(1))
    }
}

/// What an offer's `a=fmtp` says of an H.264 payload type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameters {
    /// STAP-A and FU-A may be sent: `packetization-mode=1`.
    pub(super) non_interleaved: bool,
    /// `profile-level-id`; RFC 6184 section 8.1 makes Baseline level 1 of a missing one.
    pub(super) profile_level_id: [u8; 3],
}

impl Parameters {
    /// From the parameters of a format, `key=value` separated by semicolons. Unknown and malformed ones are passed over.
    pub(super) fn parse(fmtp: &str) -> Self {
        let mut parameters = Self {
            non_interleaved: false,
            profile_level_id: [0x42, 0x00, 0x0a],
        };
        for (key, value) in super::offer::parameters(fmtp) {
            if key.eq_ignore_ascii_case("packetization-mode") {
                parameters.non_interleaved = value == "1";
            } else if key.eq_ignore_ascii_case("profile-level-id")
                && let Some(id) = profile_level_id(value)
            {
                parameters.profile_level_id = id;
            }
        }
        parameters
    }
}

fn profile_level_id(hex: &str) -> Option<[u8; 3]> {
    if hex.len() != 6 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let [_, a, b, c] = u32::from_str_radix(hex, 16).ok()?.to_be_bytes();
    Some([a, b, c])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_told_apart_by_idc_and_flags() {
        for (hex, profile) in [
            ("42e01f", Profile::ConstrainedBaseline),
            ("42c028", Profile::ConstrainedBaseline),
            ("42001f", Profile::Baseline),
            ("4d001f", Profile::Main),
            ("4d401f", Profile::Main),
            ("4d801f", Profile::ConstrainedBaseline),
            ("58e01f", Profile::ConstrainedBaseline),
            ("64001f", Profile::High),
            ("640c1f", Profile::ConstrainedHigh),
            ("f4001f", Profile::High444),
            ("6e001f", Profile::Other),
        ] {
            assert_eq!(
                profile_level_id(hex).map(Profile::of),
                Some(profile),
                "{hex}"
            );
        }
    }

    #[test]
    fn parameters_are_read_in_any_order_and_spacing() {
        let wanted = Parameters {
            non_interleaved: true,
            profile_level_id: [0x42, 0xe0, 0x1f],
        };
        for fmtp in [
            "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
            "profile-level-id=42E01F; packetization-mode=1 ;x",
            ";;packetization-mode=1;;profile-level-id=42e01f;profile-level-id=zz",
        ] {
            assert_eq!(Parameters::parse(fmtp), wanted, "{fmtp}");
        }
        assert!(!Parameters::parse("packetization-mode=0").non_interleaved);
        assert!(!Parameters::parse("").non_interleaved);
    }

    #[test]
    fn every_profile_has_a_place_for_every_other() {
        use Profile::{Baseline, ConstrainedBaseline, ConstrainedHigh, High, High444, Main, Other};
        let all = [
            ConstrainedBaseline,
            Baseline,
            Main,
            ConstrainedHigh,
            High,
            High444,
            Other,
        ];
        for stream in all {
            let mut seen: Vec<_> = all
                .iter()
                .map(|offered| stream.distance(*offered))
                .collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), all.len(), "{stream:?}");
            assert_eq!(stream.distance(stream), 0);
        }
        // Chromium offers Baseline, Constrained Baseline, Main and High 4:4:4: a High stream goes on Main's.
        let chromium = [Baseline, ConstrainedBaseline, Main, High444];
        let best = chromium
            .into_iter()
            .min_by_key(|offered| High.distance(*offered));
        assert_eq!(best, Some(Main));
    }
}
