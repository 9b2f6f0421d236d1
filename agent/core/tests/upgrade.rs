//! Another program of the agent, from its order to its proof.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one kind of effect")]

use limpet_agent_core::upgrade::{Failure, Record, Trial};
use limpet_agent_core::{
    Agent, Checkpoint, Effect, Found, FoundState, Input, Message, Own, Owner, Start,
};
use limpet_protocol::{
    Ack, BootId, DesiredState, Digest, Facts, Held, Nonce, OutboxId, Reported, Upgrade,
    UpgradePhase, cbor,
};

const OUTBOX: OutboxId = OutboxId([7; 8]);
const BOOT: BootId = BootId([1; 16]);

fn order(order: u64) -> Upgrade {
    Upgrade {
        order,
        version: "0.2.0".parse().unwrap(),
        digest: Digest([3; 32]),
        size: 100,
        deadline_s: 60,
        from: None,
    }
}

fn desired(generation: u64, upgrade: Option<Upgrade>) -> DesiredState {
    DesiredState {
        held: Held { epoch: 1, generation },
        at_ms: 0,
        reconnect_spread_ms: 0,
        policy: None,
        upgrade,
        workloads: vec![],
    }
}

/// A device whose disk never fails, and whose programs come when the test says.
struct Device {
    agent: Agent,
    now_ms: u64,
    /// What it has ordered that the test may look at.
    ordered: Vec<Effect>,
    reports: Vec<Reported>,
    events: Vec<String>,
}

impl Device {
    fn of(own: Own, found: Vec<Found>) -> Self {
        let agent = Agent::new(Start {
            now_ms: 0,
            boot: BOOT,
            seed: 1,
            version: "test".try_into().unwrap(),
            features: vec![],
            labels: Default::default(),
            facts: Facts { memory_bytes: 1 << 30, ..Facts::default() },
            owner: Owner::default(),
            sealing_key: None,
            desired: None,
            checkpoint: Checkpoint::first(OUTBOX),
            found,
            lost: vec![],
            own,
        });
        let mut device =
            Self { agent, now_ms: 0, ordered: vec![], reports: vec![], events: vec![] };
        device.tell(Input::Tick);
        device
    }

    fn new() -> Self {
        Self::of(Own::default(), vec![])
    }

    fn tell(&mut self, input: Input) {
        self.now_ms += 1;
        self.agent.handle(self.now_ms, input);
        while let Some(effect) = self.agent.poll_effect() {
            let answer = match effect {
                Effect::StoreDesired { held, .. } => Some(Input::DesiredStored(held)),
                Effect::StoreCheckpoint { version, .. } => {
                    Some(Input::CheckpointStored { version, done: true })
                }
                Effect::Publish(Message::Reported(report)) => {
                    self.reports.push(report);
                    None
                }
                Effect::Publish(Message::Events(batch)) => {
                    let told = batch.events.iter();
                    self.events.extend(told.map(|e| format!("{} {}", e.kind, e.message)));
                    None
                }
                effect => {
                    self.ordered.push(effect);
                    None
                }
            };
            answer.into_iter().for_each(|input| self.agent.handle(self.now_ms, input));
        }
    }

    fn want(&mut self, state: DesiredState) {
        let signed = cbor::encode(&state);
        self.tell(Input::Desired { state: Box::new(state), signed });
    }

    fn connect(&mut self) {
        self.connect_to(0);
    }

    /// To a controller that has heard of so many changes.
    fn connect_to(&mut self, heard: u64) {
        let connection = self.now_ms + 1;
        self.tell(Input::LinkUp { connection, nonce: Nonce([1; 16]), keep_alive_s: 6 });
        self.ack(heard);
    }

    /// The controller answers: it has taken in all up to this report.
    fn ack(&mut self, sequence: u64) {
        let connection = self.hello();
        let ack = Ack { outbox: OUTBOX, events: 0, sequence, send_whole: false };
        self.tell(Input::Acked { connection, ack });
    }

