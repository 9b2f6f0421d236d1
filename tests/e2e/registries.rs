//! Registries that ask who we are, and that must show who they are.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use limpet_tests::{
    Agent, Fleet, Image, Process, Proxy, Registry, eventually, free_port, json, run,
};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

/// `user:secret`, as HTTP carries it.
const BASIC: &str = "dXNlcjpzZWNyZXQ=";

/// Two devices: one has credentials for a registry, the other has none.
fn devices(fleet: &mut Fleet, registry: &str) {
    let credentials = format!(r#"{{"auths": {{"{registry}": {{"auth": "{BASIC}"}}}}}}"#);
    let credentials = fleet.lab.file("credentials.json", credentials).display().to_string();
    let known = format!("[registries]\ncredentials = '{credentials}'\n[labels]\nknown = 'yes'\n");
    fleet.agents.push(Agent::with_config(&fleet.lab, "known", &fleet.controller, &known));
    fleet.agents.push(Agent::with_config(
        &fleet.lab,
        "stranger",
        &fleet.controller,
        "[labels]\nknown = 'no'\n",
    ));
    fleet.until_online(2);
}

/// The device with credentials gets the image; the other one says what it lacks.
fn check(fleet: &Fleet, registry: &str) -> String {
    let image = format!("--image={registry}/private/box:1");
    fleet.controller.ok(&["run", "web", &image, "--select", "known=yes"]);
    fleet.controller.fails(&["run", "not", &image, "--select", "known=no"])
}

#[test]
fn a_password_is_given_where_it_is_asked_for() {
    let mut fleet = Fleet::start(0);
    let users = fleet.lab.path("htpasswd").display().to_string();
    run("htpasswd", &["-Bbc", &users, "user", "secret"]);
    let auth = format!("auth: {{htpasswd: {{realm: test, path: \"{users}\"}}}}\n");
    let registry = Registry::with_auth(&fleet.lab, "basic", &auth, Some(&format!("Basic {BASIC}")));
    registry.push("private/box", "1", &Image::busybox());
    devices(&mut fleet, &registry.host);
    let why = check(&fleet, &registry.host);
    assert!(why.contains("it wants credentials, and there are none for"), "{why}");
}

#[test]
fn a_token_is_fetched_where_it_is_asked_for() {
    let mut fleet = Fleet::start(0);
    let issuer = Issuer::new(fleet.lab.path("issuer").as_path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let realm = listener.local_addr().unwrap();
    let auth = format!(
        "auth: {{token: {{realm: \"http://{realm}/token\", service: test, issuer: test, rootcertbundle: \"{}\"}}}}\n",
        fleet.lab.path("issuer/cert.pem").display()
    );
    let bearer = format!("Bearer {}", issuer.token());
    let registry = Registry::with_auth(&fleet.lab, "token", &auth, Some(&bearer));
    registry.push("private/box", "1", &Image::busybox());
    // Ends with the test's process; it holds nothing.
    std::thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| issuer.answer(stream))
    });
    devices(&mut fleet, &registry.host);
    let why = check(&fleet, &registry.host);
    assert!(why.contains("401"), "{why}");
}

/// Who gives tokens for the registry (Docker's token authentication).
struct Issuer {
    key: EcdsaKeyPair,
    certificate: String,
}

impl Issuer {
    fn new(folder: &Path) -> Self {
        std::fs::create_dir(folder).unwrap();
        let path = |name: &str| folder.join(name).display().to_string();
        let (key, certificate) = (path("key.der"), path("cert.pem"));
        let pem = path("key.pem");
        let curve = "ec_paramgen_curve:P-256";
        run("openssl", &["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", &pem]);
        run(
            "openssl",
            &["pkcs8", "-topk8", "-nocrypt", "-in", &pem, "-outform", "DER", "-out", &key],
        );
        run(
            "openssl",
            &[
                "req",
                "-x509",
                "-new",
                "-key",
                &key,
                "-keyform",
                "DER",
                "-subj",
                "/CN=test",
                "-days",
                "2",
                "-out",
                &certificate,
            ],
        );
        let pem = std::fs::read_to_string(certificate).unwrap();
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = std::fs::read(key).unwrap();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &random).unwrap();
        Self { key, certificate: body }
    }

    fn token(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]});
        let claims = json!({
            "iss": "test", "sub": "user", "aud": "test", "jti": "1",
            "iat": now - 10, "nbf": now - 10, "exp": now + 600,
            "access": [{"type": "repository", "name": "private/box", "actions": ["pull", "push"]}],
        });
        let signed = format!(
            "{}.{}",
            base64url(header.to_string().as_bytes()),
            base64url(claims.to_string().as_bytes())
        );
        let signature = self.key.sign(&ring::rand::SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", base64url(signature.as_ref()))
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let asked = lines.next().unwrap_or_default();
        let authorized = lines
            .take_while(|line| !line.is_empty())
            .any(|line| line.eq_ignore_ascii_case(&format!("authorization: basic {BASIC}")));
        let scoped = asked.contains("service=test") && asked.contains("private");
        let (status, body) = match authorized && scoped {
            true => ("200 OK", json!({"token": self.token()}).to_string()),
            false => ("401 Unauthorized", "{}".to_owned()),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        // Whoever has gone does not want it.
        let _ = stream.write_all(answer.as_bytes());
    }
}

/// RFC 4648 section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let group = |chunk: &[u8]| {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        let digits =
            (0..=chunk.len()).map(|n| DIGITS[(bits >> (18 - 6 * n)) as usize & 63] as char);
        digits.collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[test]
