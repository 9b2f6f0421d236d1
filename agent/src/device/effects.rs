//! Carries out the core's effects. Each runs by itself; its outcome comes back as an input.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use limpet_agent_core::{Effect, Input, Message, StreamOrder};
use limpet_protocol::{
    CommandResult, ContainerId, Header, Kind, Prefix, PublicKey, SigningKey, StreamId, Topic,
    Workload, envelope,
};
use serde::Serialize;
use smol::channel::Sender;
use smol::lock::{RwLock, Semaphore};
use smol::{Async, LocalExecutor, Task};

use super::tell;
use crate::image::{Image, ImageName, Images, Progress};
use crate::link::ToLink;
use crate::logs::stream;
use crate::runtime::{Running, Runtime};
use crate::state::{Identity, State};

/// Containers that are made at once: making one is work for a processor.
const STARTS_AT_ONCE: usize = 2;
/// Images that are pulled at once: a thin link is not made wider by sharing it.
const PULLS_AT_ONCE: usize = 3;
/// How often at most a pull says how far it has come: each time costs a report.
const PROGRESS_STEPS: u64 = 10;
/// What would not be removed is tried again after this long.
const REMOVE_AGAIN: Duration = Duration::from_secs(5);

/// Everything that effects need. Lives on one thread; only blocking work leaves it.
pub(super) struct Shell {
    executor: Rc<LocalExecutor<'static>>,
    state: Arc<State>,
    identity: RefCell<Arc<Identity>>,
    images: Arc<Images>,
    runtime: Arc<Runtime>,
    to_link: Sender<ToLink>,
    pieces: Sender<ToLink>,
    inputs: Sender<Input>,
    connection: Cell<Option<u64>>,
    ready: RefCell<BTreeMap<String, Image>>,
    images_in_use: RwLock<()>,
    starts: Rc<Semaphore>,
    pulls: Rc<Semaphore>,
    streams: RefCell<BTreeMap<StreamId, Leased>>,
}

/// When a stream's lease ends, in milliseconds since boot, and the task that sends it.
type Leased = (Rc<Cell<u64>>, Task<()>);

impl Shell {
    #[expect(clippy::too_many_arguments, reason = "one value of each part that the device has")]
    pub(super) fn new(
        executor: Rc<LocalExecutor<'static>>,
        state: State,
        identity: Identity,
        images: Images,
        runtime: Runtime,
        to_link: Sender<ToLink>,
        pieces: Sender<ToLink>,
        inputs: Sender<Input>,
    ) -> Self {
        Self {
            executor,
            state: Arc::new(state),
            identity: RefCell::new(Arc::new(identity)),
            images: Arc::new(images),
            runtime: Arc::new(runtime),
            to_link,
            pieces,
            inputs,
            connection: Cell::new(None),
            ready: RefCell::default(),
            images_in_use: RwLock::new(()),
            starts: Rc::new(Semaphore::new(STARTS_AT_ONCE)),
            pulls: Rc::new(Semaphore::new(PULLS_AT_ONCE)),
            streams: RefCell::default(),
        }
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity.borrow())
    }

    pub(super) fn connected(&self, connection: Option<u64>) {
        self.connection.set(connection);
        if connection.is_none() {
            self.streams.borrow_mut().clear();
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
                let state = Arc::clone(&self.state);
                self.then(move || match state.store_desired(&signed) {
                    Ok(()) => Input::DesiredStored(held),
                    Err(error) => {
                        Input::DesiredNotStored { held, signed, reason: error.to_string() }
                    }
                });
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
            Effect::Publish(message) => self.publish(message),
            Effect::Stream(order) => self.stream(order),
            Effect::EndStream(stream) => drop(self.streams.borrow_mut().remove(&stream)),
        }
    }

    fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        self.executor.spawn(work).detach();
    }

    /// Does blocking work and tells the core of its outcome.
    fn then(&self, work: impl FnOnce() -> Input + Send + 'static) {
        let inputs = self.inputs.clone();
        self.spawn(async move { tell(&inputs, smol::unblock(work).await).await });
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
        let _turn = self.pulls.acquire().await;
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
            smol::unblock(move || runtime.start(&id, &image, workload)).await
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

    fn publish(&self, message: Message) {
        let identity = self.identity();
        let (kind, number, epoch) = match &message {
            Message::Hello(hello) => (Kind::Hello, hello.connection, hello.held.epoch),
            Message::Reported(report) => (Kind::Reported, report.sequence, report.applied.epoch),
            Message::Events(batch) => {
                (Kind::Event, batch.events.last().map_or(0, |event| event.number), 0)
            }
            Message::Result { number, .. } => (Kind::Result, *number, 0),
        };
        let topic = Topic::Device(identity.device.clone(), kind);
        let send = |header: Header| match &message {
            Message::Hello(hello) => self.send(&identity, &topic, &header, hello),
            Message::Reported(report) => self.send(&identity, &topic, &header, report),
            Message::Events(batch) => self.send(&identity, &topic, &header, batch),
            Message::Result { error, .. } => {
                let result = CommandResult { error: error.clone() };
                self.send(&identity, &topic, &header, &result)
            }
        };
        send(header(&identity, kind, epoch, number));
    }

    fn send<T: Serialize>(&self, identity: &Identity, topic: &Topic, header: &Header, body: &T) {
        let Some(connection) = self.connection.get() else {
            return;
        };
        let payload = envelope::seal(&identity.key, header, body);
        let topic = topic.under(&Prefix::default());
        // A full queue is a link that does not move: the core sends again what is not acknowledged.
        if self.to_link.try_send(ToLink { connection, topic, payload }).is_err() {
            log::warn!("the link is behind: a message is held back");
        }
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
        let folders = order.containers.iter().map(|c| self.runtime.folder(c)).collect();
        let id = order.stream;
        let sender = stream::Sender {
            identity: self.identity(),
            to_link: self.pieces.clone(),
            connection,
            stream: id,
        };
        let work = stream::run(sender, folders, order.tail, order.follow, Rc::clone(&until_ms));
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
