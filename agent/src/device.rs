//! The device's program: a loop that feeds the core and carries out what it orders.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use limpet_agent_core::{Agent, Checkpoint, Input, Own, Start};
use limpet_protocol::{DesiredState, Feature, OpeningKey, OutboxId, Phase};
use limpet_service::Supervisor;
use ring::rand::{SecureRandom, SystemRandom};
use smol::LocalExecutor;
use smol::channel::{Receiver, Sender};
use smol::future::FutureExt;

use crate::alive::{self, Beat};
use crate::config::Config;
use crate::device::effects::{Parts, Sends, Shell};
use crate::device::inbox::Inbox;
use crate::image::Images;
use crate::link::{self, Broker, FromLink, Pace, Route, Way};
use crate::local::server::Asked;
use crate::logs::Logs;
use crate::runtime::{Folders, Runtime};
use crate::state::{Identity, Opened, State};
use crate::upgrade::{Launched, Programs};
use crate::{clock, facts, local, version};

mod effects;

pub(crate) use effects::header;

mod inbox;
mod membership;
mod on_site;
mod preload;
mod turns;

use membership::Joining;

/// Inputs that wait for the core.
const INPUTS: usize = 256;

/// Runs the device until the process is asked to end. Containers go on.
///
/// # Errors
/// When it cannot begin; once begun, it goes on through whatever comes.
pub fn run(config: Config, launched: Launched) -> anyhow::Result<()> {
    let Opened { state, identity, desired, checkpoint, clock_floor_ms, mut lost } =
        State::open_or(&config.data_dir, config.naming.id.clone(), || config.naming.fallback())?;
    clock::raise_floor(clock_floor_ms);
    let supervisor = Supervisor::of_process();
    let (identity, route) = route(&state, identity, &config, &supervisor)?;
    let way = Arc::new(Way::new(route));
    let boot = clock::boot_id();
    let runtime = Runtime::open(folders(&config), config.owner.clone())?;
    let images = Images::open(&config.data_dir.join("images"), config.registries)?;
    let logs = Logs::new(config.logs, &config.data_dir, runtime.containers());
    let (mut seen, mut running) = (Vec::new(), Vec::new());
    for (found, handle) in runtime.scan()? {
        running.extend(handle.map(|handle| (found.container.clone(), handle)));
        seen.push(found);
    }
    let desired = stored_desired(&identity, desired, &mut lost);
    let programs = Programs::new(&config.data_dir, launched, &mut lost);
    for lost in &lost {
        log::error!("{lost}");
    }
    let checkpoint = checkpoint.map_or_else(|| first_checkpoint(&state), Ok)?;
    let agent = Agent::new(Start {
        now_ms: clock::boot_ms(),
        boot,
        seed: u64::from_be_bytes(random()?),
        version: facts::clip(version::version()),
        features: features(&runtime),
        labels: config.labels,
        facts: facts::gather(),
        sealing_key: Some(OpeningKey::of(&identity.key).public()),
        owner: config.owner,
        desired,
        checkpoint,
        found: seen,
        lost,
        own: Own { record: programs.record(), on_trial: programs.on_trial() },
    });
    log::info!("device {} with {} containers", identity.device, running.len());
    let pace = Arc::new(Pace::default());
    let (beat, beaten) = alive::pair();
    let options = link::Options {
        way: Arc::clone(&way),
        device: identity.device.clone(),
        key: Arc::clone(&identity.key),
        boot,
        keep_alive: config.keep_alive,
        seed: u64::from_be_bytes(random()?),
        pace: Arc::clone(&pace),
    };
    let link = link::start(options, beaten).context("cannot start the MQTT thread")?;
    let (inputs, received) = smol::channel::bounded(INPUTS);
    let executor = Rc::new(LocalExecutor::new());
    let (asks, asked) = smol::channel::bounded(1);
    if let Err(error) = local::server::start(&executor, &config.run_dir, asks) {
        log::error!("nobody can talk to this agent on this machine: {error}");
    }
    let parts = Parts { state, identity, boot, clock_floor_ms, images, runtime, logs, programs };
    let sends =
        Sends { to_link: link.to_link, pieces: link.streams, pace, way: Arc::clone(&way), inputs };
    let shell = Rc::new(Shell::new(Rc::clone(&executor), parts, sends));
    for (container, handle) in running {
        shell.watch(container, handle);
    }
    let due = smol::Timer::interval(beat.every);
    let sources = Sources { received, from_link: link.from_link, asked, due };
    let device = Device { agent, shell, inbox: Inbox::default(), way, beat, supervisor };
    smol::block_on(executor.run(device.serve(sources)))
}

/// Where containers are kept, as the agent's owner has it.
pub(crate) fn folders(config: &Config) -> Folders {
    Folders {
        run_dir: config.run_dir.clone(),
        data_dir: config.data_dir.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        program: "/proc/self/exe".into(),
    }
}

