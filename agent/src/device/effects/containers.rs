//! Containers: started, followed to their end, removed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use limpet_agent_core::Input;
use limpet_protocol::{ContainerId, ImagePolicies, OpeningKey, SealedSecret, Workload};
use smol::Async;

use super::super::tell;
use super::Shell;
use crate::image::{Image, ImageName, NameError};
use crate::runtime::secrets::{self, Opened};
use crate::runtime::{Content, Running, Runtime};

/// What would not be removed is tried again after this long.
const REMOVE_AGAIN: Duration = Duration::from_secs(5);

impl Shell {
    pub(super) async fn start(
        self: Rc<Self>,
        container: ContainerId,
        workload: Workload,
        policies: ImagePolicies,
    ) {
        let image = match self.image_of(&workload, policies).await {
            Ok(image) => image,
            Err(reason) => {
                return tell(&self.inputs, Input::StartFailed { container, reason }).await;
            }
        };
        let secrets = match self.secrets_of(&workload) {
            Ok(secrets) => secrets,
            Err(reason) => {
                return tell(&self.inputs, Input::StartFailed { container, reason }).await;
            }
        };
        let started = {
            let _turn = self.starts.acquire().await;
            let (runtime, id) = (Arc::clone(&self.runtime), container.clone());
            let logs = self.logs.clone();
            smol::unblock(move || {
                // Without a folder on disk the log goes where it always can.
                let logs = logs.begin(&id).unwrap_or_default();
                runtime.start(&id, &image, Content { workload, secrets, logs })
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

    /// The secrets of a workload, opened: they are in memory for as long as its container is made.
    fn secrets_of(&self, workload: &Workload) -> Result<Vec<Opened>, String> {
        let identity = self.identity();
        let key = OpeningKey::of(&identity.key);
        secrets::open(&workload.spec.secrets, |wanted| {
            let is_it = |s: &&SealedSecret| (&s.name, s.version) == (&wanted.name, wanted.version);
            let sealed = workload.sealed.iter().find(is_it);
            let sealed = sealed.ok_or("it was not sealed to this device")?;
            sealed.open(&key, &identity.device).map_err(|e| e.to_string())
        })
    }

    /// The image that was made ready for a workload, or is here from before. Where anything is asked
    /// of it, it is looked at again: what ran before may not be what is asked for since.
    async fn image_of(
        &self,
        workload: &Workload,
        policies: ImagePolicies,
    ) -> Result<Image, String> {
        let image = &workload.spec.image;
        let ready = self.ready.borrow().get(image).cloned();
        if let Some(ready) = ready.filter(|_| policies.each().next().is_none()) {
            return Ok(ready);
        }
        let name: ImageName = image.parse().map_err(|e: NameError| e.to_string())?;
        let images = Arc::clone(&self.images);
        let found = smol::unblock(move || images.ready(&name, &policies)).await;
        found.map_err(|e| e.to_string())?.ok_or_else(|| {
            format!("image {image} is not here any more, or not with what its policies ask for")
        })
    }

    /// Follows a container to its end.
    pub(in crate::device) fn watch(&self, container: ContainerId, running: Running) {
        let (runtime, inputs) = (Arc::clone(&self.runtime), self.inputs.clone());
        self.spawn(async move {
            let exit = follow(&runtime, &container, running).await;
            tell(&inputs, Input::Exited { container, exit }).await;
        });
    }
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

pub(super) async fn remove(runtime: Arc<Runtime>, container: ContainerId) {
    loop {
        let (runtime, id) = (Arc::clone(&runtime), container.clone());
        match smol::unblock(move || runtime.remove(&id)).await {
            Ok(()) => return,
            Err(error) => log::error!("{error}; trying again"),
        }
        smol::Timer::after(REMOVE_AGAIN).await;
    }
}
