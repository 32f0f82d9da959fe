//! Commands (RTMP 1.0 section 7.2, and what FMLE added): each is answered so that the encoders that send it go on.

use std::time::Instant;

use super::{Connected, Demuxer, Event, MediaClock, Publishing, Session};
use crate::rtmp::amf::{self, Value};
use crate::rtmp::reply::{WINDOW_BYTES, status_info};
use crate::rtmp::{Fault, Publish};

/// What we call ourselves in `_result`. Encoders look for `FMS/` and a version from 3 on.
const FMS_VERSION: &str = "FMS/3,5,7,7009";

/// The codecs that are taken, as E-RTMP v2 names them.
const H264: &str = "avc1";
const AAC: &str = "mp4a";

/// FourCcInfoMask: CanDecode and CanForward.
const DECODE_AND_FORWARD: f64 = 5.0;

/// CapsExMask: SupportReconnect.
const RECONNECT: u32 = 1;

/// CapsExMask: SupportReconnect, SupportMultitrack and SupportModEx. Not SupportTimestampNanoOffset: its nanoseconds are passed over.
const CAPABILITIES: f64 = 7.0;

/// The values that each command has in front of its arguments: name, transaction, command object.
const FIXED_VALUES: usize = 3;

impl Session {
    /// Asks a publisher to connect anew, to `base` (`rtmp://host[:port]`) with the application it has now, or to where it connected
    /// before (E-RTMP v2, NetConnection.Connect.ReconnectRequest). It goes on sending until it has done so. False if it did not
    /// announce that it knows the request, or does not publish.
    ///
    /// # Errors
    /// If the peer does not read.
    pub fn request_reconnect(&mut self, base: Option<&str>) -> Result<bool, Fault> {
        let Some(connected) = self.connected.as_ref().filter(|peer| peer.reconnects) else {
            return Ok(false);
        };
        if self.publishing.is_none() {
            return Ok(false);
        }
        let url = base.map(|base| format!("{}/{}", base.trim_end_matches('/'), connected.app));
        let mut info = status_info(
            "status",
            "NetConnection.Connect.ReconnectRequest",
            "the server is stopping",
        );
        if let (Value::Object(properties), Some(url)) = (&mut info, url) {
            properties.push(("tcUrl".to_owned(), Value::String(url)));
        }
        self.replies
            .command(0, "onStatus", 0.0, &[Value::Null, info])?;
        Ok(true)
    }

    pub(super) fn command(
        &mut self,
        now: Instant,
        stream_id: u32,
        payload: &[u8],
    ) -> Result<(), Fault> {
        let values = amf::read(payload, &self.limits)?;
        if values.len() > self.limits.command_arguments.saturating_add(FIXED_VALUES) {
            return Err(Fault::CommandArguments);
        }
        let mut values = values.into_iter();
        let Some(Value::String(name)) = values.next() else {
            return Err(Fault::Command);
        };
        let transaction = values.next().and_then(|v| v.as_number()).unwrap_or(0.0);
        let object = values.next();
        let argument = values.next();
        let text = argument.as_ref().and_then(Value::as_str).unwrap_or("");
        if name == "connect" {
            return self.connect(transaction, &object.ok_or(Fault::Command)?);
        }
        if self.connected.is_none() {
            return Err(Fault::BeforeConnect);
        }
        let done = |rest: Value| [Value::Null, rest];
        match name.as_str() {
            "createStream" => self.create_stream(transaction),
            "publish" => self.publish(stream_id, text),
            "releaseStream" | "_checkbw" => {
                self.replies
                    .command(0, "_result", transaction, &done(Value::Undefined))
            }
            "FCPublish" => {
                self.replies
                    .command(0, "_result", transaction, &done(Value::Undefined))?;
                // Some encoders wait for this before they publish; it grants nothing yet.
                let info = status_info("status", "NetStream.Publish.Start", text);
                self.replies.command(0, "onFCPublish", 0.0, &done(info))
            }
            "FCUnpublish" => {
                self.unpublish(now, None);
                let info = status_info("status", "NetStream.Unpublish.Success", text);
                self.replies.command(0, "onFCUnpublish", 0.0, &done(info))?;
                self.replies
                    .command(0, "_result", transaction, &done(Value::Undefined))
            }
            "FCSubscribe" => {
                let info = status_info("status", "NetStream.Play.Start", text);
                self.replies.command(0, "onFCSubscribe", 0.0, &done(info))
            }
            "getStreamLength" => {
                self.replies
                    .command(0, "_result", transaction, &done(Value::Number(0.0)))
            }
            "closeStream" => {
                self.unpublish(now, Some(stream_id));
                Ok(())
            }
            "deleteStream" => {
                let id = argument.as_ref().and_then(Value::as_number);
                self.streams.retain(|known| Some(f64::from(*known)) != id);
                let publishing = self.publishing.as_ref().map(|p| p.stream_id);
                if let Some(current) = publishing
                    && Some(f64::from(current)) == id
                {
                    self.unpublish(now, None);
                }
                Ok(())
            }
            "play" | "play2" => self.replies.status(
                stream_id,
                "error",
                "NetStream.Play.StreamNotFound",
                "this port takes publishers; watch in a browser",
            ),
            // Answers to something, and what the peer's bandwidth check calls without expecting an answer.
            "_result" | "_error" | "onStatus" | "onBWDone" => Ok(()),
            _ if transaction == 0.0 => Ok(()),
            _ => {
                let info = status_info(
                    "error",
                    "NetConnection.Call.Failed",
                    "this server does not know the command",
                );
                self.replies.command(0, "_error", transaction, &done(info))
            }
        }
    }

