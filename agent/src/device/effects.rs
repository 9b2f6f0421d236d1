//! Carries out the core's effects. Each runs by itself; its outcome comes back as an input.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use limpet_agent_core::{Effect, Input};
use limpet_protocol::{BootId, Held, PublicKey, StreamId, WorkloadId};
use smol::channel::Sender;
use smol::lock::{Mutex, RwLock, Semaphore};
use smol::{LocalExecutor, Task};

use super::tell;
use super::turns::Turns;
use crate::clock;
use crate::image::{Image, Images};
use crate::link::{Order, Pace, ToLink, Way};
use crate::logs::Logs;
use crate::logs::ring::Reader;
use crate::runtime::Runtime;
use crate::state::{Identity, State};
use crate::upgrade::Programs;

mod containers;
mod images;
mod membership;
mod programs;
mod told;

pub(crate) use told::header;

/// Containers that are made at once: making one is work for a processor.
const STARTS_AT_ONCE: usize = 2;

/// Everything that effects need. Lives on one thread; only blocking work leaves it.
pub(super) struct Shell {
    executor: Rc<LocalExecutor<'static>>,
    state: Arc<State>,
    identity: RefCell<Arc<Identity>>,
    boot: BootId,
    /// As it is on disk.
    clock_floor_ms: Cell<u64>,
    pub(super) images: Arc<Images>,
    runtime: Arc<Runtime>,
    logs: Logs,
    programs: Programs,
    to_link: Sender<ToLink>,
    pieces: Sender<ToLink>,
    pace: Arc<Pace>,
    way: Arc<Way>,
    inputs: Sender<Input>,
    connection: Cell<Option<u64>>,
    /// The controller's key before the present one, until the present one is heard on the connection
    /// over which it came: what was on its way then is no stranger's.
    waning: Cell<Option<PublicKey>>,
    /// A renewal over HTTPS is under way.
    renewing: Cell<bool>,
    /// Held by who puts another membership in the place of the present one.
    memberships: Mutex<()>,
    ready: RefCell<BTreeMap<String, Image>>,
    images_in_use: RwLock<()>,
    starts: Rc<Semaphore>,
    pulls: Turns,
    streams: RefCell<BTreeMap<StreamId, Leased>>,
}

/// When a stream's lease ends, in milliseconds since boot, and the task that sends it.
type Leased = (Rc<Cell<u64>>, Task<()>);

/// The parts of a device.
pub(super) struct Parts {
    pub(super) state: State,
    pub(super) identity: Identity,
    pub(super) boot: BootId,
    pub(super) clock_floor_ms: u64,
    pub(super) images: Images,
    pub(super) runtime: Runtime,
    pub(super) logs: Logs,
    pub(super) programs: Programs,
}

/// Where effects send what comes of them.
pub(super) struct Sends {
    pub(super) to_link: Sender<ToLink>,
    pub(super) pieces: Sender<ToLink>,
    pub(super) pace: Arc<Pace>,
    pub(super) way: Arc<Way>,
    pub(super) inputs: Sender<Input>,
}

