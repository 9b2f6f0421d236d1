//! A link that fails: a proxy on loopback that can be cut, or that cuts by itself.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Forwards connections to one address.
pub struct Proxy {
    /// `HOST:PORT` to connect to.
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<String>,
    /// Bytes that may still come back through a connection before it is cut.
    allowance: AtomicU64,
    /// Bytes after which nothing more comes back through a connection that stays open.
    patience: AtomicU64,
    /// What each piece of 4 KiB costs, in microseconds.
    pace_us: AtomicU64,
    /// Bytes that came back in all.
    carried: AtomicU64,
    /// Connections that were made.
    connections: AtomicU64,
    /// All bytes of both directions, where somebody wants them.
    record: Option<Mutex<Vec<u8>>>,
    closed: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Listens, and forwards to `target`, `HOST:PORT`.
    pub fn start(target: &str) -> Self {
        Self::at("127.0.0.1", target)
    }

    /// Listens, forwards to `target`, `HOST:PORT`, and keeps all that it carries.
    pub fn recording(target: &str) -> Self {
        Self::with("127.0.0.1:0", target, Some(Mutex::default()))
    }

    /// Listens on this address of the machine, and forwards to `target`, `HOST:PORT`.
    pub fn at(address: &str, target: &str) -> Self {
        Self::with(&format!("{address}:0"), target, None)
    }

    /// Listens on this address of the machine, on the port of `target`, `HOST:PORT` or a URL.
    pub fn in_front(address: &str, target: &str) -> Self {
        let target = target.rsplit('/').next().unwrap();
        let port = target.rsplit_once(':').unwrap().1;
        Self::with(&format!("{address}:{port}"), target, None)
    }

    fn with(address: &str, target: &str, record: Option<Mutex<Vec<u8>>>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            target: Mutex::new(target.to_owned()),
            allowance: AtomicU64::new(u64::MAX),
            patience: AtomicU64::new(u64::MAX),
            pace_us: AtomicU64::new(0),
            carried: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            record,
            closed: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.closed.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || shared.forward(client));
            }
        });
        Self { address, shared }
    }

    /// From here on a connection is cut when this many bytes have come back through it.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.allowance.store(bytes, Ordering::SeqCst);
    }

    /// From here on a connection brings nothing more, and stays open, when this many bytes have come
    /// back through it.
    pub fn stall_after(&self, bytes: u64) {
        self.shared.patience.store(bytes, Ordering::SeqCst);
    }

    /// From here on connections lead to this `HOST:PORT`.
    pub fn lead_to(&self, target: &str) {
        target.clone_into(&mut self.shared.target.lock().unwrap());
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// From here on 4 KiB take this long, in microseconds.
    pub fn pace(&self, us: u64) {
        self.shared.pace_us.store(us, Ordering::SeqCst);
    }

    /// Bytes that came back through all connections.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::SeqCst)
    }

    /// What it has carried, in both directions, where it keeps that.
    pub fn recorded(&self) -> Vec<u8> {
        self.shared.record.as_ref().map(|kept| kept.lock().unwrap().clone()).unwrap_or_default()
    }

    /// Cuts every connection there is.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn keep(&self, bytes: &[u8]) {
        if let Some(kept) = &self.record {
            kept.lock().unwrap().extend_from_slice(bytes);
        }
    }

    /// Carries bytes to the server until either side has had enough.
    fn up(&self, from: &mut TcpStream, to: &mut TcpStream) {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            self.keep(&buffer[..read]);
            if to.write_all(&buffer[..read]).is_err() {
                return;
            }
        }
    }

    fn forward(self: &Arc<Self>, client: TcpStream) {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let target = self.target.lock().unwrap().clone();
        let Ok(server) = TcpStream::connect(&target) else {
            return;
        };
        let clone = |stream: &TcpStream| stream.try_clone().unwrap();
        self.open.lock().unwrap().extend([clone(&client), clone(&server)]);
        let (mut from_client, mut to_server) = (clone(&client), clone(&server));
        let carrying = Arc::clone(self);
        let upward = std::thread::spawn(move || {
            carrying.up(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        match self.back(&server, &client) {
            End::Cut => {
                let _ = client.shutdown(Shutdown::Both);
                let _ = server.shutdown(Shutdown::Both);
                let _ = upward.join();
            }
            // Until the client has had enough, or the proxy is dropped.
            End::Stalled => {
                let _ = upward.join();
            }
        }
    }

    fn back(&self, mut server: &TcpStream, mut client: &TcpStream) -> End {
        let mut buffer = [0; 4096];
        let mut passed: u64 = 0;
        while let Ok(read @ 1..) = server.read(&mut buffer) {
            let left = self.allowance.load(Ordering::SeqCst).saturating_sub(passed);
            let patience = self.patience.load(Ordering::SeqCst).saturating_sub(passed);
            let part = read.min(usize::try_from(left.min(patience)).unwrap_or(usize::MAX));
            let pace_us = self.pace_us.load(Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_micros(pace_us));
            passed += part as u64;
            self.keep(&buffer[..part]);
            self.carried.fetch_add(part as u64, Ordering::SeqCst);
            let sent = client.write_all(&buffer[..part]).is_ok();
            if sent && part < read && patience < left {
                return End::Stalled;
            }
            if !sent || part < read {
                return End::Cut;
            }
        }
        End::Cut
    }
}

/// How the way back of a connection ends.
enum End {
    Cut,
    Stalled,
}