/// Where to connect to; a member of a fleet knows, and whoever is none becomes one first.
fn route(
    state: &State,
    identity: Identity,
    config: &Config,
    supervisor: &Supervisor,
) -> anyhow::Result<(Identity, Route)> {
    let proxies = config.proxies.clone();
    if let Some(broker) = config.broker.clone() {
        let brokers = vec![Broker::plain(broker)];
        return Ok((identity, Route { brokers, tls: None, proxies }));
    }
    let joining = Joining { join_file: &config.join_file, proxies: &proxies, supervisor };
    let member = membership::await_membership(state, identity, &joining)?;
    let route = Route::of(&member, proxies)?;
    Ok((member, route))
}

/// A device that cannot store it goes on all the same: better seen twice than not at all.
fn first_checkpoint(state: &State) -> anyhow::Result<Checkpoint> {
    let checkpoint = Checkpoint::first(OutboxId(random()?));
    if let Err(error) = state.store_checkpoint(&checkpoint) {
        log::error!("{error}");
    }
    Ok(checkpoint)
}

/// What this agent enforces, and what its kernel can.
fn features(runtime: &Runtime) -> Vec<Feature> {
    let own = [Feature::IMAGE_POLICY, Feature::UPGRADE].map(Feature::known);
    runtime.features().into_iter().chain(own).collect()
}

/// The desired state that was stored, if its signature still holds.
fn stored_desired(
    identity: &Identity,
    signed: Option<Vec<u8>>,
    lost: &mut Vec<String>,
) -> Option<DesiredState> {
    match inbox::verify_stored(identity, &signed?).map(|envelope| envelope.read()) {
        Ok(Ok(desired)) => Some(desired),
        Ok(Err(error)) => {
            lost.push(format!("the stored desired state cannot be read: {error}"));
            None
        }
        Err(error) => {
            lost.push(format!("the stored desired state is not the controller's: {error}"));
            None
        }
    }
}

/// A device that runs.
struct Device {
    agent: Agent,
    shell: Rc<Shell>,
    inbox: Inbox,
    way: Arc<Way>,
    beat: Beat,
    supervisor: Supervisor,
}

/// Where everything comes from that the core is told.
struct Sources {
    received: Receiver<Input>,
    from_link: Receiver<FromLink>,
    asked: Receiver<Asked>,
    /// A beat is due.
    due: smol::Timer,
}

impl Device {
    async fn serve(mut self, mut sources: Sources) -> anyhow::Result<()> {
        self.shell.heed(self.agent.desired_state());
        self.supervisor.tell("READY=1");
        loop {
            while let Some(effect) = self.agent.poll_effect() {
                self.shell.carry_out(effect);
            }
            self.say_status();
            let input = match sources.next(self.agent.poll_timeout()).await? {
                Woken::Input(input) => Some(input),
                Woken::Link(event) => self.inbox.read(&self.shell, event),
                Woken::Asked(asked) => self.asked(asked),
                Woken::Time => Some(Input::Tick),
                Woken::Beat => {
                    self.beat.beat(&self.supervisor)?;
                    None
                }
            };
            if let Some(input) = input {
                self.agent.handle(clock::boot_ms(), input);
                self.shell.heed(self.agent.desired_state());
            }
        }
    }

    /// For `systemctl status`.
    fn say_status(&self) {
        if !self.supervisor.is_there() {
            return;
        }
        let (mut all, mut running) = (0, 0);
        for (_, status, _) in self.agent.workloads() {
            all += 1;
            running += usize::from(status.phase == Phase::Running);
        }
        let link = if self.agent.is_connected() { "up" } else { "down" };
        self.supervisor.status(format!("link {link}, {running} of {all} workloads run"));
    }
}

enum Woken {
    Input(Input),
    Link(FromLink),
    Asked(Asked),
    Time,
    Beat,
}

impl Sources {
    async fn next(&mut self, timeout_ms: Option<u64>) -> anyhow::Result<Woken> {
        let input =
            async { Ok(Woken::Input(self.received.recv().await.context("no more inputs")?)) };
        let link = async {
            Ok(Woken::Link(self.from_link.recv().await.context("the MQTT thread ended")?))
        };
        let asked = async {
            match self.asked.recv().await {
                Ok(asked) => Ok(Woken::Asked(asked)),
                // There is no socket.
                Err(_) => smol::future::pending().await,
            }
        };
        let time = async {
            match timeout_ms {
                Some(at_ms) => {
                    let wait = at_ms.saturating_sub(clock::boot_ms());
                    smol::Timer::after(Duration::from_millis(wait)).await;
                    Ok(Woken::Time)
                }
                None => smol::future::pending().await,
            }
        };
        let beat = async {
            (&mut self.due).await;
            Ok(Woken::Beat)
        };
        // The beat first: however much else there is to do, it is not late.
        beat.or(input).or(link).or(asked).or(time).await
    }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("no random bytes"))?;
    Ok(bytes)
}

/// Hands an input to the core's loop; it takes them for as long as the process lives.
async fn tell(inputs: &Sender<Input>, input: Input) {
    if inputs.send(input).await.is_err() {
        log::debug!("an input came after the end");
    }
}
