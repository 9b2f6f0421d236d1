//! What was refused is in the audit log, and does not fill it.

use super::*;
use crate::server::fleet::{Caller, Who};

#[test]
fn what_is_refused_again_and_again_is_written_once() {
    let served = Served::start(Access::Tokens);
    let admin = served.admin();
    let ci = served.token(&admin, &json!({"name": "ci", "role": "operator"}));
    let publisher: Token = ci.parse().unwrap();
    let again = 3;
    for _ in 0..again {
        let bad = json!({"name": "web", "imagine": "two"});
        assert_eq!(served.ask(Method::POST, "/api/v1/deployments", &ci, Some(&bad)).status, 422);
        let choice = json!({"choice": "adopt", "devices": ["nobody"]});
        assert_eq!(served.ask(Method::POST, "/api/v1/recover", &admin, Some(&choice)).status, 409);
        let policy = json!({"digest": 7});
        assert_eq!(served.ask(Method::PUT, "/api/v1/policy", &admin, Some(&policy)).status, 422);
        let by = Caller {
            who: Who::Publisher { name: "belt".to_owned(), token: publisher.id },
            from: Some(served.address),
        };
        let topic = "limpet/v1/deploy/belt";
        served.call(move |fleet| fleet.manifest_published(&by, topic, b"imagine: two")).unwrap();
    }
    let log = served.audit(&admin).join("\n");
    for line in [
        "deployment.apply | deployment/ | refused: image: is missing",
        "deployment.apply | deployment/belt | refused: line 1: image: is missing",
        "recover.adopt | device | refused: there is no device nobody",
        "policy.set | policy | refused: digest",
    ] {
        assert_eq!(log.matches(line).count(), 1, "{line}\n{log}");
    }
}

#[test]
fn a_policy_that_was_refused_never_held() {
    let served = Served::start(Access::Tokens);
    let admin = served.admin();
    let set = |query: &str| {
        let policy = json!({"digest": "required"});
        let path = format!("/api/v1/policy{query}");
        served.ask(Method::PUT, &path, &admin, Some(&policy)).status
    };
    let web = json!({"name": "web", "image": "box"});
    assert_eq!(served.ask(Method::POST, "/api/v1/deployments", &admin, Some(&web)).status, 200);
    assert_eq!([set(""), set("?force=true")], [409, 200]);
    let log = served.get("/api/v1/audit?name=policy", &admin).body;
    let told: Vec<_> =
        log.as_array().unwrap().iter().map(|e| (&e["outcome"], &e["after"])).collect();
    assert_eq!(told[0], (&json!("refused: 1 deployments break it"), &Value::Null));
    assert_eq!(told[1], (&json!("ok"), &json!("digest: required\n")));
    assert_eq!(told.len(), 2);
}
