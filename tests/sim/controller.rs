//! A controller as devices see it: the real inbox, and around it the least that a controller does.

use std::collections::BTreeMap;

use limpet_agent_core::Message;
use limpet_controller_core::{Cursor, Inbox, Told};
use limpet_protocol::{
    Ack, DesiredState, Event, Held, Hello, OutboxId, Restart, Stop, Workload, WorkloadId,
    WorkloadSpec,
};

use crate::random::Random;

/// What a controller sends.
#[derive(Clone)]
pub(crate) enum ToDevice {
    Desired(DesiredState),
    Ack(u64, Ack),
}

/// One device, as the controller knows it.
pub(crate) struct Seen {
    pub(crate) desired: DesiredState,
    pub(crate) inbox: Option<Inbox>,
    connection: u64,
    /// Events taken in, by outbox and number: none twice, and none under another's number.
    events: BTreeMap<(OutboxId, u64), Event>,
}

impl Seen {
    pub(crate) fn new() -> Self {
        let held = Held { epoch: 1, generation: 0 };
        Self {
            desired: DesiredState { held, at_ms: 0, reconnect_spread_ms: 0, workloads: vec![] },
            inbox: None,
            connection: 0,
            events: BTreeMap::new(),
        }
    }

    /// An operator changes their mind.
    pub(crate) fn change(&mut self, random: &mut Random) -> ToDevice {
        let workload = |number: u64, random: &mut Random| {
            let restart = if random.percent(80) { Restart::Always } else { Restart::OnFailure };
            let spec = WorkloadSpec {
                image: format!("image-{}", random.below(4)),
                command: vec![],
                args: vec![random.below(3).to_string()],
                env: BTreeMap::new(),
                workdir: None,
                user: None,
                resources: Default::default(),
                restart,
                stop: Stop { signal: None, grace_ms: 1000 },
            };
            let id: WorkloadId = format!("w{number}").parse().unwrap();
            Workload {
                deployment: id.deployment(),
                id,
                revision: spec.digest(),
                requires: vec![],
                spec,
            }
        };
        let wanted: Vec<u64> = (0..4).filter(|_| random.percent(60)).collect();
        self.desired.held.generation += 1;
        self.desired.workloads = wanted.into_iter().map(|n| workload(n, random)).collect();
        ToDevice::Desired(self.desired.clone())
    }

    /// Takes a message in, and answers.
    pub(crate) fn take(&mut self, now_ms: u64, message: Message) -> Vec<ToDevice> {
        match message {
            Message::Hello(hello) => self.hello(&hello),
            Message::Reported(report) => {
                let Some(inbox) = &mut self.inbox else {
                    return vec![];
                };
                let changes = inbox.report(now_ms, report);
                let answer = changes.map(|c| ToDevice::Ack(self.connection, inbox.ack(c.differs)));
                answer.into_iter().collect()
            }
            Message::Events(batch) => {
                let Some(inbox) = &mut self.inbox else {
                    return vec![];
                };
                let outbox = batch.outbox;
                for event in &batch.events {
                    let known = self.events.get(&(outbox, event.number));
                    let same = known.is_none_or(|known| known == event);
                    assert!(same, "{event:?} has the number of {known:?}");
                }
                for told in inbox.events(batch) {
                    match told {
                        Told::Event { event, .. } => {
                            let before = self.events.insert((outbox, event.number), event);
                            assert!(before.is_none(), "told twice: {before:?}");
                        }
                        Told::Lost(count) => panic!("{count} events are lost"),
                    }
                }
                vec![ToDevice::Ack(self.connection, inbox.ack(false))]
            }
            Message::Result { .. } | Message::Asleep { .. } => vec![],
        }
    }

    fn hello(&mut self, hello: &Hello) -> Vec<ToDevice> {
        let inbox =
            self.inbox.get_or_insert_with(|| Inbox::new(Cursor::new(hello), BTreeMap::new()));
        let Some(differs) = inbox.hello(hello) else {
            return vec![];
        };
        self.connection = hello.connection;
        let mut answers = vec![ToDevice::Ack(hello.connection, inbox.ack(differs))];
        assert!(hello.held <= self.desired.held || hello.held == Held::default());
        if hello.held < self.desired.held {
            answers.push(ToDevice::Desired(self.desired.clone()));
        }
        answers
    }

    /// Numbers of the events of one outbox have no holes.
    pub(crate) fn check(&self) {
        let mut last: BTreeMap<OutboxId, u64> = BTreeMap::new();
        for (outbox, number) in self.events.keys() {
            let before = last.insert(*outbox, *number).unwrap_or(0);
            assert_eq!(before + 1, *number, "an event is missing");
        }
    }
}
