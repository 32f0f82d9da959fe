//! The floor: what sending the same packets costs when nothing else is done.
//!
//! A process with one thread that, for each viewer, copies payloads behind RTP headers, seals them in place with AES-128-GCM and hands the
//! kernel one message per frame to cut (UDP_SEGMENT), 64 messages a call. No feedback, no timers per viewer, no pacing, no stack: an edge
//! can approach it but not pass it. It sends to sockets of the kind that viewers have, since on loopback the sender pays for delivery.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use headwater_bench::time::{now, pause};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, setsockopt, sockopt,
};
use ring::aead;
use serde::{Deserialize, Serialize};

/// Messages per call (count), as many as the edge takes.
const SEND_BATCH: usize = 64;

/// Send buffer asked of the kernel (bytes), as the edge's.
const SEND_BUFFER_BYTES: usize = 8 << 20;

const HEADER_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// What a datagram has besides its payload (bytes).
pub(crate) const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;

/// Datagrams in a message (count): UDP_MAX_SEGMENTS of kernels before 6.9.
const SEGMENTS_MAX: usize = 64;

/// What one viewer gets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pattern {
    /// Pictures per second, and their packets on average: some have the next smaller, some the next larger whole number.
    pub(crate) frames_per_second: f64,
    pub(crate) packets_per_frame: f64,
    /// Bytes of the first of them, if that is a message of its own and the others another; 0: all are one message.
    pub(crate) stamp_bytes: usize,
    /// Bytes of each datagram, header and tag included.
    pub(crate) video_bytes: usize,
    pub(crate) audio_per_second: f64,
    pub(crate) audio_bytes: usize,
}

impl Pattern {
    /// Packets a viewer gets in a second.
    pub(crate) fn packets_per_second(&self) -> f64 {
        self.frames_per_second
            .mul_add(self.packets_per_frame, self.audio_per_second)
    }
}

/// What the process is told on its input, in JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Port to send from.
    pub(crate) port: u16,
    /// Ports of the sinks on this machine.
    pub(crate) sinks: Vec<u16>,
    pub(crate) pattern: Pattern,
}

/// When the next frame and the next piece of sound are due, and how large the frame is.
#[derive(Debug)]
struct Schedule {
    pattern: Pattern,
    frames: u64,
    sounds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Frame { packets: usize },
    Sound,
}

impl Schedule {
    /// What comes next, and when, in seconds since the start.
    fn next(&mut self) -> (f64, Due) {
        let Pattern {
            frames_per_second,
            audio_per_second,
            packets_per_frame,
            ..
        } = self.pattern;
        let frame = self.frames as f64 / frames_per_second;
        // Half an interval apart, so that they don't meet.
        let sound = (self.sounds as f64 + 0.5) / audio_per_second;
        if sound < frame {
            self.sounds += 1;
            return (sound, Due::Sound);
        }
        let until = |frames: u64| whole(frames as f64 * packets_per_frame);
        let packets = until(self.frames + 1) - until(self.frames);
        self.frames += 1;
        (
            frame,
            Due::Frame {
                packets: packets.clamp(1, SEGMENTS_MAX),
            },
        )
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of packets, never negative"
)]
fn whole(count: f64) -> usize {
    count as usize
}

struct Viewer {
    address: SockaddrIn,
    key: aead::LessSafeKey,
    salt: [u8; 12],
    /// Of video and of audio; the upper bits are the rollover counter.
    sequences: [u64; 2],
}

