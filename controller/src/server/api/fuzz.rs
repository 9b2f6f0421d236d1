//! What fuzzing feeds the API with: a request of somebody who may do all, or who comes with a token of
//! their own making.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, header};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower_service::Service;

use super::auth::{Access, Peer, ROUTES};
use super::router;
use crate::server::fleet::{Fleet, Handle, Terms};
use crate::server::store::Store;

/// Requests that one controller is asked; then another begins with an empty store.
const REQUESTS: u32 = 500;
/// Looked at of an answer at most.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// It takes no body, and copies the store.
const LEFT_OUT: &str = "/api/v1/backup";

/// A controller's API with nothing around it.
struct Served {
    runtime: Runtime,
    fleet: Handle,
    thread: Option<JoinHandle<()>>,
    /// One that trusts everybody, and one that asks for tokens.
    routers: [Router; 2],
    asked: u32,
}

/// Sends a request and looks at the answer: it never is an error of the server's own, and an error
/// says why. The first two bytes name route and caller; behind them come, a line each, what stands in
/// the path's place, the query, and the token; the rest is the body. The store is below `folder`.
///
/// # Panics
/// When the controller cannot begin, or its answer is not what it must be.
pub fn requests(folder: &Path, data: &[u8]) {
    static SERVED: Mutex<Option<Served>> = Mutex::new(None);
    let Some((&[route, caller], rest)) = data.split_first_chunk() else {
        return;
    };
    let mut lines = rest.splitn(4, |byte| *byte == b'\n');
    let [place, query, token] =
        [(); 3].map(|()| String::from_utf8_lossy(lines.next().unwrap_or_default()));
    let body = lines.next().unwrap_or_default();
    let (method, path, _) = &ROUTES[usize::from(route) % ROUTES.len()];
    if *path == LEFT_OUT {
        return;
    }
    let path = match (path.split_once('{'), path.rsplit_once('}')) {
        (Some((before, _)), Some((_, behind))) => format!("{before}{place}{behind}"),
        _ => (*path).to_owned(),
    };
    let kind = if caller & 2 == 0 { "application/json" } else { "application/yaml" };
    let request = Request::builder()
        .method(method)
        .uri(format!("http://localhost{path}?{query}"))
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, kind)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Body::from(body.to_vec()));
    // What is no HTTP does not come this far.
    let Ok(request) = request else { return };
    let mut served = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
    if served.as_ref().is_none_or(|served| served.asked >= REQUESTS) {
        // One after the other: both would use the folder.
        drop(served.take());
    }
    served.get_or_insert_with(|| Served::start(folder)).ask(caller & 1, method, request);
}

impl Served {
    #[expect(clippy::panic, reason = "nothing can be asked")]
    fn start(folder: &Path) -> Self {
        let begun = Self::begin(&folder.join("controller"));
        begun.unwrap_or_else(|error| panic!("a controller in {}: {error:#}", folder.display()))
    }

    fn begin(folder: &Path) -> anyhow::Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
        let store = Store::open(folder)?;
        let keys = store.keys()?;
        // Nobody publishes what it sends.
        let (outgoing, _) = tokio::sync::mpsc::unbounded_channel();
        let (fleet, thread) = Fleet::start(store, keys, Duration::from_secs(60), outgoing)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let terms = Terms::sample(folder)?;
        runtime.block_on(fleet.call(move |fleet| fleet.set_terms(terms)))?;
        let routers =
            [Access::Open, Access::Tokens].map(|access| router(fleet.clone(), access, None).0);
        Ok(Self { runtime, fleet, thread: Some(thread), routers, asked: 0 })
    }

    fn ask(&mut self, router: u8, method: &Method, mut request: Request<Body>) {
        self.asked += 1;
        let from = SocketAddr::from(([127, 0, 0, 1], 1));
        request.extensions_mut().insert(ConnectInfo(Peer { from, certificate: None }));
        let asked = format!("{method} {}", request.uri());
        let router = &mut self.routers[usize::from(router)];
        let Self { runtime, .. } = self;
        let (status, body) = runtime.block_on(async {
            let answer = match router.call(request).await {
                Ok(answer) => answer,
                Err(never) => match never {},
            };
            let (parts, body) = answer.into_parts();
            (parts.status, to_bytes(body, ANSWER_BYTES_MAX).await.unwrap_or_default())
        });
        let text = String::from_utf8_lossy(&body);
        assert!(!status.is_server_error(), "{asked}: {status} {text}");
        if status.is_client_error() {
            let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
            let says = answer["error"].is_string() || answer["accepted"] == false;
            assert!(says, "{asked}: {status} {text}");
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.fleet.end();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok(), "the fleet's thread ended in panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::requests;

    /// What fuzzing begins with, and what it has found.
    #[test]
    fn requests_of_anybody() {
        let folder = tempfile::tempdir().unwrap();
        for inputs in ["../fuzz/seeds/requests", "../fuzz/regressions/requests"] {
            for input in std::fs::read_dir(inputs).unwrap() {
                requests(folder.path(), &std::fs::read(input.unwrap().path()).unwrap());
            }
        }
    }
}
