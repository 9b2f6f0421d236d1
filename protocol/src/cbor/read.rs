//! CBOR for serde's types.
//!
//! What reads items is one piece of code; for each type there is only what tells them apart. serde_cbor
//! reads arrays, maps and strings anew for each type, which was a tenth of the agent's program.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of every item that is not what is wanted, the same is said"
)]

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::item::{Fault, Item, Items, Left};

/// Reads values out of items.
pub(super) struct Reader<'a, 'de>(pub(super) &'a mut Items<'de>);

impl<'de> Reader<'_, 'de> {
    fn integer<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.next()? {
            Item::Unsigned(number) => visitor.visit_u64(number),
            Item::Negative(number) => visitor.visit_i64(number),
            item => Err(item.instead_of(&visitor)),
        }
    }

    fn float<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.next()? {
            Item::Unsigned(number) => visitor.visit_u64(number),
            Item::Negative(number) => visitor.visit_i64(number),
            Item::Float(number) => visitor.visit_f64(number),
            item => Err(item.instead_of(&visitor)),
        }
    }

    fn text<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.next()? {
            Item::Text(text) => visitor.visit_borrowed_str(text),
            item => Err(item.instead_of(&visitor)),
        }
    }

    fn bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.next()? {
            Item::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
            item => Err(item.instead_of(&visitor)),
        }
    }

    fn array<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.next()? {
            Item::Array(count) => self.elements(count, visitor),
            item => Err(item.instead_of(&visitor)),
        }
    }

    fn map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.next()? {
            Item::Map(count) => self.pairs(count, visitor),
            item => Err(item.instead_of(&visitor)),
        }
    }

    fn elements<V: Visitor<'de>>(self, count: Option<u64>, visitor: V) -> Result<V::Value, Fault> {
        let mut held = Held::enter(self.0, count)?;
        let value = visitor.visit_seq(&mut held)?;
        held.leave()?;
        Ok(value)
    }

    fn pairs<V: Visitor<'de>>(self, count: Option<u64>, visitor: V) -> Result<V::Value, Fault> {
        let mut held = Held::enter(self.0, count)?;
        let value = visitor.visit_map(&mut held)?;
        held.leave()?;
        Ok(value)
    }
}

/// Says of kinds of values how they are read.
macro_rules! read {
    ($($by:ident: $($kind:ident)*;)*) => {
        $($(
            fn $kind<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
                self.$by(visitor)
            }
        )*)*
    };
}

impl<'de> Deserializer<'de> for Reader<'_, 'de> {
    type Error = Fault;

    read! {
        integer: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8
            deserialize_u16 deserialize_u32 deserialize_u64;
        float: deserialize_f32 deserialize_f64;
        text: deserialize_char deserialize_str deserialize_string deserialize_identifier;
        bytes: deserialize_bytes deserialize_byte_buf;
        array: deserialize_seq;
        map: deserialize_map;
        deserialize_any: deserialize_bool deserialize_unit;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.next()? {
            Item::Unsigned(number) => visitor.visit_u64(number),
            Item::Negative(number) => visitor.visit_i64(number),
            Item::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
            Item::Text(text) => visitor.visit_borrowed_str(text),
            Item::Array(count) => self.elements(count, visitor),
            Item::Map(count) => self.pairs(count, visitor),
            Item::Bool(value) => visitor.visit_bool(value),
            Item::Null => visitor.visit_unit(),
            Item::Float(number) => visitor.visit_f64(number),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.0.take_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.array(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.array(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.map(visitor)
    }

    /// A variant is its name, or a map from its name to what it holds.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.0.next()? {
            Item::Text(name) => visitor.visit_enum(name.into_deserializer()),
            Item::Map(count) => {
                let mut held = Held::enter(self.0, count)?;
                if !held.left.more(held.items)? {
                    return Err(Item::Map(count).instead_of(&visitor));
                }
                let value = visitor.visit_enum(&mut held)?;
                held.leave()?;
                Ok(value)
            }
            item => Err(item.instead_of(&visitor)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.0.skip()?;
        visitor.visit_unit()
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// What an array or a map holds.
struct Held<'a, 'de> {
    items: &'a mut Items<'de>,
    left: Left,
}

impl<'a, 'de> Held<'a, 'de> {
    fn enter(items: &'a mut Items<'de>, count: Option<u64>) -> Result<Self, Fault> {
        items.enter()?;
        Ok(Self { items, left: Left(count) })
    }

    fn leave(mut self) -> Result<(), Fault> {
        if self.left.more(self.items)? {
            return Err(Fault::Length);
        }
        self.items.leave();
        Ok(())
    }

    fn read<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        seed.deserialize(Reader(self.items))
    }

    fn read_next<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        if self.left.more(self.items)? { self.read(seed).map(Some) } else { Ok(None) }
    }
}

impl<'de> SeqAccess<'de> for Held<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        self.read_next(seed)
    }

    /// Each takes a byte at least: what claims to be longer has no room made for it.
    fn size_hint(&self) -> Option<usize> {
        let count = usize::try_from(self.left.0?).unwrap_or(usize::MAX);
        Some(count.min(self.items.rest()))
    }
}

impl<'de> MapAccess<'de> for Held<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        self.read_next(seed)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        self.read(seed)
    }
}

impl<'a, 'b, 'de> EnumAccess<'de> for &'b mut Held<'a, 'de> {
    type Error = Fault;
    type Variant = Reader<'b, 'de>;

    fn variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<(T::Value, Reader<'b, 'de>), Fault> {
        let name = self.read(seed)?;
        Ok((name, Reader(self.items)))
    }
}

impl<'de> VariantAccess<'de> for Reader<'_, 'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.0.next()? {
            Item::Null => Ok(()),
            item => Err(item.instead_of(&"nothing")),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.array(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.map(visitor)
    }
}
