//! The API over TCP, with tokens.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use limpet_protocol::{DeviceId, Invitation, Purpose, Token};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use ureq::http::{HeaderMap, Method};

use super::auth::{Needs, ROUTES};
use super::*;
use crate::server::fleet::{JoinRefusal, Outgoing, Terms};
use crate::server::store::Store;
use crate::server::websocket::{Door, Guests};
use limpet_controller_core::Role;

mod audit;
mod malformed;

/// A controller's API.
struct Served {
    runtime: Runtime,
    fleet: Handle,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
    _to_publish: UnboundedReceiver<Outgoing>,
    folder: tempfile::TempDir,
}

/// What it answered.
struct Said {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Served {
    fn start(access: Access) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let keys = store.keys().unwrap();
        let (outgoing, _to_publish) = unbounded_channel();
        let (fleet, thread) = Fleet::start(store, keys, Duration::from_secs(60), outgoing).unwrap();
        let runtime = Runtime::new().unwrap();
        let door = Door { guests: Guests::default(), broker: ([127, 0, 0, 1], 1).into() };
        let served = service(fleet.clone(), access, Some(door));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async { axum::serve(listener, served).await });
        let served = Self { runtime, fleet, thread: Some(thread), address, _to_publish, folder };
        if access == Access::Tokens {
            let terms = Terms::sample(served.folder.path()).unwrap();
            served.call(|fleet| fleet.set_terms(terms));
        }
        served
    }

    fn call<T: Send + 'static>(&self, work: impl FnOnce(&mut Fleet) -> T + Send + 'static) -> T {
        self.runtime.block_on(self.fleet.call(work)).unwrap()
    }

    /// A first admin's token.
    fn admin(&self) -> String {
        let text = self.call(|fleet| fleet.make_login(true)).unwrap().unwrap();
        Invitation::parse(&text, Purpose::Login).unwrap().token.to_string()
    }

    /// A token that an admin makes.
    fn token(&self, admin: &str, request: &Value) -> String {
        let made = self.ask(Method::POST, "/api/v1/tokens", admin, Some(request));
        assert_eq!(made.status, 200, "{}", made.body);
        let purpose = if request["role"] == "join" { Purpose::Join } else { Purpose::Login };
        let invitation = Invitation::parse(made.body["text"].as_str().unwrap(), purpose).unwrap();
        assert_eq!(invitation.servers, ["limpet.example:8420"]);
        invitation.token.to_string()
    }

    fn ask(&self, method: Method, path: &str, token: &str, body: Option<&Value>) -> Said {
        let bearer = (!token.is_empty()).then(|| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> =
            bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        self.ask_with(method, path, &headers, body)
    }

    fn ask_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Said {
        let json = ("content-type", "application/json");
        let headers: Vec<_> = headers.iter().copied().chain(body.map(|_| json)).collect();
        let body = body.map(|body| body.to_string().into_bytes());
        self.ask_raw(method, path, &headers, body.as_deref())
    }

    fn ask_raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Said {
        let uri = format!("http://{}{path}", self.address);
        let mut request = ureq::http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .proxy(None)
            .build()
            .new_agent();
        let answered = match body {
            Some(body) => agent.run(request.body(body).unwrap()),
            None => agent.run(request.body(()).unwrap()),
        };
        let mut answer = answered.unwrap();
        let bytes = answer.body_mut().read_to_vec().unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Said { status: answer.status().as_u16(), headers: answer.headers().clone(), body }
    }

    fn get(&self, path: &str, token: &str) -> Said {
        self.ask(Method::GET, path, token, None)
    }

    /// The audit log: who, action, object and outcome of each entry.
    fn audit(&self, admin: &str) -> Vec<String> {
        let said = self.get("/api/v1/audit", admin);
        let line = |entry: &Value| {
            let field = |name: &str| entry[name].as_str().unwrap_or("-").to_owned();
            ["who", "action", "object", "outcome"].map(field).join(" | ")
        };
        said.body.as_array().unwrap().iter().map(line).collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.fleet.end();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn names_token(text: &str) -> bool {
    text.starts_with("token ") && text.split(' ').nth(1).is_some_and(|id| id.len() == 16)
}

#[test]
fn every_route_has_a_role_and_every_role_a_route() {
    let served = Served::start(Access::Tokens);
    let (_, document) = router(served.fleet.clone(), Access::Tokens, None);
    let document = serde_json::to_value(&document).unwrap();
    let mut routes: Vec<(String, String)> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().keys();
        let methods = methods.filter(|key| Method::from_bytes(key.as_bytes()).is_ok());
        routes.extend(methods.map(|method| (method.to_uppercase(), path.clone())));
    }
    // Not in the document: what serves it.
    let others = ["/api/v1/openapi.json", "/healthz", "/mqtt"];
    routes.extend(others.map(|path| ("GET".to_owned(), path.to_owned())));
    routes.sort();
    let mut known: Vec<(String, String)> =
        ROUTES.iter().map(|(m, path, _)| (m.to_string(), (*path).to_owned())).collect();
    known.sort();
    assert_eq!(routes, known);
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");

    // And each asks for it: without a token, and with one of a lesser role.
    let admin = served.admin();
    let viewer = served.token(&admin, &json!({"name": "eyes", "role": "viewer"}));
    let operator = served.token(&admin, &json!({"name": "hands", "role": "operator"}));
    for (method, path, needs) in ROUTES {
        let path = path.replace(['{', '}'], "");
        let said = served.ask(method.clone(), &path, "", None);
        if path == websocket::PATH {
            assert_eq!((said.status, said.body["error"].as_str()), (401, Some(websocket::NOBODY)));
            continue;
        }
        let Needs::Token(role) = needs else {
            assert!(!matches!(said.status, 401 | 403 | 429), "{method} {path}: {}", said.body);
            continue;
        };
        // The latter from the eleventh on: they are counted.
        assert!(matches!(said.status, 401 | 429), "{method} {path}: {}", said.body);
        for (token, has) in [(&viewer, Role::Viewer), (&operator, Role::Operator)] {
            let said = served.ask(method.clone(), &path, token, None);
            assert_eq!(said.status == 403, has < *role, "{method} {path}: {}", said.body);
        }
    }
    let said = served.ask(Method::PUT, "/api/v1/devices", &viewer, None);
    assert_eq!(said.status, 403, "a method that is nowhere needs an admin");
    assert_eq!(served.get("/healthz", "").status, 200);
    assert_eq!(served.get("/nowhere", "").status, 429);
    assert_eq!(served.get("/nowhere", &viewer).status, 404);
}

#[test]
fn who_is_not_let_in_is_told_why() {
    let served = Served::start(Access::Tokens);
    let admin = served.admin();
    let said = served.get("/api/v1/devices", "");
    assert_eq!(
        (said.status, &said.headers["www-authenticate"]),
        (401, &"Bearer realm=\"limpet\"".parse().unwrap())
    );
    let why = said.body["error"].as_str().unwrap();
    assert!(why.contains("asks for a token") && why.contains("limpet login"), "{why}");

    // The right id with another secret, another id, and no token at all.
    let token: Token = admin.parse().unwrap();
    let forged = Token { id: token.id, ..Token::generate().unwrap() };
    for (wrong, why) in [
        (forged.to_string(), "this token is wrong"),
        (Token::generate().unwrap().to_string(), "this token is wrong"),
        ("limpet_x".to_owned(), "asks for a token"),
    ] {
        let said = served.get("/api/v1/devices", &wrong);
        assert_eq!(said.status, 401);
        assert!(said.body["error"].as_str().unwrap().contains(why), "{}", said.body);
    }
    let join = served.token(&admin, &json!({"name": "new", "role": "join"}));
    let said = served.get("/api/v1/devices", &join);
    assert_eq!(said.body["error"], "this token is for joining, not for the API");

    let ci = served.token(&admin, &json!({"name": "ci", "role": "operator"}));
    let said = served.get("/api/v1/tokens", &ci);
    assert_eq!(said.status, 403);
    assert_eq!(
        said.body["error"],
        "this needs the role admin; the token ci has operator: ask an admin for one of `limpet \
         token create --role admin`"
    );
    let id = ci.parse::<Token>().unwrap().id;
    let revoked = served.ask(Method::DELETE, &format!("/api/v1/tokens/{id}"), &admin, None);
    assert_eq!(revoked.body["status"], "revoked");
    let said = served.get("/api/v1/devices", &ci);
    assert_eq!(said.status, 401);
    assert!(said.body["error"].as_str().unwrap().starts_with("this token was revoked at 20"));
    assert!(said.headers["www-authenticate"].to_str().unwrap().contains("invalid_token"));
    let said = served.ask(Method::DELETE, "/api/v1/tokens/0000000000000000", &admin, None);
    assert_eq!(said.status, 404);
}

#[test]
fn pages_of_other_sites_are_not_served_with_tokens_or_without() {
    for access in [Access::Open, Access::Tokens] {
        let served = Served::start(access);
        let admin = match access {
            Access::Open => String::new(),
            Access::Tokens => format!("Bearer {}", served.admin()),
        };
        let own = format!("http://{}", served.address);
        for (header, value, status) in [
            ("origin", "http://evil.example", 403),
            ("sec-fetch-site", "cross-site", 403),
            ("sec-fetch-site", "same-site", 403),
            ("sec-fetch-site", "same-origin", 200),
            ("origin", own.as_str(), 200),
        ] {
            let headers = [("authorization", admin.as_str()), (header, value)];
            let said = served.ask_with(Method::GET, "/api/v1/version", &headers, None);
            assert_eq!(said.status, status, "{access:?} {header}: {value}: {}", said.body);
        }
    }
    let open = Served::start(Access::Open);
    let named = [("host", "limpet.example")];
    assert_eq!(open.ask_with(Method::GET, "/api/v1/version", &named, None).status, 403);
    let request = json!({"name": "x", "role": "admin"});
    let said = open.ask(Method::POST, "/api/v1/tokens", "", Some(&request));
    assert_eq!(said.status, 409);
    assert!(said.body["error"].as_str().unwrap().contains("--insecure"), "{}", said.body);
}

#[test]
fn wrong_tokens_are_counted_and_right_ones_are_let_in() {
    let served = Served::start(Access::Tokens);
    let admin = served.admin();
    let wrong = || served.get("/api/v1/devices", &Token::generate().unwrap().to_string());
    let first: Vec<u16> = (0..10).map(|_| wrong().status).collect();
    assert_eq!(first, [401; 10]);
    let said = wrong();
    assert_eq!(said.status, 429, "{}", said.body);
    let wait_s: u64 = said.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=6).contains(&wait_s), "{wait_s}");
    assert!(said.body["error"].as_str().unwrap().starts_with("too many wrong tokens"));
    // Join tokens are counted with them.
    let from = served.address;
    let device: DeviceId = "dev-1".parse().unwrap();
    let refused = served.call(move |fleet| {
        let token = Token::generate().unwrap();
        fleet.use_join_token(&token, &device, from).unwrap_err()
    });
    assert!(matches!(refused, JoinRefusal::Failures(1..=6)), "{refused:?}");
    assert_eq!(served.get("/api/v1/devices", &admin).status, 200);
    let log = served.audit(&admin);
    let logins = log.iter().filter(|line| line.starts_with("stranger | login | GET "));
    assert_eq!(logins.count(), 1, "the rest are told of together: {log:#?}");
}

