//! Answers to those who talk to the agent on its own machine.

use limpet_agent_core::{Input, LocalAction};
use limpet_protocol::{Held, WorkloadId};

use super::Device;
use crate::local::server::Asked;
use crate::local::server::Follows::{self, Nothing};
use crate::local::{Answer, Request, Status, WorkloadLine};

impl Device {
    /// Answers; what is to be done is an input for the core.
    pub(super) fn asked(&self, asked: Asked) -> Option<Input> {
        let Asked { request, answer } = asked;
        let (said, follows, input) = self.consider(request);
        // Whoever asked may have gone.
        let _ = answer.try_send((said, follows));
        input
    }

    fn consider(&self, request: Request) -> (Answer, Follows, Option<Input>) {
        let act = |workload: WorkloadId, action| match self.knows(&workload) {
            Ok(()) => (Answer::Done, Nothing, Some(Input::OnSite { workload, action })),
            Err(why) => (why, Nothing, None),
        };
        match request {
            Request::Status => (Answer::Status(Box::new(self.status())), Nothing, None),
            Request::Logs { workload, .. } => match self.knows(&workload) {
                Ok(()) => (Answer::Done, Follows::Log(self.shell.readers(&workload)), None),
                Err(why) => (why, Nothing, None),
            },
            Request::Stop { workload } => act(workload, LocalAction::Stop),
            Request::Start { workload } => act(workload, LocalAction::Start),
            Request::Restart { workload } => act(workload, LocalAction::Restart),
            Request::Sleep { for_ms } => (Answer::Done, Nothing, Some(Input::Sleep { for_ms })),
            Request::Wake => {
                self.shell.quiet_until(0);
                (Answer::Done, Nothing, None)
            }
            Request::Preload { file, name } => {
                (Answer::Done, Follows::Preload(self.shell.preload(file, name)), None)
            }
            Request::Unpin { name } => match self.shell.unpin(&name) {
                Ok(()) => (Answer::Done, Nothing, None),
                Err(why) => (Answer::Refused(why), Nothing, None),
            },
        }
    }

    fn knows(&self, workload: &WorkloadId) -> Result<(), Answer> {
        let ids: Vec<String> = self.agent.workloads().map(|(id, ..)| id.to_string()).collect();
        if ids.contains(&workload.to_string()) {
            return Ok(());
        }
        let here = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
        Err(Answer::Refused(format!("no workload {workload} is here; there is: {here}")))
    }

    fn status(&self) -> Status {
        let held = self.agent.held();
        let line = |(id, status, image): (&WorkloadId, limpet_protocol::WorkloadStatus, String)| {
            WorkloadLine {
                workload: id.to_string(),
                phase: status.phase.to_string(),
                container: status.container,
                pid: status.pid,
                restarts: status.restarts,
                image,
                message: status.message,
            }
        };
        Status {
            device: self.shell.identity().device.to_string(),
            version: crate::version::version().to_owned(),
            broker: self.way.taken(),
            connected: self.agent.is_connected(),
            held: (held != Held::default()).then(|| held.to_string()),
            events_waiting: self.agent.events_waiting(),
            workloads: self.agent.workloads().map(line).collect(),
        }
    }
}
