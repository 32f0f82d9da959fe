//! AMF0 (Adobe Action Message Format 0, 2007), as far as RTMP commands and metadata need it, read within limits.
//!
//! Reading is the dangerous half: 60 kB of nested objects are 12,000 levels, so depth and the number of values are
//! bounded, and nothing is allocated because a length field claims it. References are kept as numbers and never followed, so
//! that a small message can't describe a huge value. A switch to AMF3 (marker 0x11) ends the list of values: no
//! publisher puts anything needed behind it.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use bytes::{BufMut, BytesMut};

use super::Limits;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Marker 0.
    Number(f64),
    /// Marker 1.
    Boolean(bool),
    /// Markers 2 and 12, and 15 (an XML document). Bytes that are no UTF-8 were replaced.
    String(String),
    /// Markers 3, 8 and 16: properties in the order they came.
    Object(Vec<(String, Self)>),
    /// Marker 10.
    Array(Vec<Self>),
    /// Marker 11: milliseconds since the Unix epoch.
    Date(f64),
    /// Marker 7: the index of an earlier object of the message.
    Reference(u16),
    /// Marker 5.
    Null,
    /// Marker 6, and 13 (unsupported).
    Undefined,
}

/// Why bytes are no acceptable AMF0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end within a value.
    #[error("AMF value cut short")]
    Truncated,
    /// A marker that no value begins with.
    #[error("unknown AMF marker {0:#04x}")]
    Marker(u8),
    /// Objects and arrays are nested too deeply.
    #[error("AMF nested too deeply")]
    TooDeep,
    /// More values than allowed.
    #[error("too many AMF values")]
    TooMany,
}

impl Value {
    /// The number, if it is one.
    pub const fn as_number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The first property of this name, if this is an object that has it.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(properties) => properties
                .iter()
                .find_map(|(key, value)| (key == name).then_some(value)),
            _ => None,
        }
    }

    /// The same in JSON: dates as numbers, what JSON can't say as null.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Self::Number(number) | Self::Date(number) => {
                serde_json::Number::from_f64(*number).map_or(Json::Null, Json::Number)
            }
            Self::Boolean(truth) => Json::Bool(*truth),
            Self::String(text) => Json::String(text.clone()),
            Self::Object(properties) => Json::Object(
                properties
                    .iter()
                    .map(|(key, value)| (key.clone(), value.to_json()))
                    .collect(),
            ),
            Self::Array(values) => Json::Array(values.iter().map(Self::to_json).collect()),
            Self::Reference(_) | Self::Null | Self::Undefined => Json::Null,
        }
    }

    /// An object from pairs.
    pub fn object<const N: usize>(properties: [(&str, Self); N]) -> Self {
        Self::Object(
            properties
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        )
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

/// All values of a message, in order.
///
/// # Errors
/// If a value is malformed or a limit is exceeded.
pub fn read(bytes: &[u8], limits: &Limits) -> Result<Vec<Value>, Error> {
    let mut reader = Reader {
        rest: bytes,
        values_left: limits.amf_values,
    };
    let mut values = Vec::new();
    while !reader.rest.is_empty() {
        if reader.rest.first() == Some(&AMF3) {
            break;
        }
        values.push(reader.value(limits.amf_depth)?);
    }
    Ok(values)
}

/// Appends a value. References are written as null, since there is nothing of ours that they could mean.
pub fn write(out: &mut BytesMut, value: &Value) {
    match value {
        Value::Number(number) => {
            out.put_u8(0);
            out.put_f64(*number);
        }
        Value::Boolean(truth) => {
            out.put_u8(1);
            out.put_u8(u8::from(*truth));
        }
        Value::String(text) => match u16::try_from(text.len()) {
            Ok(length) => {
                out.put_u8(2);
                out.put_u16(length);
                out.put_slice(text.as_bytes());
            }
            Err(_) => {
                out.put_u8(12);
                out.put_u32(u32::try_from(text.len()).expect("our own texts are short"));
                out.put_slice(text.as_bytes());
            }
        },
        Value::Object(properties) => {
            out.put_u8(3);
            for (key, value) in properties {
                // A longer key than the format has room for is nothing we write.
                let Ok(length) = u16::try_from(key.len()) else {
                    continue;
                };
                out.put_u16(length);
                out.put_slice(key.as_bytes());
                write(out, value);
            }
            out.put_slice(&[0, 0, OBJECT_END]);
        }
        Value::Array(values) => {
            out.put_u8(10);
            out.put_u32(u32::try_from(values.len()).expect("our own arrays are short"));
            for value in values {
                write(out, value);
            }
        }
        Value::Date(millis) => {
            out.put_u8(11);
            out.put_f64(*millis);
            out.put_u16(0);
        }
        Value::Reference(_) | Value::Null => out.put_u8(5),
        Value::Undefined => out.put_u8(6),
    }
}

/// The marker behind an object's last property.
const OBJECT_END: u8 = 9;
/// The marker that switches to AMF3.
const AMF3: u8 = 0x11;

struct Reader<'a> {
    rest: &'a [u8],
    values_left: usize,
}

