//! Carries out the core's effects. Each runs by itself; its outcome comes back as an input.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use limpet_agent_core::{Effect, Input, Message, StreamOrder};
use limpet_protocol::{
    BootId, CommandResult, ContainerId, DesiredState, Header, Held, Kind, Prefix, Presence,
    PresenceState, PublicKey, Returned, SigningKey, StreamId, Topic, Workload, WorkloadId,
    envelope,
};
use smol::channel::Sender;
use smol::lock::{RwLock, Semaphore};
use smol::{Async, LocalExecutor, Task};

use super::tell;
use super::turns::Turns;
use crate::clock;
use crate::image::{Image, ImageName, Images, Progress};
use crate::link::{Order, Pace, ToLink};
use crate::logs::ring::Reader;
use crate::logs::{Logs, stream};
use crate::runtime::{Running, Runtime};
use crate::state::{Identity, State};

/// Containers that are made at once: making one is work for a processor.
const STARTS_AT_ONCE: usize = 2;
/// How often at most a pull says how far it has come: each time costs a report.
const PROGRESS_STEPS: u64 = 10;
/// The clock floor goes to disk when it has risen by a week: flash wears out.
const CLOCK_FLOOR_EVERY_MS: u64 = 7 * 86_400_000;
/// What would not be removed is tried again after this long.
const REMOVE_AGAIN: Duration = Duration::from_secs(5);

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
    to_link: Sender<ToLink>,
    pieces: Sender<ToLink>,
    pace: Arc<Pace>,
    inputs: Sender<Input>,
    connection: Cell<Option<u64>>,
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
}

/// Where effects send what comes of them.
pub(super) struct Sends {
    pub(super) to_link: Sender<ToLink>,
    pub(super) pieces: Sender<ToLink>,
    pub(super) pace: Arc<Pace>,
    pub(super) inputs: Sender<Input>,
}