impl Shell {
    pub(super) fn new(executor: Rc<LocalExecutor<'static>>, parts: Parts, sends: Sends) -> Self {
        let Parts { state, identity, boot, clock_floor_ms, images, runtime, logs, programs } =
            parts;
        let Sends { to_link, pieces, pace, way, inputs } = sends;
        Self {
            executor,
            state: Arc::new(state),
            identity: RefCell::new(Arc::new(identity)),
            boot,
            clock_floor_ms: Cell::new(clock_floor_ms),
            images: Arc::new(images),
            runtime: Arc::new(runtime),
            logs,
            programs,
            to_link,
            pieces,
            pace,
            way,
            inputs,
            connection: Cell::new(None),
            waning: Cell::new(None),
            renewing: Cell::new(false),
            memberships: Mutex::new(()),
            ready: RefCell::default(),
            images_in_use: RwLock::new(()),
            starts: Rc::new(Semaphore::new(STARTS_AT_ONCE)),
            pulls: Turns::new(),
            streams: RefCell::default(),
        }
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity.borrow())
    }

    pub(super) fn connected(&self, connection: Option<u64>) {
        self.connection.set(connection);
        self.waning.set(None);
        match connection {
            Some(_) => self.images.link_is_back(),
            None => self.streams.borrow_mut().clear(),
        }
    }

    /// The key that was believed a moment ago, where messages of it may be on their way.
    pub(super) fn waning(&self) -> Option<PublicKey> {
        self.waning.get()
    }

    /// The controller's key has been heard: no other is from here on.
    pub(super) fn waned(&self) {
        self.waning.set(None);
    }

    /// Trusts the controller's key from here on.
    pub(super) fn pin(&self, controller: PublicKey) {
        let known = self.identity();
        let pinned = Identity { controller: Some(controller), ..(*known).clone() };
        if let Err(error) = self.state.store_identity(&pinned) {
            log::error!("{error}: the controller's key is not pinned on disk");
        }
        *self.identity.borrow_mut() = Arc::new(pinned);
    }

    pub(super) fn carry_out(self: &Rc<Self>, effect: Effect) {
        match effect {
            Effect::StoreDesired { held, signed } => {
                let shell = Rc::clone(self);
                self.spawn(async move { shell.store_desired(held, signed).await });
            }
            Effect::StoreCheckpoint { version, checkpoint } => {
                let state = Arc::clone(&self.state);
                self.then(move || {
                    let stored = state.store_checkpoint(&checkpoint);
                    if let Err(error) = &stored {
                        log::error!("{error}");
                    }
                    Input::CheckpointStored { version, done: stored.is_ok() }
                });
            }
            Effect::Prepare { container, image, policies, host } => {
                let shell = Rc::clone(self);
                self.spawn(async move {
                    match shell.look(host).await {
                        Ok(()) => shell.prepare(container, image, *policies).await,
                        Err(error) => shell.lacks(container, error).await,
                    }
                });
            }
            Effect::Start { container, workload, policies } => {
                let shell = Rc::clone(self);
                self.spawn(async move { shell.start(container, *workload, *policies).await });
            }
            Effect::Signal { container, signal } => {
                let runtime = Arc::clone(&self.runtime);
                self.spawn(smol::unblock(move || {
                    if let Err(error) = runtime.signal(&container, signal) {
                        log::error!("{error}");
                    }
                }));
            }
            Effect::Remove { container } => {
                let runtime = Arc::clone(&self.runtime);
                self.spawn(containers::remove(runtime, container));
            }
            Effect::Collect { keep, orphans } => {
                let shell = Rc::clone(self);
                self.spawn(async move { shell.collect(keep, orphans).await });
            }
            Effect::KeepLog { container } => self.change_logs(move |logs| logs.keep(&container)),
            Effect::ForgetLog { workload } => self.change_logs(move |logs| logs.forget(&workload)),
            Effect::Publish(message) => self.publish(message),
            Effect::ReturnDesired { number } => {
                let shell = Rc::clone(self);
                self.spawn(async move { shell.return_desired(number).await });
            }
            Effect::StoreMembership { number, membership } => {
                let shell = Rc::clone(self);
                self.spawn(async move { shell.store_membership(number, *membership).await });
            }
            Effect::FetchProgram(upgrade) => self.fetch_program(*upgrade),
            Effect::TryProgram(trial) => self.try_program(*trial),
            Effect::KeepProgram => self.keep_program(),
            Effect::SettleUpgrade { order, failure } => self.settle_upgrade(order, failure),
            Effect::Warn { message } => log::warn!("{message}"),
            Effect::Stream(order) => self.stream(order),
            Effect::EndStream(stream) => drop(self.streams.borrow_mut().remove(&stream)),
            Effect::Disconnect { for_ms } => {
                self.quiet_until(clock::boot_ms().saturating_add(for_ms));
                self.to_link(Order::Disconnect);
            }
        }
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        self.executor.spawn(work).detach();
    }

    /// Does blocking work and tells the core of its outcome.
    fn then(&self, work: impl FnOnce() -> Input + Send + 'static) {
        let inputs = self.inputs.clone();
        self.spawn(async move { tell(&inputs, smol::unblock(work).await).await });
    }

    async fn store_desired(self: Rc<Self>, held: Held, signed: Vec<u8>) {
        let state = Arc::clone(&self.state);
        let input = smol::unblock(move || match state.store_desired(&signed) {
            Ok(()) => Input::DesiredStored(held),
            Err(error) => Input::DesiredNotStored { held, signed, reason: error.to_string() },
        });
        tell(&self.inputs, input.await).await;
        let state = Arc::clone(&self.state);
        if let Err(error) = smol::unblock(move || state.copy_desired()).await {
            log::warn!("{error}: there is one copy of desired state only");
        }
    }

    /// Changes what is on disk of logs; it is not worth more than a line where that fails.
    fn change_logs(&self, change: impl FnOnce(&Logs) -> std::io::Result<()> + Send + 'static) {
        let logs = self.logs.clone();
        self.spawn(smol::unblock(move || {
            if let Err(error) = change(&logs) {
                log::warn!("cannot keep a log on disk: {error}");
            }
        }));
    }

    /// Readers of a workload's logs.
    pub(super) fn readers(&self, workload: &WorkloadId) -> Vec<Reader> {
        self.logs.readers(workload)
    }
}