impl<'a> Reader<'a> {
    /// One value, with at most `depth` levels below it.
    fn value(&mut self, depth: usize) -> Result<Value, Error> {
        self.values_left = self.values_left.checked_sub(1).ok_or(Error::TooMany)?;
        let [marker] = self.array()?;
        Ok(match marker {
            0 => Value::Number(f64::from_be_bytes(self.array()?)),
            1 => Value::Boolean(self.array::<1>()? != [0]),
            2 => Value::String(self.short_string()?),
            3 => self.object(depth)?,
            5 => Value::Null,
            6 | 13 => Value::Undefined,
            7 => Value::Reference(u16::from_be_bytes(self.array()?)),
            8 => {
                // The count of an ECMA array is often wrong; its end marker is what counts.
                let _count: [u8; 4] = self.array()?;
                self.object(depth)?
            }
            10 => {
                let count = u32::from_be_bytes(self.array()?);
                let below = depth.checked_sub(1).ok_or(Error::TooDeep)?;
                let mut values = Vec::new();
                for _ in 0..count {
                    values.push(self.value(below)?);
                }
                Value::Array(values)
            }
            11 => {
                let millis = f64::from_be_bytes(self.array()?);
                // A time zone, which the specification reserves and asks to be zero.
                let _zone: [u8; 2] = self.array()?;
                Value::Date(millis)
            }
            12 | 15 => {
                let length = u32::from_be_bytes(self.array()?);
                Value::String(self.string(usize::try_from(length).map_err(|_| Error::Truncated)?)?)
            }
            16 => {
                let _class = self.short_string()?;
                self.object(depth)?
            }
            // An AMF3 value within an AMF0 one can't be skipped without reading it whole.
            unknown => return Err(Error::Marker(unknown)),
        })
    }

    fn object(&mut self, depth: usize) -> Result<Value, Error> {
        let below = depth.checked_sub(1).ok_or(Error::TooDeep)?;
        let mut properties = Vec::new();
        loop {
            // Some encoders leave the end marker of the last object out.
            if self.rest.is_empty() {
                break;
            }
            let key = self.short_string()?;
            if key.is_empty() && self.rest.first() == Some(&OBJECT_END) {
                self.take(1)?;
                break;
            }
            properties.push((key, self.value(below)?));
        }
        Ok(Value::Object(properties))
    }

    fn short_string(&mut self) -> Result<String, Error> {
        let length = u16::from_be_bytes(self.array()?);
        self.string(usize::from(length))
    }

    fn string(&mut self, length: usize) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Error::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Error::Truncated)?;
        self.rest = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nested(levels: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..levels {
            bytes.extend_from_slice(b"\x03\0\x01a");
        }
        bytes.push(5);
        for _ in 0..levels {
            bytes.extend_from_slice(&[0, 0, 9]);
        }
        bytes
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(b"\x02\0\x03abc\x01\x01\x05\x06\x0D\x07\0\x02");
        bytes.extend_from_slice(b"\x0B\0\0\0\0\0\0\0\0\0\0");
        bytes.extend_from_slice(b"\x0C\0\0\0\x02hi\x0F\0\0\0\x01x");
        bytes.extend_from_slice(b"\x10\0\x03Cls\0\x01k\x01\0\0\0\x09");
        bytes.extend_from_slice(b"\x08\0\0\xFF\xFF\0\x01k\x05\0\0\x09");
        bytes.extend_from_slice(b"\x0A\0\0\0\x02\x05\x06");
        bytes.extend_from_slice(b"\x11anything");
        let values = read(&bytes, &Limits::default()).expect("valid");
        assert_eq!(
            values,
            [
                Value::from("abc"),
                Value::Boolean(true),
                Value::Null,
                Value::Undefined,
                Value::Undefined,
                Value::Reference(2),
                Value::Date(0.0),
                Value::from("hi"),
                Value::from("x"),
                Value::object([("k", Value::Boolean(false))]),
                Value::object([("k", Value::Null)]),
                Value::Array(vec![Value::Null, Value::Undefined]),
            ]
        );
    }

    #[test]
    fn depth_and_number_of_values_are_bounded() {
        let limits = Limits::default();
        assert!(read(&nested(limits.amf_depth), &limits).is_ok());
        assert_eq!(
            read(&nested(limits.amf_depth + 1), &limits),
            Err(Error::TooDeep)
        );
        assert_eq!(read(&nested(12_000), &limits), Err(Error::TooDeep));
        assert_eq!(read(&[5; 5000], &limits), Err(Error::TooMany));
        // A count of 4 billion allocates nothing.
        assert_eq!(
            read(b"\x0A\xFF\xFF\xFF\xFF", &limits),
            Err(Error::Truncated)
        );
        assert_eq!(
            read(b"\x0C\xFF\xFF\xFF\xFFab", &limits),
            Err(Error::Truncated)
        );
    }

    #[test]
    fn an_object_without_its_end_is_taken() {
        assert_eq!(
            read(b"\x03\0\x01k\x05", &Limits::default()),
            Ok(vec![Value::object([("k", Value::Null)])])
        );
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            (-1e9..1e9).prop_map(Value::Number),
            any::<bool>().prop_map(Value::Boolean),
            "[a-z]{0,20}".prop_map(Value::String),
            (0.0..1e12).prop_map(Value::Date),
            Just(Value::Null),
            Just(Value::Undefined),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
                prop::collection::vec(("[a-z]{1,8}", inner), 0..5).prop_map(Value::Object),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(values in prop::collection::vec(value(), 0..5)) {
            let mut out = BytesMut::new();
            for value in &values {
                write(&mut out, value);
            }
            prop_assert_eq!(read(&out, &Limits::default()), Ok(values));
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes, &Limits::default());
        }
    }
}