    fn connect(&mut self, transaction: f64, object: &Value) -> Result<(), Fault> {
        if self.connected.is_some() {
            let info = status_info(
                "error",
                "NetConnection.Connect.Rejected",
                "already connected",
            );
            return self
                .replies
                .command(0, "_error", transaction, &[Value::Null, info]);
        }
        let text = |name| object.get(name).and_then(Value::as_str);
        let mut properties = vec![
            ("fmsVer".to_owned(), FMS_VERSION.into()),
            ("capabilities".to_owned(), Value::Number(31.0)),
            ("mode".to_owned(), Value::Number(1.0)),
        ];
        // Enhanced RTMP, NetConnection.connect: the server answers same-named properties with what it supports.
        let use_of = |codec| Value::object([(codec, Value::Number(DECODE_AND_FORWARD))]);
        for (name, ours) in [
            ("fourCcList", Value::Array(vec![H264.into(), AAC.into()])),
            ("videoFourCcInfoMap", use_of(H264)),
            ("audioFourCcInfoMap", use_of(AAC)),
            ("capsEx", Value::Number(CAPABILITIES)),
        ] {
            if object.get(name).is_some() {
                properties.push((name.to_owned(), ours));
            }
        }
        let encoding = match object.get("objectEncoding").and_then(Value::as_number) {
            Some(3.0) => 3.0,
            _ => 0.0,
        };
        let info = Value::object([
            ("level", "status".into()),
            ("code", "NetConnection.Connect.Success".into()),
            ("description", "connected".into()),
            ("objectEncoding", Value::Number(encoding)),
        ]);
        self.connected = Some(Connected {
            app: text("app").unwrap_or("").to_owned(),
            encoder: text("flashVer").map(str::to_owned),
            reconnects: announced(object.get("capsEx")) & RECONNECT != 0,
        });
        self.replies.window(WINDOW_BYTES)?;
        self.replies.peer_bandwidth(WINDOW_BYTES)?;
        self.replies.set_chunk_size()?;
        self.replies.command(
            0,
            "_result",
            transaction,
            &[Value::Object(properties), info],
        )
    }

    fn create_stream(&mut self, transaction: f64) -> Result<(), Fault> {
        if self.streams.len() >= self.limits.message_streams {
            return Err(Fault::MessageStreams);
        }
        // The lowest id from 1 on that is free; there are few.
        let id = (1..=u32::MAX)
            .find(|id| !self.streams.contains(id))
            .ok_or(Fault::MessageStreams)?;
        self.streams.push(id);
        self.replies.command(
            0,
            "_result",
            transaction,
            &[Value::Null, Value::Number(f64::from(id))],
        )
    }

    fn publish(&mut self, stream_id: u32, key: &str) -> Result<(), Fault> {
        if !self.streams.contains(&stream_id) {
            return Err(Fault::Command);
        }
        if self.publishing.is_some() {
            return self.replies.status(
                stream_id,
                "error",
                "NetStream.Publish.BadName",
                "this connection is publishing already",
            );
        }
        let Some(connected) = &self.connected else {
            return Err(Fault::BeforeConnect);
        };
        let publish = Publish::new(&connected.app, key, connected.encoder.as_deref());
        self.publishing = Some(Publishing { stream_id });
        self.demuxer = Demuxer::new();
        self.clock = MediaClock::default();
        self.events.push_back(Event::Publish(publish));
        Ok(())
    }

    /// Ends the publish, on this message stream or whichever it is on.
    fn unpublish(&mut self, now: Instant, stream_id: Option<u32>) {
        let on = self.publishing.as_ref().map(|p| p.stream_id);
        if on.is_none() || stream_id.is_some() && stream_id != on {
            return;
        }
        self.publishing = None;
        self.publish_deadline = now.checked_add(self.limits.publish_timeout);
        self.events.push_back(Event::Unpublished);
    }
}

/// The bits of a mask, none if it is no whole number of 32 bits.
fn announced(mask: Option<&Value>) -> u32 {
    let mask = mask.and_then(Value::as_number).unwrap_or(0.0);
    if mask.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&mask) {
        return 0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole and in range"
    )]
    let bits = mask as u32;
    bits
}
