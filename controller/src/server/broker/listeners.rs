//! Where the broker listens.
//!
//! rmqtt reads certificates when a listener opens, and never again. So that others can be shown,
//! each socket is opened a second time beside the first (SO_REUSEPORT), and then the first is closed:
//! the connections that it has accepted are tasks of their own, and go on. Whoever is between the
//! kernel and the first at that moment is reset, and comes again.

use rmqtt::context::ServerContext;
use rmqtt::net::{Builder, Listener};
use rmqtt::server::MqttServer;
use rmqtt::types::ListenerId;
use tokio::task::JoinHandle;

/// Where, and how its clients speak.
pub(super) struct Socket {
    pub(super) builder: Builder,
    pub(super) finish: fn(Listener) -> rmqtt::net::Result<Listener>,
}

/// All of them, and the task that accepts.
pub(super) struct Listeners {
    context: ServerContext,
    sockets: Vec<Socket>,
    accepting: Option<JoinHandle<()>>,
    /// Names of the open ones.
    open: Vec<ListenerId>,
    last: ListenerId,
}

impl Listeners {
    /// None is open yet.
    pub(super) fn new(context: ServerContext, sockets: Vec<Socket>) -> Self {
        Self { context, sockets, accepting: None, open: Vec::new(), last: 0 }
    }

    /// Opens all, with what the files of their certificates say; then closes those that were open.
    ///
    /// # Errors
    /// When one cannot be opened: those that were open stay.
    pub(super) fn open(&mut self) -> anyhow::Result<()> {
        let bound: Result<Vec<Listener>, _> = self
            .sockets
            .iter()
            .map(|Socket { builder, finish }| builder.clone().bind().and_then(finish))
            .collect();
        let mut server = MqttServer::new(self.context.clone());
        let mut open = Vec::new();
        for listener in bound? {
            // rmqtt takes no name twice; those of former ones are free again.
            self.last = self.last.wrapping_add(1);
            open.push(self.last);
            server = server.listener_by_id(listener, self.last);
        }
        if let Some(before) = self.accepting.replace(accept(server.build())) {
            before.abort();
        }
        for id in std::mem::replace(&mut self.open, open) {
            self.context.listen_cfgs.remove(&id);
        }
        Ok(())
    }
}

/// Accepts in the background.
pub(super) fn accept(server: MqttServer) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = server.run().await {
            log::error!("the broker ended: {error}");
        }
    })
}
