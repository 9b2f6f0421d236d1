//! Whatever a request is, what is wrong with it is told in one form.

use super::*;

/// What was said of a request that must not succeed: an error, or the faults of a document.
fn why(said: &Said) -> String {
    assert!((400..500).contains(&said.status), "{}: {}", said.status, said.body);
    let fault = || said.body["faults"][0]["message"].as_str();
    let why = said.body["error"].as_str().or_else(fault);
    why.unwrap_or_else(|| panic!("{}: {}", said.status, said.body)).to_owned()
}

#[test]
fn every_route_says_what_is_wrong_with_a_request() {
    let served = Served::start(Access::Tokens);
    let bearer = format!("Bearer {}", served.admin());
    let json = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let large = [b"[".as_slice(), &vec![b' '; BODY_BYTES_MAX], b"]"].concat();
    let wrong =
        br#"{"replicas": "three", "choice": 5, "name": [], "role": {}, "key": 1, "digest": 7}"#;
    let bodies: [(&str, &[u8]); 5] = [
        ("broken", br#"{"replicas": "#),
        ("of wrong types", wrong),
        ("not UTF-8", b"\"\xff\xfe\""),
        ("empty", b""),
        ("large", &large),
    ];
    for (method, route, _) in ROUTES {
        let path = route.replace(['{', '}'], "");
        if route.contains('{') {
            let (before, rest) = route.split_once('{').unwrap();
            let rest = rest.split_once('}').unwrap().1.replace(['{', '}'], "");
            let path = format!("{before}%ff{rest}");
            let why = why(&served.ask_raw(method.clone(), &path, &json, None));
            assert!(why.contains("UTF-8"), "{method} {route}: {why}");
        }
        if !matches!(*method, Method::POST | Method::PUT) {
            continue;
        }
        // These take no body, or any.
        let takes_any = ["/approve", "/revoke", "/secrets/{name}", "/signing-key"];
        if takes_any.iter().any(|end| route.ends_with(end)) {
            continue;
        }
        for (what, body) in bodies {
            let said = served.ask_raw(method.clone(), &path, &json, Some(body));
            // An empty policy is one.
            if (what, *route) == ("empty", "/api/v1/policy") {
                continue;
            }
            let why = why(&said);
            assert!(!why.is_empty(), "{method} {route}, {what}");
            // Programs are larger than documents.
            let is_large = what == "large" && !route.starts_with("/api/v1/agents");
            assert_eq!(said.status == 413, is_large, "{method} {route}, {what}: {why}");
        }
        let other = served.ask_raw(Method::PATCH, &path, &json, None);
        assert_eq!((other.status, why(&other).is_empty()), (405, false), "{route}");
        assert!(other.headers.contains_key("allow"), "{route}");
    }
    let said = served.ask_raw(Method::PUT, "/api/v1/secrets/db", &json, Some(&large));
    assert_eq!(
        (said.status, why(&said).as_str()),
        (413, "the body is too large: at most 65536 bytes")
    );
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let served = Served::start(Access::Tokens);
    let admin = served.admin();
    for (path, what) in [
        ("/api/v1/events?limit=abc", "limit: invalid digit"),
        ("/api/v1/events?after=-1", "after: invalid digit"),
        ("/api/v1/audit?limit=abc", "limit: invalid digit"),
        ("/api/v1/workloads/dev-0/web-0/logs?tail=x", "tail: invalid digit"),
        ("/api/v1/workloads/dev-0/web-0/logs?follow=x", "follow: provided string was not"),
    ] {
        let said = why(&served.get(path, &admin));
        assert!(said.contains(what), "{path}: {said}");
    }
    let scale = json!({"replicas": "three"});
    let said = served.ask(Method::POST, "/api/v1/deployments/web/scale", &admin, Some(&scale));
    let said = why(&said);
    assert!(said.contains("replicas: invalid type: string") && said.contains("column"), "{said}");
    let token = json!({"name": "x", "role": "viewer", "tll_s": 5});
    let said = why(&served.ask(Method::POST, "/api/v1/tokens", &admin, Some(&token)));
    assert!(said.contains("unknown field `tll_s`"), "{said}");
}
