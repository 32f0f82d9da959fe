//! Records and handshake fragments of a datagram (RFC 6347 sections 4.1 and 4.2.2), read without the keys.

/// A handshake message's fragment that isn't its last has at least this many bytes.
const FRAGMENT_BYTES_MIN: usize = 64;

pub(super) const RECORD_HEADER_BYTES: usize = 13;
const MESSAGE_HEADER_BYTES: usize = 12;
pub(super) const CONTENT_HANDSHAKE: u8 = 22;

/// The records of a datagram: content type, epoch, content. Ends at the first that is cut off.
pub(super) fn records(mut datagram: &[u8]) -> impl Iterator<Item = (u8, u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, rest) = datagram.split_first_chunk::<RECORD_HEADER_BYTES>()?;
        let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
        let (content, rest) = rest.split_at_checked(length)?;
        datagram = rest;
        Some((
            header[0],
            u16::from_be_bytes([header[3], header[4]]),
            content,
        ))
    })
}

/// A fragment of a plaintext handshake message.
pub(super) struct Fragment<'a> {
    pub(super) message_type: u8,
    pub(super) length: usize,
    pub(super) sequence: u16,
    pub(super) offset: usize,
    pub(super) data: &'a [u8],
}

/// The fragments in a handshake record.
pub(super) fn fragments(mut content: &[u8]) -> impl Iterator<Item = Fragment<'_>> {
    let u24 = |b: &[u8]| usize::from(b[0]) << 16 | usize::from(b[1]) << 8 | usize::from(b[2]);
    std::iter::from_fn(move || {
        let (header, rest) = content.split_first_chunk::<MESSAGE_HEADER_BYTES>()?;
        let (data, rest) = rest.split_at_checked(u24(&header[9..12]))?;
        content = rest;
        Some(Fragment {
            message_type: header[0],
            length: u24(&header[1..4]),
            sequence: u16::from_be_bytes([header[4], header[5]]),
            offset: u24(&header[6..9]),
            data,
        })
    })
}

/// No plaintext handshake fragment is so small that it can only be meant to hurt. Empty messages are fine.
pub(super) fn fragments_are_sane(datagram: &[u8]) -> bool {
    records(datagram)
        .filter(|(content_type, epoch, _)| *content_type == CONTENT_HANDSHAKE && *epoch == 0)
        .all(|(_, _, content)| {
            fragments(content).all(|fragment| {
                fragment.offset + fragment.data.len() >= fragment.length
                    || fragment.data.len() >= FRAGMENT_BYTES_MIN
            })
        })
}
