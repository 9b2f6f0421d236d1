//! What is read, beside what serde_cbor reads, and what is refused.

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_cbor::Value;

use super::*;

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    decode(bytes, bytes.len()).map_err(|e| e.to_string())
}

/// What we refuse and serde_cbor does not: strings in pieces, and numbers that are below i64.
fn is_ours_alone(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| [0x5f, 0x7f, 0x3b].contains(byte))
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|number| Value::Integer(number.into())),
        any::<u64>().prop_map(|number| Value::Integer(number.into())),
        any::<i8>().prop_map(|number| Value::Integer(number.into())),
        any::<f64>().prop_map(Value::Float),
        any::<f32>().prop_map(|number| Value::Float(number.into())),
        (0..2048_i32).prop_map(|number| Value::Float(f64::from(number) / 64.0)),
        any::<Vec<u8>>().prop_map(Value::Bytes),
        any::<String>().prop_map(Value::Text),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..30).prop_map(Value::Array),
            prop::collection::btree_map(inner.clone(), inner, 0..8).prop_map(Value::Map),
        ]
    })
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Choice {
    Nothing,
    One(u8),
    Pair(i16, String),
    Named {
        of: Option<f32>,
        #[serde(default)]
        list: Vec<(u64, char)>,
    },
}

proptest! {
    #[test]
    fn what_was_written_reads_as_serde_cbor_reads_it(value in values()) {
        let bytes = encode(&value);
        let theirs: Value = serde_cbor::from_slice(&bytes).unwrap();
        prop_assert_eq!(format!("{:?}", read::<Value>(&bytes).unwrap()), format!("{theirs:?}"));
        let all_but_last = &bytes[..bytes.len() - 1];
        prop_assert!(read::<Value>(all_but_last).is_err());
        prop_assert!(read::<serde::de::IgnoredAny>(&bytes).is_ok());
    }

    #[test]
    fn noise_reads_as_serde_cbor_reads_it(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
        match (read::<Value>(&bytes), serde_cbor::from_slice::<Value>(&bytes)) {
            (Ok(ours), Ok(theirs)) => {
                prop_assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
            }
            (Ok(ours), Err(_)) => prop_assert!(false, "{ours:?} is read"),
            (Err(error), Ok(_)) => prop_assert!(is_ours_alone(&bytes), "{error}"),
            (Err(_), Err(_)) => {}
        }
    }

    #[test]
    fn choices_read_back(
        number in any::<i16>(),
        text in any::<String>(),
        of in any::<Option<f32>>(),
        list in any::<Vec<(u64, char)>>(),
    ) {
        for choice in [
            Choice::Nothing,
            Choice::One(7),
            Choice::Pair(number, text),
            Choice::Named { of, list },
        ] {
            prop_assert_eq!(read::<Choice>(&encode(&choice)), Ok(choice));
        }
    }
}

#[test]
fn what_has_no_length_is_read() {
    // RFC 8949 appendix A, and a struct as writers have it that do not count first.
    assert_eq!(read(&[0x9f, 1, 0x82, 2, 3, 0x9f, 4, 5, 0xff, 0xff]), Ok((1, (2, 3), (4, 5))));
    let map = [0xbf, 0x65, b'N', b'a', b'm', b'e', b'd', 0xbf, 0x62, b'o', b'f', 0xf6, 0xff, 0xff];
    assert_eq!(read(&map), Ok(Choice::Named { of: None, list: vec![] }));
    assert_eq!(read(&[0xc1, 0x1a, 0x51, 0x4b, 0x67, 0xb0]), Ok(1_363_896_240));
}

#[test]
fn what_cannot_be_read_says_why_and_where() {
    let of_u8 = |bytes: &[u8]| read::<Vec<u8>>(bytes).unwrap_err();
    let deep = [0x81; 200];
    let lines = [
        of_u8(&[]),
        of_u8(&[0x82, 1]),
        of_u8(&[0x81, 1, 2]),
        of_u8(&[0x82, 1, 0x19, 1, 0]),
        of_u8(&[0x81, 0x62, b'h', b'i']),
        of_u8(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        of_u8(&[0xfc]),
        read::<(u8, u8)>(&[0x83, 1, 2, 3]).unwrap_err(),
        read::<Value>(&[0x62, 0xc3, 0x28]).unwrap_err(),
        read::<Value>(&[0x3b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).unwrap_err(),
        read::<Value>(&deep).unwrap_err(),
        read::<serde::de::IgnoredAny>(&deep).unwrap_err(),
        read::<Choice>(&[0xa0]).unwrap_err(),
        read::<Choice>(&[0x61, b'x']).unwrap_err(),
    ];
    expect_test::expect![[r#"
        malformed CBOR: it ends early, at byte 0
        malformed CBOR: it ends early, at byte 2
        malformed CBOR: bytes follow it, at byte 2
        malformed CBOR: invalid value: integer `256`, expected u8, at byte 5
        malformed CBOR: invalid type: string "hi", expected u8, at byte 4
        malformed CBOR: it ends early, at byte 9
        malformed CBOR: 0xfc begins no item, at byte 1
        malformed CBOR: more elements than expected, at byte 3
        malformed CBOR: a text is not UTF-8, at byte 3
        malformed CBOR: a number is too small, at byte 9
        malformed CBOR: it is nested deeper than 128, at byte 129
        malformed CBOR: it is nested deeper than 128, at byte 129
        malformed CBOR: invalid type: map, expected enum Choice, at byte 1
        malformed CBOR: unknown variant `x`, expected one of `Nothing`, `One`, `Pair`, `Named`, at byte 2"#]].assert_eq(&lines.join("\n"));
}
