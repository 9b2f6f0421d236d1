//! Agents' programs: uploaded by operators, fetched by devices, and ordered.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::{StreamExt, stream};
use limpet_controller_core::program;
use limpet_protocol::upgrade::PROGRAM_BYTES_MAX;
use limpet_protocol::{AgentVersion, Digest};
use ring::digest::{Context, SHA256};

use super::{Answer, Failure, Peer, parse};
use crate::server::fleet::{Caller, Handle, Program, ProgramRefusal};
use crate::view::{AgentView, ErrorView, UpgradeRequest, UpgradeResult};

/// What is read of a file at once.
const PIECE_BYTES: u64 = 64 * 1024;

impl From<ProgramRefusal> for Failure {
    fn from(refusal: ProgramRefusal) -> Self {
        let status = match refusal {
            ProgramRefusal::Restricted(_) => StatusCode::FORBIDDEN,
            ProgramRefusal::Absent { .. } | ProgramRefusal::Unknown(_) => StatusCode::NOT_FOUND,
            ProgramRefusal::Deadline(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ProgramRefusal::Taken { .. }
            | ProgramRefusal::TooMany
            | ProgramRefusal::InUse { .. }
            | ProgramRefusal::Nobody
            | ProgramRefusal::Devices(_) => StatusCode::CONFLICT,
        };
        Self(status, refusal.to_string())
    }
}

/// All programs of agents.
#[utoipa::path(get, path = "/api/v1/agents", responses((status = 200, body = [AgentView])))]
pub(super) async fn agents(State(fleet): State<Handle>) -> Answer<Json<Vec<AgentView>>> {
    Ok(Json(fleet.call(|fleet| fleet.program_views()).await?))
}

/// Takes a version of the agent for one architecture: an ELF program of at most 64 MiB.
#[utoipa::path(put, path = "/api/v1/agents/{name}/{arch}",
    params(("name" = String, Path), ("arch" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), (status = 400, body = ErrorView), (status = 403, body = ErrorView),
              (status = 409, body = ErrorView), (status = 413, body = ErrorView),
              (status = 422, body = ErrorView)))]
pub(super) async fn upload(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path((name, arch)): Path<(String, String)>,
    body: Body,
) -> Answer<StatusCode> {
    let version: AgentVersion = parse(&name)?;
    let by = caller.clone();
    let folder = fleet
        .call(move |fleet| fleet.may_upload(&by).map(|()| fleet.program_path(&Digest([0; 32]))));
    let folder = folder.await??.parent().map(FilePath::to_owned).unwrap_or_default();
    let (digest, size) = receive(&folder, &arch, body).await?;
    let program = Program { version, arch, digest, size, uploaded_ms: 0 };
    let added = fleet.call(move |fleet| fleet.add_program(&caller, program)).await?;
    if added.is_err() {
        // It may be another version's as well: one that is listed stays.
        let listed = fleet.call(move |fleet| fleet.program_views()).await?;
        if !listed.iter().any(|view| view.digest == digest.to_string()) {
            let _ = std::fs::remove_file(folder.join(digest.to_string()));
        }
    }
    added?;
    Ok(StatusCode::NO_CONTENT)
}

/// Receives a body into a file that is named by its digest, and is on disk.
async fn receive(folder: &FilePath, arch: &str, body: Body) -> Answer<(Digest, u64)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let part = folder.join(format!("{}-{number}.part", std::process::id()));
    let received = receive_part(folder, &part, arch, body).await;
    if received.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    received
}

