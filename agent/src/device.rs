//! The device's program: a loop that feeds the core and carries out what it orders.

use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use limpet_agent_core::{Agent, Checkpoint, Input, Start};
use limpet_protocol::{DesiredState, Kind, OutboxId, Prefix};
use ring::rand::{SecureRandom, SystemRandom};
use smol::LocalExecutor;
use smol::channel::{Receiver, Sender};
use smol::future::FutureExt;

use crate::config::Config;
use crate::device::effects::Shell;
use crate::device::inbox::Inbox;
use crate::image::Images;
use crate::link::{self, FromLink};
use crate::runtime::{Folders, Running, Runtime};
use crate::state::{self, Identity, State};
use crate::{clock, facts};

mod effects;

pub(crate) use effects::header;

mod inbox;

/// Inputs that wait for the core.
const INPUTS: usize = 256;

/// Runs the device until the process is asked to end. Containers go on.
///
/// # Errors
/// When it cannot begin; once begun, it goes on through whatever comes.
pub fn run(config: Config) -> anyhow::Result<()> {
    let state = State::open(&config.data_dir)?;
    let identity = state.identity(config.device_id.clone())?;
    let boot = clock::boot_id();
    let runtime = Runtime::open(Folders {
        run_dir: config.run_dir.clone(),
        data_dir: config.data_dir.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        program: "/proc/self/exe".into(),
    })?;
    let images = Images::open(&config.data_dir.join("images"), config.registries)?;
    let found = runtime.scan()?;
    let mut running = Vec::new();
    let mut seen = Vec::new();
    for (found, handle) in found {
        running.extend(handle.map(|handle| (found.container.clone(), handle)));
        seen.push(found);
    }
    let checkpoint = match state::best(state.checkpoint())? {
        Some(checkpoint) => checkpoint,
        None => first_checkpoint(&state)?,
    };
    let agent = Agent::new(Start {
        now_ms: clock::boot_ms(),
        boot,
        seed: u64::from_be_bytes(random()?),
        version: facts::clip(env!("CARGO_PKG_VERSION")),
        features: runtime.features(),
        labels: config.labels,
        facts: facts::gather(),
        desired: stored_desired(&state, &identity)?,
        checkpoint,
        found: seen,
    });
    log::info!("device {} with {} containers", identity.device, running.len());
    let link = link::start(link::Options {
        broker: config.broker,
        prefix: Prefix::default(),
        device: identity.device.clone(),
        key: limpet_protocol::SigningKey::from_seed(identity.key.seed())?,
        boot,
        keep_alive: config.keep_alive,
    })
    .context("cannot start the MQTT thread")?;
    let (inputs, received) = smol::channel::bounded(INPUTS);
    let executor = Rc::new(LocalExecutor::new());
    let shell = Rc::new(Shell::new(
        Rc::clone(&executor),
        state,
        identity,
        images,
        runtime,
        link.to_link,
        link.streams,
        inputs,
    ));
    smol::block_on(executor.run(serve(agent, shell, running, received, link.from_link)))
}

/// A device that cannot store it goes on all the same: better seen twice than not at all.
fn first_checkpoint(state: &State) -> anyhow::Result<Checkpoint> {
    let checkpoint = Checkpoint::first(OutboxId(random()?));
    if let Err(error) = state.store_checkpoint(&checkpoint) {
        log::error!("{error}");
    }
    Ok(checkpoint)
}

/// The desired state that was stored, if its signature still holds.
fn stored_desired(state: &State, identity: &Identity) -> anyhow::Result<Option<DesiredState>> {
    let Some(signed) = state::best(state.desired())? else {
        return Ok(None);
    };
    match inbox::verify(identity, Kind::Desired, &signed).map(|envelope| envelope.read()) {
        Ok(Ok(desired)) => Ok(Some(desired)),
        Ok(Err(error)) => {
            log::error!("the stored desired state cannot be read: {error}");
            Ok(None)
        }
        Err(error) => {
            log::error!("the stored desired state is not the controller's: {error}");
            Ok(None)
        }
    }
}

async fn serve(
    mut agent: Agent,
    shell: Rc<Shell>,
    running: Vec<(limpet_protocol::ContainerId, Running)>,
    received: Receiver<Input>,
    from_link: Receiver<FromLink>,
) -> anyhow::Result<()> {
    for (container, handle) in running {
        shell.watch(container, handle);
    }
    let mut inbox = Inbox::default();
    loop {
        while let Some(effect) = agent.poll_effect() {
            shell.carry_out(effect);
        }
        let timeout = agent.poll_timeout();
        let input = next(&received, &from_link, timeout).await?;
        let input = match input {
            Woken::Input(input) => Some(input),
            Woken::Link(event) => inbox.read(&shell, event),
            Woken::Time => Some(Input::Tick),
        };
        if let Some(input) = input {
            agent.handle(clock::boot_ms(), input);
        }
    }
}

enum Woken {
    Input(Input),
    Link(FromLink),
    Time,
}

async fn next(
    received: &Receiver<Input>,
    from_link: &Receiver<FromLink>,
    timeout_ms: Option<u64>,
) -> anyhow::Result<Woken> {
    let input = async { Ok(Woken::Input(received.recv().await.context("no more inputs")?)) };
    let link = async { Ok(Woken::Link(from_link.recv().await.context("the MQTT thread ended")?)) };
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
    input.or(link).or(time).await
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