#[test]
fn what_is_changed_is_in_the_audit_log() {
    let served = Served::start(Access::Tokens);
    let admin = served.admin();
    let ci = served.token(&admin, &json!({"name": "ci", "role": "operator", "ttl_s": 60}));
    let apply = |body: &Value| served.ask(Method::POST, "/api/v1/deployments", &ci, Some(body));
    assert_eq!(apply(&json!({"name": "web", "image": "one"})).status, 200);
    assert_eq!(apply(&json!({"name": "web", "image": "two"})).status, 200);
    assert_eq!(apply(&json!({"name": "web", "image": "two"})).status, 200);
    assert_eq!(apply(&json!({"name": "web", "imagine": "two"})).status, 422);
    let scale = json!({"replicas": 3});
    served.ask(Method::POST, "/api/v1/deployments/web/scale", &ci, Some(&scale));
    served.ask(Method::DELETE, "/api/v1/deployments/web", &ci, None);
    served.get("/api/v1/backup", &admin);

    let log = served.get("/api/v1/audit", &admin).body;
    let log = log.as_array().unwrap();
    let said: Vec<[&str; 3]> = log
        .iter()
        .map(|entry| ["action", "object", "outcome"].map(|f| entry[f].as_str().unwrap()))
        .collect();
    let web = "deployment/web";
    let id = ci.parse::<Token>().unwrap().id;
    assert_eq!(said[1], ["token.create", &format!("token/{id}"), "ok"]);
    assert_eq!(said[2], ["deployment.apply", web, "created"]);
    assert_eq!(said[3], ["deployment.apply", web, "updated"]);
    assert_eq!(said[4], ["deployment.apply", web, "unchanged"]);
    assert!(said[5][2].starts_with("refused: image: is missing"), "{said:?}");
    assert_eq!(said[6], ["deployment.scale", web, "updated"]);
    assert_eq!(said[7], ["deployment.delete", web, "deleted"]);
    assert_eq!(said[8], ["backup.take", "store", "ok"]);
    assert_eq!(log.len(), 9);
    assert_eq!(log[3]["before"], "name: web\nimage: one\nreplicas: 1\nrestart: always\n");
    assert_eq!(log[3]["after"], "name: web\nimage: two\nreplicas: 1\nrestart: always\n");
    assert_eq!(log[3]["who"], format!("token {id} ci"));
    assert!(log[3]["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(log[7]["before"].as_str().unwrap().contains("replicas: 3\n"));
    assert_eq!(served.get("/api/v1/audit?limit=1", &admin).body[0]["seq"], 9);

    // No secret is in the store: neither a token's text, nor its bytes.
    let secret = ci.parse::<Token>().unwrap().secret;
    for name in ["limpet.db", "limpet.db-wal"] {
        let bytes = std::fs::read(served.folder.path().join(name)).unwrap();
        for secret in [ci.as_bytes(), secret.as_slice()] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{name}");
        }
    }
}

#[test]
fn a_restricted_token_changes_and_sees_what_it_is_restricted_to() {
    let served = Served::start(Access::Tokens);
    let admin = served.admin();
    let berlin = json!({"name": "berlin", "role": "operator", "select": {"site": "berlin"}});
    let berlin = served.token(&admin, &berlin);
    let apply = |token: &str, name: &str, select: Value| {
        let body = json!({"name": name, "image": "box", "select": select});
        served.ask(Method::POST, "/api/v1/deployments", token, Some(&body))
    };
    assert_eq!(apply(&admin, "moon", json!({"site": "moon"})).status, 200);
    assert_eq!(apply(&admin, "all", json!({})).status, 200);
    assert_eq!(apply(&berlin, "ours", json!({"site": "berlin", "x": "y"})).status, 200);
    let refused = [
        apply(&berlin, "wide", json!({})),
        apply(&berlin, "other", json!({"site": "moon"})),
        // Not even to make it theirs.
        apply(&berlin, "moon", json!({"site": "berlin"})),
    ];
    for said in refused {
        assert_eq!(said.status, 403);
        let why = said.body["error"].as_str().unwrap();
        assert!(why.contains("only deployments that select site=berlin"), "{why}");
    }
    let names = |token: &str| -> Vec<String> {
        let said = served.get("/api/v1/deployments", token).body;
        said.as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&berlin), ["ours"]);
    assert_eq!(names(&admin), ["all", "moon", "ours"]);
    for path in ["/api/v1/deployments/moon", "/api/v1/deployments/moon/manifest"] {
        assert_eq!(served.get(path, &berlin).status, 404);
    }
    let scale = json!({"replicas": 3});
    for name in ["moon", "all"] {
        let path = format!("/api/v1/deployments/{name}");
        assert_eq!(served.ask(Method::DELETE, &path, &berlin, None).status, 404);
        let path = format!("{path}/scale");
        assert_eq!(served.ask(Method::POST, &path, &berlin, Some(&scale)).status, 404);
    }
    let log = served.audit(&admin).join("\n");
    for line in [
        "deployment.apply | deployment/moon | refused: this token may change only",
        "deployment.delete | deployment/all | refused: there is no such deployment",
        "deployment.scale | deployment/moon | refused: there is no such deployment",
    ] {
        assert!(log.contains(line), "{line}\n{log}");
    }
    let events = served.get("/api/v1/events", &berlin).body;
    let about: Vec<&str> =
        events.as_array().unwrap().iter().map(|e| e["deployment"].as_str().unwrap()).collect();
    assert_eq!(about, ["ours"]);
    assert_eq!(names(&admin), ["all", "moon", "ours"]);
    let who = served.get("/api/v1/whoami", &berlin).body;
    assert_eq!((&who["role"], &who["select"]), (&json!("operator"), &json!({"site": "berlin"})));
    assert!(names_token(who["who"].as_str().unwrap()));
}

