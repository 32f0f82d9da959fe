//! The time at which a picture was sent, inside the picture: user_data_unregistered SEI (ITU-T H.264 section D.1.7).
//!
//! Publishers that measure write it, viewers that measure find it; everything in between passes it on like any other NAL
//! unit, so that latency can be told without trusting a single header on the way.

/// Marks the message: these 16 bytes, then the Unix time in µs, big endian. Other measuring tools use it too.
const UUID: [u8; 16] = *b"whepload-stamp\x01\x02";

/// nal_unit_type, payload type and payload size of the message.
const SEI: u8 = 6;
const USER_DATA_UNREGISTERED: u8 = 5;
/// The UUID and the time.
const MESSAGE_BYTES: u8 = 24;

/// A SEI NAL unit, without length or start code, that says `unix_micros`.
pub fn write(unix_micros: u64) -> Vec<u8> {
    let mut nal = vec![SEI, USER_DATA_UNREGISTERED, MESSAGE_BYTES];
    nal.extend_from_slice(&UUID);
    // Emulation prevention (ITU-T H.264 section 7.4.1.1): the time may contain zeros, the UUID doesn't.
    let mut zeros = 0_u8;
    for byte in unix_micros.to_be_bytes() {
        if zeros == 2 && byte <= 3 {
            nal.push(3);
            zeros = 0;
        }
        zeros = if byte == 0 {
            zeros.saturating_add(1)
        } else {
            0
        };
        nal.push(byte);
    }
    nal.push(0x80);
    nal
}

/// The time within a SEI NAL unit, in µs of Unix time, if it has one.
pub fn find(nal: &[u8]) -> Option<u64> {
    let mut raw = Vec::with_capacity(nal.len());
    let mut zeros = 0_u8;
    for &byte in nal {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 {
            zeros.saturating_add(1)
        } else {
            0
        };
        raw.push(byte);
    }
    let time = raw
        .windows(MESSAGE_BYTES.into())
        .find_map(|window| window.strip_prefix(&UUID))?;
    Some(u64::from_be_bytes(*time.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_found_again_and_forms_no_start_code() {
        for time in [
            0,
            1,
            3,
            0x0000_015d_0000_0300,
            0x0006_5d00_0000_0003,
            1_795_000_000_000_000,
            u64::MAX,
        ] {
            let nal = write(time);
            assert_eq!(find(&nal), Some(time), "{time:#x}");
            let forbidden = |window: &[u8]| window[..2] == [0, 0] && window[2] <= 2;
            assert!(!nal.windows(3).any(forbidden), "{nal:x?}");
        }
    }

    #[test]
    fn other_messages_and_cut_ones_have_none() {
        let nal = write(0x0102_0304_0506_0708);
        assert_eq!(find(&nal[..26]), None);
        assert_eq!(find(&[6, 1, 1, 0, 0x80]), None);
        assert_eq!(find(&[]), None);
    }
}
