//! What fuzzing feeds the readers of what proxies and WebSocket servers say with.

use crate::link::fuzz::{frames, head};

use super::Proxy;

/// A head of HTTP, frames of WebSocket, or a URL of a proxy, as the first byte says.
pub(crate) fn answers(data: &[u8]) {
    match data.split_first() {
        Some((0, data)) => head(data),
        Some((1, data)) => frames(data),
        Some((_, data)) => url(data),
        None => {}
    }
}

fn url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(proxy) = Proxy::parse(text) {
        let request = proxy.request("h:443");
        assert!(request.ends_with("\r\n\r\n") && request.matches("\r\n").count() <= 4, "{request}");
        assert_eq!(
            Proxy::parse(&proxy.to_string()).map(|read| read.to_string()),
            Some(proxy.to_string())
        );
    }
}
