//! The items that CBOR is made of (RFC 8949 section 3), without what they hold.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

/// Arrays and maps in one another, at most: a message of ours has ten.
const DEPTH_MAX: u8 = 128;

/// Why bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("it ends early")]
    End,
    #[error("bytes follow it")]
    Trailing,
    #[error("it is nested deeper than {DEPTH_MAX}")]
    Depth,
    #[error("a text is not UTF-8")]
    Utf8,
    #[error("{0:#04x} begins no item")]
    Head(u8),
    #[error("more elements than expected")]
    Length,
    #[error("{0}")]
    Shape(String),
}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self::Shape(why.to_string())
    }
}

/// One item; of what is in an array or a map, how many there are, None where a break ends them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Item<'de> {
    Unsigned(u64),
    Negative(i64),
    Bytes(&'de [u8]),
    Text(&'de str),
    Array(Option<u64>),
    Map(Option<u64>),
    Bool(bool),
    Null,
    Float(f64),
}

impl Item<'_> {
    /// What to say where something else is wanted.
    #[inline(never)]
    pub(super) fn instead_of(&self, expected: &dyn Expected) -> Fault {
        let unexpected = match *self {
            Self::Unsigned(number) => Unexpected::Unsigned(number),
            Self::Negative(number) => Unexpected::Signed(number),
            Self::Bytes(bytes) => Unexpected::Bytes(bytes),
            Self::Text(text) => Unexpected::Str(text),
            Self::Array(_) => Unexpected::Seq,
            Self::Map(_) => Unexpected::Map,
            Self::Bool(value) => Unexpected::Bool(value),
            Self::Null => Unexpected::Unit,
            Self::Float(number) => Unexpected::Float(number),
        };
        de::Error::invalid_type(unexpected, expected)
    }
}

/// Bytes, item by item.
pub(super) struct Items<'de> {
    rest: &'de [u8],
    depth: u8,
}

/// Ends what has no length.
const BREAK: u8 = 0xff;
/// Null, and what is undefined, which nobody tells apart.
const NULLS: [u8; 2] = [0xf6, 0xf7];

impl<'de> Items<'de> {
    pub(super) fn new(bytes: &'de [u8]) -> Self {
        Self { rest: bytes, depth: DEPTH_MAX }
    }

    /// Bytes that are not read.
    pub(super) fn rest(&self) -> usize {
        self.rest.len()
    }

    /// The next item; tags are passed over.
    #[inline(never)]
    pub(super) fn next(&mut self) -> Result<Item<'de>, Fault> {
        loop {
            let head = self.byte()?;
            let (major, short) = (head >> 5, head & 0x1f);
            return Ok(match (major, short) {
                (4, 0x1f) => Item::Array(None),
                (5, 0x1f) => Item::Map(None),
                (7, 20 | 21) => Item::Bool(short == 21),
                (7, 22 | 23) => Item::Null,
                (7, 25) => Item::Float(half(u16::from_be_bytes(self.array()?))),
                (7, 26) => Item::Float(f32::from_be_bytes(self.array()?).into()),
                (7, 27) => Item::Float(f64::from_be_bytes(self.array()?)),
                (7, _) => return Err(Fault::Head(head)),
                (_, _) => {
                    let number = self.number(head)?;
                    match major {
                        0 => Item::Unsigned(number),
                        1 => Item::Negative(negative(number)?),
                        2 => Item::Bytes(self.take(number)?),
                        3 => {
                            let text = str::from_utf8(self.take(number)?);
                            Item::Text(text.map_err(|_| Fault::Utf8)?)
                        }
                        4 => Item::Array(Some(number)),
                        5 => Item::Map(Some(number)),
                        _ => continue,
                    }
                }
            });
        }
    }

    /// Takes a null, where it is next.
    pub(super) fn take_null(&mut self) -> bool {
        match self.rest {
            [byte, rest @ ..] if NULLS.contains(byte) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// Passes over an item with all that it holds.
    pub(super) fn skip(&mut self) -> Result<(), Fault> {
        match self.next()? {
            Item::Array(count) => self.skip_all(count, 1),
            Item::Map(count) => self.skip_all(count, 2),
            Item::Unsigned(_)
            | Item::Negative(_)
            | Item::Bytes(_)
            | Item::Text(_)
            | Item::Bool(_)
            | Item::Null
            | Item::Float(_) => Ok(()),
        }
    }

    fn skip_all(&mut self, count: Option<u64>, each: u8) -> Result<(), Fault> {
        self.enter()?;
        let mut left = Left(count);
        while left.more(self)? {
            for _ in 0..each {
                self.skip()?;
            }
        }
        self.leave();
        Ok(())
    }

    /// Goes into an array or a map.
    pub(super) fn enter(&mut self) -> Result<(), Fault> {
        self.depth = self.depth.checked_sub(1).ok_or(Fault::Depth)?;
        Ok(())
    }

    /// Comes out of it.
    pub(super) fn leave(&mut self) {
        self.depth = self.depth.saturating_add(1);
    }

    /// The number that a head carries, in itself or behind it.
    fn number(&mut self, head: u8) -> Result<u64, Fault> {
        match head & 0x1f {
            short @ 0..24 => Ok(short.into()),
            24 => Ok(self.byte()?.into()),
            25 => Ok(u16::from_be_bytes(self.array()?).into()),
            26 => Ok(u32::from_be_bytes(self.array()?).into()),
            27 => Ok(u64::from_be_bytes(self.array()?)),
            _ => Err(Fault::Head(head)),
        }
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(Fault::End)?;
        self.rest = rest;
        Ok(*array)
    }

    fn take(&mut self, bytes: u64) -> Result<&'de [u8], Fault> {
        let bytes = usize::try_from(bytes).map_err(|_| Fault::End)?;
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(Fault::End)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// How many elements of an array, or pairs of a map, are still to come; None until a break.
pub(super) struct Left(pub(super) Option<u64>);

impl Left {
    /// Whether there is one more, which is counted off.
    #[inline(never)]
    pub(super) fn more(&mut self, items: &mut Items<'_>) -> Result<bool, Fault> {
        match &mut self.0 {
            Some(0) => Ok(false),
            Some(left) => {
                *left = left.saturating_sub(1);
                Ok(true)
            }
            None => match items.rest {
                [BREAK, rest @ ..] => {
                    items.rest = rest;
                    self.0 = Some(0);
                    Ok(false)
                }
                [] => Err(Fault::End),
                [..] => Ok(true),
            },
        }
    }
}

/// -1 - `number` (RFC 8949 section 3.1): nothing of ours is below what i64 holds.
fn negative(number: u64) -> Result<i64, Fault> {
    let number = i64::try_from(number).map_err(|_| de::Error::custom("a number is too small"))?;
    Ok(!number)
}

/// IEEE 754 binary16 (RFC 8949 appendix D).
fn half(bits: u16) -> f64 {
    let (exponent, mantissa) = ((bits >> 10) & 0x1f, f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => mantissa * 2_f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (mantissa + 1024.0) * 2_f64.powi(i32::from(exponent) - 25),
    };
    if bits >> 15 == 0 { size } else { -size }
}