impl Shell {
    pub(super) fn new(executor: Rc<LocalExecutor<'static>>, parts: Parts, sends: Sends) -> Self {
        let Parts { state, identity, boot, clock_floor_ms, images, runtime, logs } = parts;
        let Sends { to_link, pieces, pace, inputs } = sends;
        Self {
            executor,
            state: Arc::new(state),
            identity: RefCell::new(Arc::new(identity)),
            boot,
            clock_floor_ms: Cell::new(clock_floor_ms),
            images: Arc::new(images),
            runtime: Arc::new(runtime),
            logs,
            to_link,
            pieces,
            pace,
            inputs,
            connection: Cell::new(None),
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
        match connection {
            Some(_) => self.images.link_is_back(),
            None => self.streams.borrow_mut().clear(),
        }
    }

    /// Trusts the controller's key from here on.
    pub(super) fn pin(&self, controller: PublicKey) {
        let known = self.identity();
        let key = SigningKey::from_seed(known.key.seed());
        let Ok(key) = key else { return };
        let device = known.device.clone();
        let pinned = Identity { device, key, controller: Some(controller) };
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
            Effect::Prepare { container, image } => {
                let shell = Rc::clone(self);
                self.spawn(async move { shell.prepare(container, image).await });
            }
            Effect::Start { container, workload } => {
                let shell = Rc::clone(self);
                self.spawn(async move { shell.start(container, *workload).await });
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
                self.spawn(remove(runtime, container));
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

    async fn prepare(self: Rc<Self>, container: ContainerId, image: String) {
        let input = match self.have(&container, &image).await {
            Ok(found) => {
                self.ready.borrow_mut().insert(image, found);
                Input::ImageReady { container }
            }
            Err(reason) => Input::ImageFailed { container, reason },
        };
        tell(&self.inputs, input).await;
    }

    async fn collect(self: Rc<Self>, keep: BTreeSet<String>, orphans: bool) {
        // Nobody looks for an image, or pulls one, while images go; and nobody waits behind a pull
        // for images to go: the next change tries again.
        let Some(_alone) = self.images_in_use.try_write() else {
            return;
        };
        let (images, runtime) = (Arc::clone(&self.images), Arc::clone(&self.runtime));
        let kept = keep.clone();
        let collected = smol::unblock(move || {
            if !images.is_short_of_room() {
                return Ok(());
            }
            let names = keep.iter().filter_map(|name| name.parse().ok()).collect::<Vec<_>>();
            images.collect(&names, &runtime.layers_in_use(), orphans)
        });
        if let Err(error) = collected.await {
            log::warn!("{error}: images that nothing needs stay for now");
        }
        self.ready.borrow_mut().retain(|image, _| kept.contains(image));
    }

    async fn have(&self, container: &ContainerId, image: &str) -> Result<Image, String> {
        let name: ImageName = image.parse().map_err(|e: crate::image::NameError| e.to_string())?;
        let _in_use = self.images_in_use.read().await;
        let (images, wanted) = (Arc::clone(&self.images), name.clone());
        if let Some(found) = smol::unblock(move || images.local(&wanted)).await {
            return Ok(found);
        }
        tell(&self.inputs, Input::Pulling { container: container.clone() }).await;
        let _turn = self.pulls.take(name.registry()).await;
        let images = Arc::clone(&self.images);
        let (inputs, container) = (self.inputs.clone(), container.clone());
        let step = AtomicU64::new(0);
        let tell = move |Progress { received, total }: Progress| {
            let reached = received.saturating_mul(PROGRESS_STEPS) / total.max(1);
            if step.fetch_max(reached, Ordering::Relaxed) < reached {
                // The loop is busy: it hears of the next step.
                let container = container.clone();
                let _ = inputs.try_send(Input::PullProgressed { container, received, total });
            }
        };
        smol::unblock(move || images.pull(&name, &tell)).await.map_err(|e| e.to_string())
    }

    async fn start(self: Rc<Self>, container: ContainerId, workload: Workload) {
        let Some(image) = self.image_of(&workload).await else {
            let reason = format!("image {} is not here any more", workload.spec.image);
            return tell(&self.inputs, Input::StartFailed { container, reason }).await;
        };
        let started = {
            let _turn = self.starts.acquire().await;
            let (runtime, id) = (Arc::clone(&self.runtime), container.clone());
            let logs = self.logs.clone();
            smol::unblock(move || {
                // Without a folder on disk the log goes where it always can.
                let logs = logs.begin(&id).unwrap_or_default();
                runtime.start(&id, &image, workload, logs)
            })
            .await
        };
        match started {
            Ok(running) => {
                let pid = running.pid;
                tell(&self.inputs, Input::Started { container: container.clone(), pid }).await;
                self.watch(container, running);
            }
            Err(error) => {
                let reason = error.to_string();
                tell(&self.inputs, Input::StartFailed { container, reason }).await;
            }
        }
    }

    /// The image that was made ready for a workload, or is here from before.
    async fn image_of(&self, workload: &Workload) -> Option<Image> {
        let name = &workload.spec.image;
        let ready = self.ready.borrow().get(name).cloned();
        if ready.is_some() {
            return ready;
        }
        let (images, name): (_, ImageName) = (Arc::clone(&self.images), name.parse().ok()?);
        smol::unblock(move || images.local(&name)).await
    }

    /// Follows a container to its end.
    pub(super) fn watch(&self, container: ContainerId, running: Running) {
        let (runtime, inputs) = (Arc::clone(&self.runtime), self.inputs.clone());
        self.spawn(async move {
            let exit = follow(&runtime, &container, running).await;
            tell(&inputs, Input::Exited { container, exit }).await;
        });
    }

    /// Sends back what the controller once signed, as it is stored.
    async fn return_desired(&self, number: u64) {
        let state = Arc::clone(&self.state);
        let error = match smol::unblock(move || state.desired()).await {
            Ok(Some(signed)) => {
                let identity = self.identity();
                let head = header(&identity, Kind::Returned, 0, number);
                let payload = envelope::seal(&identity.key, &head, &Returned { signed });
                let topic = Topic::Device(identity.device.clone(), Kind::Returned);
                let topic = topic.under(&Prefix::default());
                return self.to_link(Order::Publish { topic, payload, retain: false });
            }
            Ok(None) => "the device holds no desired state".to_owned(),
            Err(error) => error.to_string(),
        };
        self.publish(Message::Result { number, error: Some(error) });
    }

    fn publish(&self, message: Message) {
        let identity = self.identity();
        let (kind, number, epoch) = match &message {
            Message::Hello(hello) => (Kind::Hello, hello.connection, hello.held.epoch),
            Message::Reported(report) => (Kind::Reported, report.sequence, report.applied.epoch),
            Message::Events(batch) => {
                (Kind::Event, batch.events.last().map_or(0, |event| event.number), 0)
            }
            Message::Result { number, .. } => (Kind::Result, *number, 0),
            Message::Asleep { .. } => (Kind::Presence, self.connection.get().unwrap_or(0), 0),
        };
        let head = header(&identity, kind, epoch, number);
        let key = &identity.key;
        let payload = match &message {
            Message::Hello(hello) => envelope::seal(key, &head, hello),
            Message::Reported(report) => envelope::seal(key, &head, report),
            Message::Events(batch) => envelope::seal(key, &head, batch),
            Message::Result { error, .. } => {
                envelope::seal(key, &head, &CommandResult { error: error.clone() })
            }
            Message::Asleep { for_ms } => {
                let state = PresenceState::Asleep { for_ms: *for_ms };
                envelope::seal(key, &head, &Presence { state, boot: self.boot, connection: number })
            }
        };
        let retain = kind == Kind::Presence;
        let topic = Topic::Device(identity.device.clone(), kind).under(&Prefix::default());
        self.to_link(Order::Publish { topic, payload, retain });
    }

    fn to_link(&self, order: Order) {
        let Some(connection) = self.connection.get() else {
            return;
        };
        // A full queue is a link that does not move: the core sends again what is not acknowledged.
        if self.to_link.try_send(ToLink { connection, order }).is_err() {
            log::warn!("the link is behind: a message is held back");
        }
    }

    /// No connection is made before this, in milliseconds since boot.
    pub(super) fn quiet_until(&self, at_ms: u64) {
        self.pace.quiet_until_ms.store(at_ms, Ordering::Relaxed);
    }

    /// Takes over what desired state says of the fleet and of the time.
    pub(super) fn heed(&self, desired: Option<&DesiredState>) {
        let Some(DesiredState { at_ms, reconnect_spread_ms, .. }) = desired else {
            return;
        };
        self.pace.spread_ms.store(*reconnect_spread_ms, Ordering::Relaxed);
        clock::raise_floor(*at_ms);
        if *at_ms < self.clock_floor_ms.get().saturating_add(CLOCK_FLOOR_EVERY_MS) {
            return;
        }
        self.clock_floor_ms.set(*at_ms);
        let (state, at_ms) = (Arc::clone(&self.state), *at_ms);
        self.spawn(smol::unblock(move || {
            if let Err(error) = state.store_clock_floor(at_ms) {
                log::warn!("{error}: after a reboot this device may not know how late it is");
            }
        }));
    }

    fn stream(self: &Rc<Self>, order: StreamOrder) {
        let mut streams = self.streams.borrow_mut();
        streams.retain(|_, (_, task)| !task.is_finished());
        if let Some((until_ms, _)) = streams.get(&order.stream) {
            until_ms.set(order.until_ms);
            return;
        }
        let Some(connection) = self.connection.get() else {
            return;
        };
        let until_ms = Rc::new(Cell::new(order.until_ms));
        let readers = self.readers(&order.workload);
        let id = order.stream;
        let sender = stream::Sender {
            identity: self.identity(),
            to_link: self.pieces.clone(),
            connection,
            stream: id,
        };
        let work = stream::run(sender, readers, order.tail, order.follow, Rc::clone(&until_ms));
        streams.insert(id, (until_ms, self.executor.spawn(work)));
    }
}

/// The signed header of a message of this device.
pub(crate) fn header(identity: &Identity, kind: Kind, epoch: u64, number: u64) -> Header {
    let prefix = Prefix::default().to_string();
    Header { prefix, device: identity.device.clone(), kind, epoch, number }
}

async fn follow(
    runtime: &Arc<Runtime>,
    container: &ContainerId,
    mut running: Running,
) -> limpet_protocol::Exit {
    loop {
        match rustix::io::dup(&running.ended)
            .map_err(std::io::Error::from)
            .and_then(Async::new_nonblocking)
        {
            Ok(ended) => {
                if let Err(error) = ended.readable().await {
                    log::error!("cannot wait for {container}: {error}");
                }
            }
            Err(error) => {
                log::error!("cannot wait for {container}: {error}");
                smol::Timer::after(Duration::from_secs(1)).await;
            }
        }
        let (runtime, id) = (Arc::clone(runtime), container.clone());
        let exit;
        (running, exit) = smol::unblock(move || {
            let exit = runtime.exit(&id, &mut running);
            (running, exit)
        })
        .await;
        if let Some(exit) = exit {
            return exit;
        }
    }
}

async fn remove(runtime: Arc<Runtime>, container: ContainerId) {
    loop {
        let (runtime, id) = (Arc::clone(&runtime), container.clone());
        match smol::unblock(move || runtime.remove(&id)).await {
            Ok(()) => return,
            Err(error) => log::error!("{error}; trying again"),
        }
        smol::Timer::after(REMOVE_AGAIN).await;
    }
}