    fn hello(&self) -> u64 {
        let hello = self.ordered.iter().rev().find_map(|effect| match effect {
            Effect::Publish(Message::Hello(hello)) => Some(hello.connection),
            _ => None,
        });
        hello.unwrap()
    }

    fn fetches(&self) -> usize {
        self.ordered.iter().filter(|e| matches!(e, Effect::FetchProgram(_))).count()
    }

    fn trial(&self) -> Option<Trial> {
        self.ordered.iter().find_map(|effect| match effect {
            Effect::TryProgram(trial) => Some((**trial).clone()),
            _ => None,
        })
    }

    fn kept(&self) -> bool {
        self.ordered.iter().any(|effect| matches!(effect, Effect::KeepProgram))
    }

    fn settled(&self) -> Vec<(u64, bool)> {
        let settled = self.ordered.iter().filter_map(|effect| match effect {
            Effect::SettleUpgrade { order, failure } => Some((*order, failure.is_none())),
            _ => None,
        });
        settled.collect()
    }

    /// The latest that it has told of an upgrade.
    fn told(&self) -> (UpgradePhase, String) {
        let told = self.reports.last().and_then(|report| report.upgrade.clone()).unwrap();
        (told.phase, told.message)
    }
}

#[test]
fn an_order_is_fetched_and_tried_and_a_cut_link_is_waited_for() {
    let mut device = Device::new();
    device.connect();
    device.want(desired(1, None));
    assert_eq!(device.fetches(), 0, "absent means as it is");
    device.want(desired(2, Some(order(7))));
    assert_eq!(device.fetches(), 1);
    device.tell(Input::ProgramFailed { reason: "cut".to_owned(), may_pass: true });
    assert_eq!(device.fetches(), 1);
    device.now_ms = device.agent.poll_timeout().unwrap();
    device.tell(Input::Tick);
    assert_eq!(device.fetches(), 2);
    device.tell(Input::ProgramFailed { reason: "cut".to_owned(), may_pass: true });
    // What waits does not wait on when the link is back.
    device.connect();
    assert_eq!(device.fetches(), 3);
    device.tell(Input::ProgramProgressed { received: 40, total: 100 });
    device.tell(Input::ProgramReady { runs: false });
    let trial = device.trial().unwrap();
    assert_eq!((trial.order, trial.deadline_s, trial.attempts), (7, 60, 0));
    let upgrading = device.events.iter().filter(|e| e.starts_with("upgrading")).count();
    assert_eq!(upgrading, 1, "{:?}", device.events);
}

#[test]
fn an_order_that_failed_is_not_begun_again_and_the_next_one_is() {
    let mut device = Device::new();
    device.connect();
    device.want(desired(1, Some(order(7))));
    device
        .tell(Input::ProgramFailed { reason: "not what was ordered".to_owned(), may_pass: false });
    assert_eq!(device.settled(), [(7, false)]);
    device.want(desired(2, Some(order(7))));
    device.connect();
    assert_eq!(device.fetches(), 1);
    // Nor after a restart.
    let failure = Failure {
        version: "0.2.0".parse().unwrap(),
        reason: "not what was ordered".to_owned(),
        told: true,
    };
    let mut record = Record::new(Digest([1; 32]));
    record.settle(7, Some(failure));
    let mut device = Device::of(Own { record: Some(record), on_trial: false }, vec![]);
    device.connect();
    device.want(desired(3, Some(order(7))));
    assert_eq!((device.fetches(), device.told().0), (0, UpgradePhase::Failed));
    assert!(!device.events.iter().any(|e| e.starts_with("upgrade-failed")), "told twice");
    device.want(desired(4, Some(order(8))));
    assert_eq!(device.fetches(), 1);
    // What runs already is done.
    device.tell(Input::ProgramReady { runs: true });
    assert_eq!((device.settled(), device.trial()), (vec![(8, true)], None));
}

