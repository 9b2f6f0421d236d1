//! Images: looked for, pulled, collected.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use limpet_agent_core::Input;
use limpet_protocol::{ContainerId, HostAccess, ImagePolicies};

use super::super::tell;
use super::Shell;
use crate::image::{Image, ImageName, Progress};
use crate::runtime::HostError;

/// How often at most a pull says how far it has come: each time costs a report.
const PROGRESS_STEPS: u64 = 10;

impl Shell {
    pub(super) async fn prepare(
        self: Rc<Self>,
        container: ContainerId,
        image: String,
        policies: ImagePolicies,
    ) {
        let input = match self.have(&container, &image, policies).await {
            Ok(found) => {
                self.ready.borrow_mut().insert(image, found);
                Input::ImageReady { container }
            }
            Err(reason) => Input::ImageFailed { container, reason },
        };
        tell(&self.inputs, input).await;
    }

    /// Whether a container could be given what it wants of the host.
    pub(super) async fn look(&self, host: HostAccess) -> Result<(), HostError> {
        if host.is_empty() {
            return Ok(());
        }
        let runtime = Arc::clone(&self.runtime);
        smol::unblock(move || runtime.look_at_host(&host)).await
    }

    /// Tells why it could not.
    pub(super) async fn lacks(&self, container: ContainerId, why: HostError) {
        let input = match why {
            HostError::Refused(refusal) => Input::NotAllowed { container, refusal },
            why @ (HostError::Open { .. } | HostError::NoDevice(_) | HostError::Mount { .. }) => {
                Input::HostLacks { container, reason: why.to_string() }
            }
        };
        tell(&self.inputs, input).await;
    }

    pub(super) async fn collect(self: Rc<Self>, keep: BTreeSet<String>, orphans: bool) {
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

    async fn have(
        &self,
        container: &ContainerId,
        image: &str,
        policies: ImagePolicies,
    ) -> Result<Image, String> {
        let name: ImageName = image.parse().map_err(|e: crate::image::NameError| e.to_string())?;
        let _in_use = self.images_in_use.read().await;
        let (images, wanted, asked) = (Arc::clone(&self.images), name.clone(), policies.clone());
        let found = smol::unblock(move || images.ready(&wanted, &asked)).await;
        if let Some(found) = found.map_err(|e| e.to_string())? {
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
        let pulled = smol::unblock(move || images.pull(&name, &policies, &tell)).await;
        pulled.map_err(|e| e.to_string())
    }
}
