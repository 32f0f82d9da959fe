//! AAC as FLV, the ffmpeg child's input: the one simple format that carries an AudioSpecificConfig as it is.
//!
//! ADTS would lose explicit SBR, 960-sample frames, rates and channel layouts beyond its tables
//! (FLV specification 10.1, annex E).

use bytes::{BufMut, Bytes, BytesMut};

use headwater_media::codec::aac;

const TAG_AUDIO: u8 = 8;
/// SoundFormat 10 (AAC), and what goes with it always: 44 kHz, 16 bit, stereo.
const SOUND_AAC: u8 = 0xaf;
const SEQUENCE_HEADER: u8 = 0;
const RAW_FRAME: u8 = 1;

/// The file header and the sequence header.
pub(crate) fn header(source: &aac::Configuration) -> Bytes {
    let asc = decoder_config(source);
    let mut output = BytesMut::with_capacity(64);
    output.put_slice(b"FLV\x01");
    output.put_u8(0x04); // Audio only: ffmpeg needn't look for a video stream.
    output.put_u32(9);
    output.put_u32(0);
    put_tag(&mut output, 0, SEQUENCE_HEADER, &asc);
    output.freeze()
}

/// One raw frame, to be heard `millis` after the first.
pub(crate) fn frame(millis: u32, frame: &[u8]) -> Bytes {
    let mut output = BytesMut::with_capacity(frame.len() + 17);
    put_tag(&mut output, millis, RAW_FRAME, frame);
    output.freeze()
}

fn put_tag(output: &mut BytesMut, millis: u32, kind: u8, body: &[u8]) {
    // The caller's frames are far below the 24 bits of the size field.
    let size = u32::try_from(body.len() + 2).unwrap_or(0);
    output.put_u8(TAG_AUDIO);
    output.put_uint(u64::from(size), 3);
    output.put_uint(u64::from(millis & 0x00ff_ffff), 3);
    output.put_u8(millis.to_be_bytes()[0]);
    output.put_uint(0, 3);
    output.put_u8(SOUND_AAC);
    output.put_u8(kind);
    output.put_slice(body);
    output.put_u32(size + 11);
}

/// The publisher's AudioSpecificConfig.
fn decoder_config(source: &aac::Configuration) -> Bytes {
    source.asc.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_the_layout_of_the_specification() {
        let tag = frame(0x0102_0304, &[0xaa, 0xbb]);
        assert_eq!(
            &tag[..],
            [
                8, 0, 0, 4, 2, 3, 4, 1, 0, 0, 0, 0xaf, 1, 0xaa, 0xbb, 0, 0, 0, 15
            ]
        );
    }
}