/// Sends until its process is ended.
pub(crate) fn run(task: &Task) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, task.port)).context("the floor's port")?;
    let _ = setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER_BYTES);
    let mut viewers = task
        .sinks
        .iter()
        .map(|port| Viewer::new(*port))
        .collect::<Result<Vec<_>>>()?;
    let mut sender = Sender::new(socket);
    let mut schedule = Schedule {
        pattern: task.pattern,
        frames: 0,
        sounds: 0,
    };
    let start = now();
    loop {
        let (at, due) = schedule.next();
        let at = start + Duration::from_secs_f64(at);
        pause(at.saturating_duration_since(now()));
        let (track, mut packets, bytes) = match due {
            Due::Frame { packets } => (0, packets, task.pattern.video_bytes),
            Due::Sound => (1, 1, task.pattern.audio_bytes),
        };
        let stamp_bytes = match due {
            Due::Frame { .. } => task.pattern.stamp_bytes,
            Due::Sound => 0,
        };
        packets -= usize::from(stamp_bytes > 0);
        ensure!(
            bytes > OVERHEAD_BYTES && bytes >= stamp_bytes,
            "datagrams of {bytes} bytes"
        );
        for viewer in &mut viewers {
            if stamp_bytes > 0 {
                sender.write(viewer, track, 1, stamp_bytes);
            }
            if packets > 0 {
                sender.write(viewer, track, packets, bytes);
            }
            if sender.messages.len() + 2 > SEND_BATCH {
                sender.flush(bytes)?;
            }
        }
        sender.flush(bytes)?;
    }
}

impl Viewer {
    fn new(port: u16) -> Result<Self> {
        let mut key = [0; 16];
        let mut salt = [0; 12];
        rand::fill(&mut key);
        rand::fill(&mut salt);
        let key = aead::UnboundKey::new(&aead::AES_128_GCM, &key)
            .map_err(|_| anyhow::anyhow!("AES-128-GCM"))?;
        Ok(Self {
            address: SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)),
            key: aead::LessSafeKey::new(key),
            salt,
            sequences: [0; 2],
        })
    }

    /// Writes and seals a packet of `packet.len()` bytes. RFC 7714 section 8.1 has the nonce.
    fn seal(&mut self, track: u8, marker: bool, payload: &[u8], packet: &mut [u8]) {
        let Some(sequence) = self.sequences.get_mut(usize::from(track)) else {
            return;
        };
        let index = sequence.to_be_bytes();
        *sequence += 1;
        let kind = 96 + track + if marker { 128 } else { 0 };
        let ssrc = [0x11, 0x22, 0x33, track];
        let (header, rest) = packet.split_at_mut(HEADER_BYTES);
        header[..4].copy_from_slice(&[0x80, kind, index[6], index[7]]);
        header[8..].copy_from_slice(&ssrc);
        let (body, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
        body.copy_from_slice(&payload[..body.len()]);
        let mut nonce = self.salt;
        for (byte, value) in nonce[2..].iter_mut().zip(ssrc.iter().chain(&index[2..])) {
            *byte ^= value;
        }
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        if let Ok(sealed) =
            self.key
                .seal_in_place_separate_tag(nonce, aead::Aad::from(&*header), body)
        {
            tag.copy_from_slice(sealed.as_ref());
        }
    }
}

/// The arena and what goes to the kernel.
struct Sender {
    socket: UdpSocket,
    /// Any bytes will do: encrypting costs the same.
    payload: Vec<u8>,
    arena: Vec<u8>,
    messages: Vec<(Range<usize>, SockaddrIn)>,
    addresses: Vec<Option<SockaddrIn>>,
    plain: MultiHeaders<SockaddrIn>,
    segmented: MultiHeaders<SockaddrIn>,
}

impl Sender {
    fn new(socket: UdpSocket) -> Self {
        Self {
            socket,
            payload: (0..=u8::MAX).cycle().take(64 << 10).collect(),
            arena: Vec::new(),
            messages: Vec::with_capacity(SEND_BATCH),
            addresses: Vec::with_capacity(SEND_BATCH),
            plain: MultiHeaders::preallocate(SEND_BATCH, None),
            segmented: MultiHeaders::preallocate(SEND_BATCH, Some(nix::cmsg_space!(u16))),
        }
    }

