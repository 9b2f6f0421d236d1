//! What tokens may be, and when they end.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]

use std::collections::BTreeMap;

use limpet_controller_core::token::{
    API_TTL_MS, Ended, Grant, JOIN_TTL_MS, JOIN_TTL_MS_MAX, PUBLISHER_TTL_MS, PublisherWish, Role,
    Scope, TTL_MS_MAX, TokenRecord, Ttl, Wish,
};
use limpet_protocol::{Digest, Labels, cbor};

const NOW_MS: u64 = 1_000_000;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn wish(role: &str) -> Wish {
    Wish { name: "it".to_owned(), role: role.to_owned(), ..Wish::default() }
}

fn record(wish: Wish) -> TokenRecord {
    wish.record(NOW_MS, Digest([1; 32])).unwrap()
}

fn why(wish: Wish) -> String {
    wish.record(NOW_MS, Digest([1; 32])).unwrap_err().to_string()
}

#[test]
fn what_is_not_said_is_safe() {
    let join = record(wish("join"));
    assert_eq!(join.expires_ms, Some(NOW_MS + JOIN_TTL_MS));
    let once = Grant::Join { uses_left: 1, labels: Labels::new(), require_approval: false };
    assert_eq!(join.grant, once);
    let viewer = record(wish("viewer"));
    assert_eq!(viewer.expires_ms, Some(NOW_MS + API_TTL_MS));
    assert_eq!(viewer.grant, Grant::Api { role: Role::Viewer, scope: Scope::default() });
    assert_eq!(record(Wish { ttl: Some(Ttl::Never), ..wish("admin") }).expires_ms, None);
}

#[test]
fn what_must_not_be_is_refused_with_the_reason() {
    let ttl = |role, ttl| Wish { ttl: Some(ttl), ..wish(role) };
    let select = |role| Wish { select: map(&[("site", "berlin")]), ..wish(role) };
    let long = "x".repeat(64);
    let refused = [
        (ttl("join", Ttl::Never), "a join token must end: within 30 days"),
        (ttl("join", Ttl::Ms(JOIN_TTL_MS_MAX + 1)), "a join token must end: within 30 days"),
        (ttl("viewer", Ttl::Ms(0)), "a token must live for a while"),
        (ttl("join", Ttl::Ms(0)), "a token must live for a while"),
        (ttl("viewer", Ttl::Ms(TTL_MS_MAX + 1)), "its time to live is too long: at most 3650 days"),
        (Wish { uses: Some(0), ..wish("join") }, "a join token is for 1 to 100000 devices"),
        (Wish { uses: Some(2), ..wish("viewer") }, "uses goes with role join only"),
        (Wish { require_approval: true, ..wish("admin") }, "require_approval goes with role join"),
        (select("admin"), "an admin token cannot be restricted"),
        (select("join"), "select goes with a role of the API only"),
        (wish("root"), "there is no role \"root\": it is viewer, operator, admin or join"),
        (wish("publisher"), "publishers get a certificate"),
        (Wish { name: String::new(), ..wish("viewer") }, "a token's name has 1 to 64"),
        (Wish { name: "a\nb".to_owned(), ..wish("viewer") }, "a token's name has 1 to 64"),
        (Wish { labels: map(&[("site", &long)]), ..wish("join") }, "label \"site=xxx"),
        (Wish { select: map(&[("", "x")]), ..wish("viewer") }, "label \"=x\""),
    ];
    for (wish, expected) in refused {
        let why = why(wish);
        assert!(why.starts_with(expected), "{why}");
    }
}

#[test]
fn a_token_ends_by_time_by_use_and_by_revocation() {
    let mut join = record(Wish { uses: Some(2), ..wish("join") });
    let end_ms = NOW_MS + JOIN_TTL_MS;
    assert_eq!([join.ended(NOW_MS), join.ended(end_ms - 1)], [None, None]);
    assert_eq!(join.ended(end_ms), Some(Ended::Expired(end_ms)));
    join.used();
    assert_eq!(join.ended(NOW_MS), None);
    join.used();
    assert_eq!(join.ended(end_ms), Some(Ended::UsedUp));
    join.used();
    join.revoked_ms = Some(NOW_MS + 1);
    assert_eq!(join.ended(NOW_MS + 2), Some(Ended::Revoked(NOW_MS + 1)));
}

