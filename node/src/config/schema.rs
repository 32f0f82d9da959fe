//! Lists the keys of a configuration struct, which serde's derive knows but does not tell.
//!
//! A derived `Deserialize` names its fields when it asks for a struct. [`Walker`] answers with a single field at a time, walks
//! down to the place in question, notes what is asked for there, and breaks off.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, Visitor};

/// All keys of `T` with dots between sections, sorted. Sections themselves are not listed.
pub fn keys<T: DeserializeOwned>() -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Vec<Vec<&'static str>> = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let asked = RefCell::new(None);
        // Always an error: the walk breaks off where it wanted to get to.
        let _ = T::deserialize(Walker {
            path: &path,
            asked: &asked,
        });
        match asked.into_inner() {
            Some(fields) => open.extend(fields.iter().map(|&field| {
                let mut deeper = path.clone();
                deeper.push(field);
                deeper
            })),
            None => found.push(path.join(".")),
        }
    }
    found.sort();
    found
}

struct Walker<'p> {
    path: &'p [&'static str],
    asked: &'p RefCell<Option<&'static [&'static str]>>,
}

/// The walk has seen what it wanted.
#[derive(Debug)]
struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the walk over the schema stopped")
    }
}

impl std::error::Error for Stopped {}

impl de::Error for Stopped {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl<'de> Deserializer<'de> for Walker<'_> {
    type Error = Stopped;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stopped> {
        Err(Stopped)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        match self.path.split_first() {
            None => {
                *self.asked.borrow_mut() = Some(fields);
                Err(Stopped)
            }
            Some((&first, rest)) => visitor.visit_map(OneField {
                name: Some(first),
                value: Walker {
                    path: rest,
                    asked: self.asked,
                },
            }),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct OneField<'p> {
    name: Option<&'static str>,
    value: Walker<'p>,
}

impl<'de> MapAccess<'de> for OneField<'_> {
    type Error = Stopped;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Stopped> {
        self.name
            .take()
            .map(|name| seed.deserialize(de::value::StrDeserializer::new(name)))
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Stopped> {
        seed.deserialize(Walker {
            path: self.value.path,
            asked: self.value.asked,
        })
    }
}