async fn receive_part(
    folder: &FilePath,
    part: &FilePath,
    arch: &str,
    body: Body,
) -> Answer<(Digest, u64)> {
    let failed = |error: std::io::Error| {
        let why = format!("cannot keep the program in {}: {error}", folder.display());
        let full = error.kind() == ErrorKind::StorageFull;
        let status =
            if full { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::SERVICE_UNAVAILABLE };
        Failure(status, why)
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut file = File::create(part).map_err(failed)?;
    let (mut hash, mut size, mut head) = (Context::new(&SHA256), 0, Vec::new());
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|e| Failure(StatusCode::BAD_REQUEST, e.to_string()))?;
        size += piece.len() as u64;
        if size > PROGRAM_BYTES_MAX {
            let why = format!("a program has at most {PROGRAM_BYTES_MAX} bytes");
            return Err(Failure(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        let missing = program::HEAD_BYTES.saturating_sub(head.len());
        head.extend_from_slice(&piece[..missing.min(piece.len())]);
        hash.update(&piece);
        file = blocking(move || file.write_all(&piece).map(|()| file)).await?.map_err(failed)?;
    }
    let wrong = |why: String| Failure(StatusCode::UNPROCESSABLE_ENTITY, why);
    match program::arch(&head) {
        Ok(actual) if actual == arch => {}
        Ok(actual) => return Err(wrong(format!("the program is for {actual}, not for {arch}"))),
        Err(error) => return Err(wrong(error.to_string())),
    }
    let mut digest = Digest([0; 32]);
    digest.0.copy_from_slice(hash.finish().as_ref());
    let (folder, part) = (folder.to_owned(), part.to_owned());
    let kept = blocking(move || {
        file.sync_all()?;
        std::fs::rename(part, folder.join(digest.to_string()))?;
        File::open(folder)?.sync_all()
    });
    kept.await?.map_err(failed)?;
    Ok((digest, size))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Failure(StatusCode::SERVICE_UNAVAILABLE, e.to_string()))
}

/// Forgets a version of the agent.
#[utoipa::path(delete, path = "/api/v1/agents/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorView), (status = 409, body = ErrorView)))]
pub(super) async fn remove(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    let version: AgentVersion = parse(&name)?;
    let files = fleet.call(move |fleet| fleet.remove_programs(&caller, &version)).await??;
    for file in files {
        if let Err(error) = std::fs::remove_file(&file) {
            log::warn!("cannot remove {}: {error}", file.display());
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A program, by its digest: all of it, or a closed range of its bytes. For members of the fleet, who
/// prove it with their certificates.
#[utoipa::path(get, path = "/api/v1/agents/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
              (status = 206, body = Vec<u8>, content_type = "application/octet-stream"),
              (status = 401, body = ErrorView), (status = 404, body = ErrorView)))]
pub(super) async fn fetch(
    State(fleet): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer<Response> {
    let digest: Digest = parse(&name)?;
    let shown = peer.certificate.and_then(|shown| {
        let id = shown.common_name.as_deref()?.parse().ok()?;
        Some((id, shown.organization.clone().unwrap_or_default()))
    });
    let found = fleet.call(move |fleet| {
        fleet.may_fetch(shown, &digest).map(|size| (size, fleet.program_path(&digest)))
    });
    let (size, path) = found.await?.map_err(|(is_known, why)| {
        let status = if is_known { StatusCode::NOT_FOUND } else { StatusCode::UNAUTHORIZED };
        Failure(status, why)
    })?;
    let file = blocking(move || File::open(path)).await?.map_err(|error| {
        let why = format!("the controller has lost this program: {error}; upload it again");
        Failure(StatusCode::NOT_FOUND, why)
    })?;
    let range = headers.get(header::RANGE).and_then(|range| closed(range.to_str().ok()?, size));
    let (from, to) = range.unwrap_or((0, size.saturating_sub(1)));
    let mut response = Body::from_stream(pieces(file, from, to)).into_response();
    let kind = header::HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(header::CONTENT_LENGTH, (to + 1 - from).into());
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let said = format!("bytes {from}-{to}/{size}").try_into().ok();
        response.headers_mut().extend(said.map(|said| (header::CONTENT_RANGE, said)));
    }
    Ok(response)
}

/// The first and the last byte of `bytes=FIRST-LAST` (RFC 9110 section 14.1.2), where it lies within.
fn closed(range: &str, size: u64) -> Option<(u64, u64)> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    (from <= to && to < size).then_some((from, to))
}

/// The bytes of a file, piece by piece.
fn pieces(
    file: File,
    from: u64,
    to: u64,
) -> impl futures::Stream<Item = std::io::Result<Bytes>> + use<> {
    stream::unfold(Some((file, from)), move |state| async move {
        let (mut file, at) = state.filter(|(_, at)| *at <= to)?;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::new();
            file.seek(SeekFrom::Start(at))?;
            (&mut file).take(PIECE_BYTES.min(to + 1 - at)).read_to_end(&mut piece)?;
            Ok((piece, file))
        });
        match read.await.map_err(std::io::Error::other).flatten() {
            Ok((piece, file)) if !piece.is_empty() => {
                let next = at + piece.len() as u64;
                Some((Ok(piece.into()), Some((file, next))))
            }
            Ok(_) => Some((Err(ErrorKind::UnexpectedEof.into()), None)),
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// Has devices run another version of their agent.
#[utoipa::path(post, path = "/api/v1/upgrade", request_body = UpgradeRequest,
    responses((status = 200, body = UpgradeResult), (status = 404, body = ErrorView),
              (status = 409, body = ErrorView), (status = 422, body = ErrorView)))]
pub(super) async fn upgrade(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<UpgradeRequest>,
) -> Answer<Json<UpgradeResult>> {
    let version: AgentVersion = parse(&request.version)?;
    let ordered = fleet.call(move |fleet| fleet.upgrade(&caller, &version, &request)).await?;
    Ok(Json(ordered?))
}

#[cfg(test)]
mod tests {
    use super::closed;

    #[test]
    fn only_a_closed_range_within_the_file_is_one() {
        for (range, within) in [
            ("bytes=0-9", Some((0, 9))),
            ("bytes=9-9", Some((9, 9))),
            ("bytes=0-10", None),
            ("bytes=5-4", None),
            ("bytes=5-", None),
            ("bytes=-5", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
            ("bytes=0-99999999999999999999", None),
        ] {
            assert_eq!(closed(range, 10), within, "{range}");
        }
    }
}