#[test]
fn an_order_that_is_taken_back_is_not_carried_out() {
    let mut device = Device::new();
    device.want(desired(1, Some(order(7))));
    device.want(desired(2, Some(order(8))));
    device.tell(Input::ProgramReady { runs: false });
    assert_eq!((device.trial(), device.fetches()), (None, 2), "the later one is fetched");
    device.want(desired(3, None));
    device.tell(Input::ProgramReady { runs: false });
    assert_eq!((device.trial(), device.fetches()), (None, 2));
}

/// One on trial, which must find these containers.
fn on_trial(ran: &[&str], found: &[(&str, FoundState)]) -> Device {
    let ran = ran.iter().map(|id| id.parse().unwrap()).collect();
    let mut record = Record::new(Digest([1; 32]));
    let reason = "an earlier order's".to_owned();
    record.settle(6, Some(Failure { version: order(6).version, reason, told: true }));
    record.try_out(Digest([1; 32]), Trial::new(&order(7), BOOT, ran));
    let found = found.iter().map(|(id, state)| {
        let container = id.parse().unwrap();
        Found { container, made: None, state: *state }
    });
    Device::of(Own { record: Some(record), on_trial: true }, found.collect())
}

#[test]
fn one_on_trial_has_proved_itself_when_its_report_is_acknowledged() {
    let mut device = on_trial(&["web.3"], &[("web.3", FoundState::Running { pid: 9 })]);
    assert!(!device.kept());
    // The agent before it told of changes that no checkpoint holds.
    device.connect_to(10);
    assert!(!device.kept(), "that it is greeted is not enough");
    device.ack(10);
    assert!(!device.kept(), "nor is an answer to its events");
    let sequence = device.reports.last().unwrap().sequence;
    assert_eq!(device.told().0, UpgradePhase::Trying);
    device.ack(sequence);
    assert!(device.kept());
    assert!(!device.events.iter().any(|e| e.starts_with("upgraded")));
    device.tell(Input::ProgramKept { done: false });
    device.ordered.retain(|effect| !matches!(effect, Effect::KeepProgram));
    device.now_ms = device.agent.poll_timeout().unwrap();
    device.tell(Input::Tick);
    assert!(device.kept(), "what could not be stored is stored again");
    device.tell(Input::ProgramKept { done: true });
    device.ack(device.reports.last().unwrap().sequence);
    assert_eq!(device.told().0, UpgradePhase::Done);
}

#[test]
fn what_an_earlier_process_carried_out_is_told_again() {
    let mut record = Record::new(Digest([1; 32]));
    record.settle(7, None);
    let mut device = Device::of(Own { record: Some(record), on_trial: false }, vec![]);
    device.connect();
    device.want(desired(1, Some(order(7))));
    device.ack(device.reports.last().unwrap().sequence);
    assert_eq!((device.told().0, device.fetches()), (UpgradePhase::Done, 0));
}

#[test]
fn one_that_does_not_find_what_ran_does_not_prove_itself() {
    for (found, proves) in [
        (vec![("web.3", FoundState::Running { pid: 9 })], true),
        (vec![("web.3", FoundState::Ended(limpet_protocol::Exit::Code(0)))], true),
        (vec![("web.3", FoundState::Broken)], false),
        (vec![], false),
    ] {
        let mut device = on_trial(&["web.3"], &found);
        device.connect();
        device.ack(device.reports.last().unwrap().sequence);
        assert_eq!(device.kept(), proves, "{found:?}");
    }
}

#[test]
fn what_the_launcher_found_is_told_once() {
    let mut record = Record::new(Digest([1; 32]));
    record.try_out(Digest([1; 32]), Trial::new(&order(7), BOOT, vec![]));
    record.fail_trial("it ended".to_owned());
    let mut device = Device::of(Own { record: Some(record), on_trial: false }, vec![]);
    device.connect();
    assert_eq!(device.told(), (UpgradePhase::Failed, "it ended".to_owned()));
    assert!(device.events.contains(&"upgrade-failed to 0.2.0: it ended".to_owned()));
    let told = device.ordered.iter().any(|effect| {
        let Effect::SettleUpgrade { failure: Some(failure), .. } = effect else { return false };
        failure.told
    });
    assert!(told, "{:?}", device.ordered);
}