fn a_registry_shows_a_certificate_that_is_trusted() {
    let mut fleet = Fleet::start(0);
    let folder = fleet.lab.path("tls");
    std::fs::create_dir(&folder).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    let (ca, ca_key, key, request, certificate) =
        (path("ca.pem"), path("ca.key"), path("key.pem"), path("request.pem"), path("cert.pem"));
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &ca_key,
            "-subj",
            "/CN=test authority",
            "-days",
            "2",
            "-out",
            &ca,
        ],
    );
    run(
        "openssl",
        &[
            "req",
            "-new",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &key,
            "-subj",
            "/CN=registry",
            "-out",
            &request,
        ],
    );
    let names = fleet.lab.file("names", "subjectAltName=IP:127.0.0.1\n").display().to_string();
    run(
        "openssl",
        &[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &names,
            "-out",
            &certificate,
        ],
    );
    // The same store as the plain registry's, spoken to with TLS.
    let host = format!("127.0.0.1:{}", free_port());
    let store = fleet.lab.path("registry").display().to_string();
    let config = fleet.lab.file("tls.yml", format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {store}}}}}\n\
         http: {{addr: \"{host}\", tls: {{certificate: \"{certificate}\", key: \"{key}\"}}}}\n"
    ));
    let config = config.display().to_string();
    let _registry = Process::start(
        &fleet.lab.path("tls.log"),
        "/usr/bin/docker-registry".as_ref(),
        &["serve", &config],
    );
    eventually("the registry", || TcpStream::connect(&host).ok());
    let mirror = format!("[registries.mirrors]\n\"docker.io\" = [\"https://{host}\"]\n");
    let trusting =
        format!("[registries]\ncertificates = '{ca}'\n{mirror}[labels]\ntrusts = 'yes'\n");
    let wary = format!("{mirror}[labels]\ntrusts = 'no'\n");
    fleet.agents.push(Agent::with_config(&fleet.lab, "trusting", &fleet.controller, &trusting));
    fleet.agents.push(Agent::with_config(&fleet.lab, "wary", &fleet.controller, &wary));
    fleet.until_online(2);
    fleet.controller.ok(&["run", "web", "--image=box", "--select", "trusts=yes"]);
    let why = fleet.controller.fails(&["run", "not", "--image=box", "--select", "trusts=no"]);
    assert!(why.contains(&host) && why.contains("UnknownIssuer"), "{why}");
}

#[test]
fn a_registry_that_is_dead_holds_up_no_other_and_is_not_hammered() {
    const WORKLOADS: usize = 12;
    let mut fleet = Fleet::start(0);
    // One that takes connections and says nothing, one that ends them, one that nobody has.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_host = silent.local_addr().unwrap().to_string();
    let absent = format!("127.0.0.1:{}", free_port());
    let ends = Proxy::start(&absent);
    let live = fleet.registry.host.clone();
    let config = format!("[registries.mirrors]\n\"docker.io\" = [\"{absent}\", \"{live}\"]\n");
    fleet.agents.push(Agent::with_config(&fleet.lab, "dev-0", &fleet.controller, &config));
    fleet.until_online(1);
    let image = format!("--image={silent_host}/library/box");
    fleet.controller.ok(&["run", "silent", &image, "--replicas=6", "--detach"]);
    fleet.eventually("it to be asked", || {
        let asked = fleet.workloads("silent").iter().any(|w| w["phase"] == "pulling");
        asked.then_some(())
    });
    fleet.controller.ok(&["run", "lives", "--image=box"]);
    let failed = |name: &str| {
        let story = fleet.story(name);
        story.iter().filter(|line| line.starts_with("pull-failed")).count()
    };
    assert_eq!(failed("silent"), 0, "nobody waited for it");
    assert_eq!(failed("lives"), 0, "where a mirror is dead the next one is asked at once");
    fleet.controller.ok(&["delete", "silent", "--detach"]);

    let image = format!("--image={}/library/box", ends.address);
    let replicas = format!("--replicas={WORKLOADS}");
    fleet.controller.ok(&["run", "many", &image, &replicas, "--detach"]);
    fleet
        .eventually("each to fail three times", || (failed("many") >= 3 * WORKLOADS).then_some(()));
    let (failures, asked) = (failed("many"), ends.connections());
    assert!(asked * 3 <= failures as u64, "{asked} connections for {failures} failures");
    fleet.eventually("a message that says which, why and when", || {
        let all = fleet.workloads("many");
        let says = |message: &str| {
            message.contains(&ends.address) && message.contains("; it is asked again in ")
        };
        all.iter().filter_map(|w| w["message"].as_str()).any(says).then_some(())
    });
    ends.lead_to(&live);
    fleet.until_phases("many", &["running"; WORKLOADS]);
    drop(silent);
}

#[test]
fn a_registry_that_wants_to_be_left_alone_is() {
    let mut fleet = Fleet::start(0);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    // Ends with the test's process; it holds nothing.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            // Whoever has gone does not want it.
            let _ = stream.write_all(
                b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 240\r\ncontent-length: 0\r\n\
                  connection: close\r\n\r\n",
            );
        }
    });
    fleet.agents.push(Agent::with_config(&fleet.lab, "dev-0", &fleet.controller, ""));
    fleet.until_online(1);
    let image = format!("--image={host}/a/b:1");
    fleet.controller.ok(&["run", "web", &image, "--detach"]);
    fleet.eventually("three tries", || {
        let story = fleet.story("web");
        let tries = story.iter().filter(|line| line.starts_with("pull-failed"));
        (tries.count() >= 3).then_some(())
    });
    let message = fleet.workloads("web")[0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("429 Too Many Requests") && message.contains(&host), "{message}");
    assert_eq!(asked.load(Ordering::SeqCst), 1, "{message}");
}