    /// Adds a message of `packets` datagrams of `bytes` each.
    fn write(&mut self, viewer: &mut Viewer, track: u8, packets: usize, bytes: usize) {
        let start = self.arena.len();
        self.arena.resize(start + packets * bytes, 0);
        for (i, packet) in self.arena[start..].chunks_exact_mut(bytes).enumerate() {
            let marker = track == 0 && i + 1 == packets;
            viewer.seal(track, marker, &self.payload, packet);
        }
        self.messages
            .push((start..self.arena.len(), viewer.address));
    }

    /// Sends them.
    fn flush(&mut self, bytes: usize) -> Result<()> {
        let segment = u16::try_from(bytes)?;
        let fd = self.socket.as_raw_fd();
        let mut sent = 0;
        while sent < self.messages.len() {
            let messages = &self.messages[sent..];
            self.addresses.clear();
            self.addresses
                .extend(messages.iter().map(|(_, to)| Some(*to)));
            let slices: Vec<[IoSlice<'_>; 1]> = messages
                .iter()
                .map(|(range, _)| [IoSlice::new(&self.arena[range.clone()])])
                .collect();
            let flags = MsgFlags::empty();
            let single = messages.iter().all(|(range, _)| range.len() <= bytes);
            let result = if single {
                sendmmsg(
                    fd,
                    &mut self.plain,
                    slices.iter(),
                    &self.addresses,
                    [],
                    flags,
                )
            } else {
                let cut = [ControlMessage::UdpGsoSegments(&segment)];
                sendmmsg(
                    fd,
                    &mut self.segmented,
                    slices.iter(),
                    &self.addresses,
                    cut,
                    flags,
                )
            };
            match result {
                Ok(results) => sent += results.count(),
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                // A sink is closing: the measurement is over.
                Err(Errno::ECONNREFUSED) => sent += 1,
                Err(error) => return Err(error).context("sending"),
            }
        }
        self.arena.clear();
        self.messages.clear();
        Ok(())
    }
}

/// Where the floor sends from.
pub(crate) fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_the_pattern_has_its_frames_packets_and_sounds() {
        let pattern = Pattern {
            frames_per_second: 30.0,
            packets_per_frame: 6.85,
            stamp_bytes: 0,
            video_bytes: 900,
            audio_per_second: 50.0,
            audio_bytes: 200,
        };
        assert!((pattern.packets_per_second() - 255.5).abs() < 1e-9);
        let mut schedule = Schedule {
            pattern,
            frames: 0,
            sounds: 0,
        };
        let (mut packets, mut frames, mut sounds, mut last) = (0, 0, 0, 0.0);
        loop {
            let (at, due) = schedule.next();
            assert!(at >= last, "in order");
            if at >= 4.0 {
                break;
            }
            last = at;
            match due {
                Due::Frame { packets: count } => {
                    assert!((6..=7).contains(&count));
                    frames += 1;
                    packets += count;
                }
                Due::Sound => sounds += 1,
            }
        }
        assert_eq!((frames, packets, sounds), (120, 822, 200));
    }

    #[test]
    fn what_is_sealed_opens_again() {
        let mut viewer = Viewer::new(1).unwrap();
        let mut packet = [0; 100];
        for sequence in 0..3_u8 {
            viewer.seal(0, true, &[7; 100], &mut packet);
            assert_eq!(packet[..4], [0x80, 224, 0, sequence]);
            let mut nonce = viewer.salt;
            for (byte, value) in nonce[2..]
                .iter_mut()
                .zip([0x11, 0x22, 0x33, 0, 0, 0, 0, 0, 0, sequence])
            {
                *byte ^= value;
            }
            let nonce = aead::Nonce::assume_unique_for_key(nonce);
            let (header, body) = packet.split_at_mut(HEADER_BYTES);
            let plain = viewer
                .key
                .open_in_place(nonce, aead::Aad::from(&*header), body)
                .unwrap();
            assert_eq!(plain, [7; 72]);
        }
    }
}