#[test]
fn a_scope_is_all_its_labels() {
    let scope = Scope(map(&[("rack", "2"), ("site", "berlin")]));
    assert_eq!(scope.to_string(), "rack=2,site=berlin");
    let device = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    };
    assert!(scope.has_device(&device(&[("a", "b"), ("rack", "2"), ("site", "berlin")])));
    assert!(!scope.has_device(&device(&[("rack", "3"), ("site", "berlin")])));
    assert!(!scope.has_device(&device(&[("site", "berlin")])));
    assert!(scope.has_select(&map(&[("rack", "2"), ("site", "berlin"), ("x", "y")])));
    assert!(!scope.has_select(&map(&[("site", "berlin")])));
    assert!(Scope::default().has_device(&Labels::new()) && Scope::default().is_all());
}

#[test]
fn roles_grow() {
    assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
}

#[test]
fn records_keep_their_bytes() {
    let viewer = Wish { select: map(&[("site", "berlin")]), ..wish("viewer") };
    let join = Wish { labels: map(&[("site", "berlin")]), uses: Some(9), ..wish("join") };
    let records = [record(viewer), record(join), record(wish("admin"))];
    let publisher = TokenRecord { grant: Grant::Publisher, ..record(wish("admin")) };
    for known in records.iter().chain([&publisher]) {
        let read: TokenRecord = cbor::decode(&cbor::encode(known), 4096).unwrap();
        assert_eq!(&read, known);
    }
    let hex: String =
        records.iter().flat_map(cbor::encode).map(|byte| format!("{byte:02x}")).collect();
    expect_test::expect!["a6646e616d65626974656772616e74a163617069a264726f6c65667669657765726573636f7065a16473697465666265726c696e676d6164655f6d731a000f42406a657870697265735f6d731b00000001cf8b9a406a7265766f6b65645f6d73f6646861736858200101010101010101010101010101010101010101010101010101010101010101a6646e616d65626974656772616e74a1646a6f696ea369757365735f6c65667409666c6162656c73a16473697465666265726c696e70726571756972655f617070726f76616cf4676d6164655f6d731a000f42406a657870697265735f6d731a004630c06a7265766f6b65645f6d73f6646861736858200101010101010101010101010101010101010101010101010101010101010101a6646e616d65626974656772616e74a163617069a264726f6c656561646d696e6573636f7065a0676d6164655f6d731a000f42406a657870697265735f6d731b00000001cf8b9a406a7265766f6b65645f6d73f6646861736858200101010101010101010101010101010101010101010101010101010101010101"].assert_eq(&hex);
}

#[test]
fn a_publisher_has_a_name_a_key_and_an_end() {
    let key = "0d".repeat(32);
    let publisher = |name, key, ttl_ms| PublisherWish { name, key, ttl_ms }.record(NOW_MS);
    let (record, _) = publisher("ci", &key, None).unwrap();
    assert_eq!(record.expires_ms, Some(NOW_MS + PUBLISHER_TTL_MS));
    assert_eq!(record.grant, Grant::Publisher);
    let (record, _) = publisher("ci", &key, Some(TTL_MS_MAX)).unwrap();
    assert_eq!(record.expires_ms, Some(NOW_MS + TTL_MS_MAX));
    for (name, key, ttl_ms, why) in [
        ("ci", key.as_str(), Some(0), "a token must live for a while"),
        ("ci", &key, Some(u64::MAX), "its time to live is too long: at most 3650 days"),
        ("ci", "0d", None, "a publisher's key is an Ed25519 public key"),
        ("C I", &key, None, "publisher \"C I\": use lower-case letters"),
    ] {
        let said = publisher(name, key, ttl_ms).unwrap_err().to_string();
        assert!(said.starts_with(why), "{name} {ttl_ms:?}: {said}");
    }
}
