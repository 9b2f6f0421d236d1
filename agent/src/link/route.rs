//! Where connections go, and what leads there.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;

use super::Broker;
use crate::proxy::{Proxies, Proxy};
use crate::state::Identity;
use crate::tls;

/// The brokers that a connection may go to, and how it is secured.
pub struct Route {
    /// The best first.
    pub brokers: Vec<Broker>,
    /// None speaks plain MQTT.
    pub tls: Option<Arc<ClientConfig>>,
    /// What leads to them.
    pub proxies: Proxies,
}

/// A broker's address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// None has an address of this version.
    #[error(
        "none of the brokers {0:?} has an address that this version knows: mqtts://HOST:PORT or \
         wss://HOST:PORT/PATH"
    )]
    Brokers(Vec<String>),
    /// Not certificates.
    #[error("the device's certificates cannot be used: {0}")]
    Certificates(#[from] rustls::Error),
    /// Nobody to go to.
    #[error("this device has not joined a fleet")]
    NoMember,
}

impl Route {
    /// How a member of a fleet reaches it.
    ///
    /// # Errors
    /// When the device is none, or its membership cannot be used.
    pub fn of(identity: &Identity, proxies: Proxies) -> Result<Self, RouteError> {
        let membership = identity.membership.as_ref().ok_or(RouteError::NoMember)?;
        // A later version may know more ways.
        let known = membership.brokers.iter().filter_map(|url| Broker::parse(url));
        let brokers: Vec<_> = known.collect();
        if brokers.is_empty() {
            return Err(RouteError::Brokers(membership.brokers.clone()));
        }
        Ok(Self { brokers, tls: Some(tls::client(membership, &identity.key)?), proxies })
    }

    /// The proxy that leads to a broker.
    pub fn proxy(&self, broker: &Broker) -> Option<&Proxy> {
        self.proxies.to(&broker.host, broker.port)
    }
}

/// The route of the next connection: it changes when a certificate does.
pub struct Way {
    route: Mutex<Arc<Route>>,
    /// Which broker the latest connection went to.
    pub(super) taken: AtomicUsize,
}

impl Way {
    /// Connections take this one.
    pub fn new(route: Route) -> Self {
        Self { route: Mutex::new(Arc::new(route)), taken: AtomicUsize::new(0) }
    }

    /// Connections take this one from here on.
    pub fn set(&self, route: Route) {
        *self.route.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(route);
    }

    /// The one to take.
    pub fn get(&self) -> Arc<Route> {
        Arc::clone(&self.route.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The broker that the latest connection went to, with the proxy before it, as people read it.
    pub fn taken(&self) -> String {
        let route = self.get();
        let broker = route.brokers.get(self.taken.load(Ordering::Relaxed));
        broker.map(|broker| shown(broker, route.proxy(broker))).unwrap_or_default()
    }
}

/// A broker, and what leads there, for people.
pub(super) fn shown(broker: &Broker, proxy: Option<&Proxy>) -> String {
    match proxy {
        Some(proxy) => format!("{broker} through the proxy {proxy}"),
        None => broker.to_string(),
    }
}
