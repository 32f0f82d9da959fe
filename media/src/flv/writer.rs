//! Writes the FLV file format (Adobe FLV 10.1 annex E), as ffmpeg reads it from a pipe.
//!
//! Every function appends to a caller's buffer, so that one write to the pipe can carry several tags.
//! Called by whoever feeds an ffmpeg child.

use bytes::{BufMut, BytesMut};

use super::TagKind;

/// The largest body a tag can have (bytes): its size field has 24 bits.
pub const BODY_BYTES_MAX: usize = 0x00FF_FFFF;

/// A tag body does not fit in its size field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tag body of {0} bytes does not fit into 24 bits")]
pub struct TooLong(pub usize);

/// Appends the file header and the first PreviousTagSize.
pub fn header(out: &mut BytesMut, has_audio: bool, has_video: bool) {
    out.put_slice(b"FLV\x01");
    out.put_u8(u8::from(has_audio) << 2 | u8::from(has_video));
    out.put_u32(9);
    out.put_u32(0);
}

/// Appends one tag whose body is the parts in order. `millis` is the decode time; the format keeps its low 32 bits.
///
/// # Errors
/// If the body is too long; nothing was appended then.
pub fn tag(out: &mut BytesMut, kind: TagKind, millis: i64, body: &[&[u8]]) -> Result<(), TooLong> {
    let length: usize = body.iter().map(|part| part.len()).sum();
    let size = u32::try_from(length)
        .ok()
        .filter(|_| length <= BODY_BYTES_MAX)
        .ok_or(TooLong(length))?;
    let [t3, t2, t1, t0] = low_32(millis).to_be_bytes();
    out.reserve(15 + length);
    out.put_u8(kind.number());
    out.put_uint(u64::from(size), 3);
    // The upper byte comes last: TimestampExtended.
    out.put_slice(&[t2, t1, t0, t3]);
    out.put_uint(0, 3);
    for part in body {
        out.put_slice(part);
    }
    out.put_u32(11 + size);
    Ok(())
}

/// Appends the tag that carries an AudioSpecificConfig.
///
/// # Errors
/// If it is too long.
pub fn aac_configuration(out: &mut BytesMut, millis: i64, asc: &[u8]) -> Result<(), TooLong> {
    tag(out, TagKind::Audio, millis, &[&[0xAF, 0], asc])
}

/// Appends one raw AAC frame.
///
/// # Errors
/// If it is too long.
pub fn aac_frame(out: &mut BytesMut, millis: i64, frame: &[u8]) -> Result<(), TooLong> {
    tag(out, TagKind::Audio, millis, &[&[0xAF, 1], frame])
}

/// Appends the tag that carries an AVCDecoderConfigurationRecord.
///
/// # Errors
/// If it is too long.
pub fn h264_configuration(out: &mut BytesMut, millis: i64, avcc: &[u8]) -> Result<(), TooLong> {
    tag(out, TagKind::Video, millis, &[&[0x17, 0, 0, 0, 0], avcc])
}

/// Appends one H.264 access unit (length-prefixed NAL units). `composition_millis` is PTS minus DTS; the format has
/// 24 bits for it, what does not fit is clamped.
///
/// # Errors
/// If it is too long.
pub fn h264_unit(
    out: &mut BytesMut,
    millis: i64,
    composition_millis: i64,
    keyframe: bool,
    payload: &[u8],
) -> Result<(), TooLong> {
    let clamped = composition_millis.clamp(-0x80_0000, 0x7F_FFFF);
    let [_, c2, c1, c0] = low_32(clamped).to_be_bytes();
    let first = if keyframe { 0x17 } else { 0x27 };
    tag(
        out,
        TagKind::Video,
        millis,
        &[&[first, 1, c2, c1, c0], payload],
    )
}

/// The low 32 bits in two's complement, which is how FLV and RTMP wrap their times.
fn low_32(value: i64) -> u32 {
    u32::try_from(value & 0xFFFF_FFFF).expect("masked to 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_their_times_split_and_their_sizes_behind_them() {
        let mut out = BytesMut::new();
        header(&mut out, true, false);
        assert_eq!(&out[..], b"FLV\x01\x04\0\0\0\x09\0\0\0\0");
        out.clear();
        aac_frame(&mut out, 0x0102_0304, b"xyz").expect("short");
        assert_eq!(
            &out[..],
            [
                8, 0, 0, 5, 2, 3, 4, 1, 0, 0, 0, 0xAF, 1, b'x', b'y', b'z', 0, 0, 0, 16
            ]
        );
    }

    #[test]
    fn composition_offsets_are_signed_and_clamped() {
        for (offset, bytes) in [
            (0, [0, 0, 0]),
            (66, [0, 0, 66]),
            (-1, [0xFF, 0xFF, 0xFF]),
            (i64::MAX, [0x7F, 0xFF, 0xFF]),
            (i64::MIN, [0x80, 0, 0]),
        ] {
            let mut out = BytesMut::new();
            h264_unit(&mut out, 0, offset, false, b"").expect("short");
            assert_eq!(out[13..16], bytes, "{offset}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_whole() {
        let mut out = BytesMut::new();
        let body = vec![0; BODY_BYTES_MAX + 1];
        assert_eq!(
            tag(&mut out, TagKind::Video, 0, &[&body]),
            Err(TooLong(BODY_BYTES_MAX + 1))
        );
        assert!(out.is_empty());
    }
}
