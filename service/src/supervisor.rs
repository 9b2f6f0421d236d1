//! What the supervisor that started this process is told (sd_notify(3)). Where none asks, nothing is
//! said.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// A supervisor that takes no message for this long does without it.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Whoever started this process, as its environment names it.
#[derive(Debug)]
pub struct Supervisor {
    address: Option<SocketAddr>,
    status: RefCell<String>,
}

impl Supervisor {
    /// The one of this process.
    pub fn of_process() -> Self {
        let address = std::env::var_os("NOTIFY_SOCKET").and_then(|name| address(&name));
        Self { address, status: RefCell::default() }
    }

    /// Whether somebody listens.
    pub fn is_there(&self) -> bool {
        self.address.is_some()
    }

    /// Says `NAME=VALUE`, one on a line: `READY=1`, `WATCHDOG=1`, `STOPPING=1`.
    pub fn tell(&self, said: &str) {
        let Some(address) = &self.address else {
            return;
        };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_write_timeout(Some(SEND_TIMEOUT))?;
            socket.send_to_addr(said.as_bytes(), address)
        });
        if let Err(error) = sent {
            log::debug!("the supervisor does not hear {said:?}: {error}");
        }
    }

    /// Says in one line how things are, where that has changed.
    pub fn status(&self, status: String) {
        if *self.status.borrow() != status {
            self.tell(&format!("STATUS={}", status.replace('\n', " ")));
            self.status.replace(status);
        }
    }
}

/// A path, or `@NAME` in the abstract namespace (unix(7)).
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        _ => None,
    }
}

/// How often the supervisor wants to hear `WATCHDOG=1`: twice in the time that it waits for
/// (sd_watchdog_enabled(3)). None where it does not.
pub fn beat_every() -> Option<Duration> {
    let meant =
        std::env::var("WATCHDOG_PID").map_or(true, |pid| pid.parse() == Ok(std::process::id()));
    let micros = std::env::var("WATCHDOG_USEC").ok().filter(|_| meant)?.parse::<u64>().ok()?;
    (micros > 1).then(|| Duration::from_micros(micros / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_socket_are_spoken_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("@limpet-test-{}", std::process::id());
        let own = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let sockets = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (name.into(), UnixDatagram::bind_addr(&own).unwrap()),
        ];
        for (name, socket) in sockets {
            let supervisor = Supervisor { address: address(&name), status: RefCell::default() };
            supervisor.tell("READY=1");
            for status in ["a\nb", "a\nb", "c"] {
                supervisor.status(status.to_owned());
            }
            let mut buffer = [0; 64];
            let mut hear = || {
                let read = socket.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..read]).into_owned()
            };
            assert_eq!([hear(), hear(), hear()], ["READY=1", "STATUS=a b", "STATUS=c"]);
        }
        for name in ["", "relative", "vsock:2:1"] {
            assert!(address(name.as_ref()).is_none(), "{name}");
        }
    }

    #[test]
    fn nobody_who_listens_is_nobody_told() {
        let gone = address("/nonexistent/notify".as_ref());
        for address in [None, gone] {
            Supervisor { address, status: RefCell::default() }.tell("READY=1");
        }
    }
}