#[test]
fn a_join_token_is_used_up_and_says_so() {
    let served = Served::start(Access::Tokens);
    let admin = served.admin();
    let request = json!({"name": "rack", "role": "join", "uses": 2, "labels": {"site": "berlin"},
        "require_approval": true});
    let token: Token = served.token(&admin, &request).parse().unwrap();
    let from = served.address;
    let join = |token: &Token, device: &str| {
        let (token, device): (_, DeviceId) = (token.clone(), device.parse().unwrap());
        served.call(move |fleet| fleet.use_join_token(&token, &device, from))
    };
    let grant = join(&token, "dev-1").unwrap();
    assert_eq!(
        (grant.token, grant.name.as_str(), grant.require_approval),
        (token.id, "rack", true)
    );
    let labels = serde_json::to_value(&grant.labels).unwrap();
    assert_eq!(labels, json!({"site": "berlin"}));
    join(&token, "dev-2").unwrap();
    assert_eq!(join(&token, "dev-3"), Err(JoinRefusal::UsedUp));
    assert_eq!(join(&token, "dev-3"), Err(JoinRefusal::UsedUp));
    let forged = Token { id: token.id, ..Token::generate().unwrap() };
    assert_eq!(join(&forged, "dev-4"), Err(JoinRefusal::Unknown));
    let viewer: Token = admin.parse().unwrap();
    assert_eq!(join(&viewer, "dev-5"), Err(JoinRefusal::Purpose("admin".to_owned())));
    let next: Token = served.token(&admin, &json!({"name": "b", "role": "join"})).parse().unwrap();
    served.ask(Method::DELETE, &format!("/api/v1/tokens/{}", next.id), &admin, None);
    let why = join(&next, "dev-6").unwrap_err().to_string();
    assert!(why.starts_with("the join token was revoked at 20"), "{why}");

    let log = served.audit(&admin).join("\n");
    let id = token.id;
    for line in [
        format!("device dev-1 | device.join | device/dev-1 | admitted by token {id} rack"),
        "device dev-3 | device.join | device/dev-3 | refused: the join token is used up".to_owned(),
        "device dev-4 | device.join | device/dev-4 | refused: the join token is wrong".to_owned(),
        "device dev-6 | device.join | device/dev-6 | refused: the join token was revoked"
            .to_owned(),
    ] {
        assert!(log.contains(&line), "{line}\n{log}");
    }
    assert_eq!(log.matches("refused: the join token is used up").count(), 1, "{log}");
    let listed = served.get("/api/v1/tokens", &admin).body;
    let listed: Vec<&str> =
        listed.as_array().unwrap().iter().map(|t| t["status"].as_str().unwrap()).collect();
    assert_eq!(listed, ["good", "used up", "revoked"]);
}

