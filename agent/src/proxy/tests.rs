use super::*;

fn proxies(url: &str, no_proxy: &[&str]) -> Result<Proxies, SettingError> {
    let no_proxy = Some(no_proxy.iter().map(ToString::to_string).collect());
    Proxies::new(None, &Table { url: Some(url.to_owned()), no_proxy }, |_| None)
}

#[test]
fn urls_are_read_and_passwords_are_never_shown() {
    for (url, shown, basic) in [
        ("http://proxy.site:3128", "proxy.site:3128", None),
        ("http://proxy.site", "proxy.site:80", None),
        ("10.0.0.1:3128/", "10.0.0.1:3128", None),
        ("http://u:p%40:ss%25@[fe80::1]:8080", "[fe80::1]:8080", Some("u:p@:ss%")),
    ] {
        let proxy = Proxy::parse(url).unwrap();
        assert_eq!(proxy.to_string(), shown);
        assert_eq!(format!("{proxy:?}"), format!("Proxy({shown})"));
        let request = proxy.request("h:443");
        let sent = basic.map(|basic| format!("Basic {}\r\n", STANDARD.encode(basic)));
        assert!(request.contains(&sent.unwrap_or_default()), "{request}");
        assert_eq!(basic.is_some(), request.contains("Proxy-Authorization"));
    }
    for url in ["https://u:secret@h:1", "http://u:secret@", "http://u:secret@h:x", "socks5://h"] {
        let error = proxies(url, &[]).unwrap_err().to_string();
        assert!(error.contains("[proxy]") && !error.contains("secret"), "{error}");
    }
    for url in ["http://u:%zz@h", "http://u:%4@h", "http://h\r\nX: y"] {
        assert_eq!(Proxy::parse(url), None, "{url}");
    }
}

#[test]
fn the_file_wins_over_the_environment_and_the_flag_over_both() {
    let environment = |name: &str| match name {
        "HTTPS_PROXY" => Some("http://env:1".to_owned()),
        "no_proxy" => Some("a.example, 10.0.0.0/8,".to_owned()),
        _ => None,
    };
    let way = |flag: Option<&str>, url: Option<&str>, host: &str| {
        let table = Table { url: url.map(str::to_owned), no_proxy: None };
        let proxies = Proxies::new(flag, &table, environment).unwrap();
        proxies.to(host, 443).map(ToString::to_string)
    };
    assert_eq!(way(None, None, "b.example").as_deref(), Some("env:1"));
    assert_eq!(way(None, Some("file:2"), "b.example").as_deref(), Some("file:2"));
    assert_eq!(way(Some("flag:3"), Some("file:2"), "b.example").as_deref(), Some("flag:3"));
    assert_eq!(way(None, Some(""), "b.example"), None);
    for host in ["a.example", "x.a.example", "10.1.2.3", "127.0.0.1", "localhost", "::1"] {
        assert_eq!(way(None, None, host), None, "{host}");
    }
}

#[test]
fn requests_know_whom_they_reach_without_it() {
    let told = proxies("http://p:1", &["10.0.0.0/8", "registry.local", ".example.com"]).unwrap();
    for (authority, through) in [
        ("ghcr.io", true),
        ("example.com", true),
        ("a.example.com:5000", false),
        ("registry.local:5000", false),
        ("10.1.2.3:5000", false),
        ("11.1.2.3:5000", true),
        ("[::1]:5000", false),
        ("[2001:db8::1]:5000", true),
    ] {
        assert_eq!(told.for_request("https", authority).is_some(), through, "{authority}");
    }
    assert!(proxies("p:1", &["10.0.0.0/33"]).is_err());
}

#[test]
fn each_answer_has_its_message() {
    let bare = Proxy::parse("p:1").unwrap();
    let known = Proxy::parse("u:secret@p:1").unwrap();
    let said = |proxy: &Proxy, status: Option<u16>| {
        proxy.answered(status, "h:443").err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(said(&bare, Some(200)), "");
    for (proxy, status, says) in [
        (&bare, Some(407), "the proxy p:1 wants credentials (407)"),
        (&known, Some(407), "the proxy p:1 wants other credentials (407)"),
        (&known, Some(401), "the proxy p:1 wants other credentials (401)"),
        (&known, Some(403), "the proxy p:1 does not let this device through to h:443 (403)"),
        (&known, Some(502), "the proxy p:1 does not reach h:443 (502)"),
        (&known, Some(301), "the proxy p:1 answers 301 when asked for h:443"),
        (&known, None, "what answers at p:1 is no HTTP proxy"),
    ] {
        let message = said(proxy, status);
        assert!(message.starts_with(says) && !message.contains("secret"), "{message}");
    }
    let failed = ureq::Error::ConnectProxyFailed("proxy server responded 407/407".to_owned());
    let explained = known.explain(&failed, "h:443").unwrap();
    assert!(matches!(explained, ProxyError::Credentials { .. }), "{explained}");
}

#[test]
fn texts_are_shown_without_credentials() {
    let text = "1 | url = \"http://u:s@cret@h:1\"\n2 | x = 'mqtt://h:1' # me@here";
    let shown = redacted(text);
    assert_eq!(shown, "1 | url = \"http://***@h:1\"\n2 | x = 'mqtt://h:1' # me@here");
}