#[test]
fn a_secret_is_set_by_who_is_not_restricted_and_is_told_to_nobody() {
    let served = Served::start(Access::Tokens);
    let admin = served.admin();
    let ci = served.token(&admin, &json!({"name": "ci", "role": "operator"}));
    let berlin = json!({"name": "berlin", "role": "operator", "select": {"site": "berlin"}});
    let berlin = served.token(&admin, &berlin);
    let path = "/api/v1/secrets/db";
    let set = |token: &str, value: &str| {
        served.ask(Method::PUT, path, token, Some(&json!({"password": value})))
    };
    assert_eq!(set(&berlin, "hunter1").status, 403);
    assert_eq!(set(&ci, "hunter2").body["version"], 1);
    assert_eq!(set(&ci, "hunter3").body["version"], 2);
    let apply = |token: &str, image: &str, secrets: Value| {
        let select = json!({"site": "berlin"});
        let body = json!({"name": "ours", "image": image, "select": select, "secrets": secrets});
        served.ask(Method::POST, "/api/v1/deployments", token, Some(&body))
    };
    // Nobody takes a secret that the deployment was not given; whoever may change it keeps it.
    let said = apply(&berlin, "box", json!(["db"]));
    let why = said.body["faults"][0]["message"].as_str().unwrap();
    assert_eq!(said.status, 422);
    assert!(why.contains("does not have the secret db yet"), "{why}");
    assert_eq!(served.get("/api/v1/secrets", &berlin).body, json!([]));
    assert_eq!(apply(&ci, "box", json!(["db"])).status, 200);
    assert_eq!(apply(&berlin, "another", json!(["db"])).status, 200);
    assert_eq!(apply(&berlin, "another", json!(["db", "none"])).status, 422);
    let seen = served.get("/api/v1/secrets", &berlin).body;
    assert_eq!((&seen[0]["name"], &seen[0]["version"]), (&json!("db"), &json!(2)));
    assert_eq!(served.ask(Method::DELETE, path, &berlin, None).status, 403);
    assert_eq!(served.ask(Method::DELETE, path, &ci, None).status, 409);
    assert_eq!(set(&ci, "hunter4").body["deployments"][0]["action"], "updated");
    served.ask(Method::DELETE, "/api/v1/deployments/ours", &ci, None);
    assert_eq!(served.ask(Method::DELETE, path, &ci, None).status, 204);
    assert_eq!(served.ask(Method::DELETE, path, &ci, None).status, 404);
    let log = served.audit(&admin).join("\n");
    for line in [
        "secret.set | secret/db | refused: this token is restricted to site=berlin",
        "secret.set | secret/db | ok",
        "secret.delete | secret/db | refused: the secret db is in use: ours name it",
        "secret.delete | secret/db | ok",
    ] {
        assert!(log.contains(line), "{line}\n{log}");
    }
    for path in ["/api/v1/audit", "/api/v1/events", "/api/v1/secrets", "/api/v1/deployments"] {
        assert!(!served.get(path, &admin).body.to_string().contains("hunter"), "{path}");
    }
    for name in ["limpet.db", "limpet.db-wal"] {
        let bytes = std::fs::read(served.folder.path().join(name)).unwrap();
        assert!(!bytes.windows(6).any(|part| part == b"hunter"), "{name}");
    }
}
