//! Single stories that the simulation meets only by chance.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one kind of effect")]

use limpet_agent_core::{
    Agent, Checkpoint, Effect, Input, LocalAction, Message, Own, Owner, Start,
};
use limpet_protocol::{
    Ack, Action, BootId, ContainerId, DesiredState, DigestRule, Event, EventKind, Facts, Held,
    ImagePolicies, ImagePolicy, Nonce, OutboxId, Phase, SealingKey, StreamId, Workload, WorkloadId,
    WorkloadSpec, cbor,
};

const OUTBOX: OutboxId = OutboxId([7; 8]);

fn workload(id: &str, image: &str) -> Workload {
    let id: WorkloadId = id.parse().unwrap();
    let spec = WorkloadSpec::of(image);
    let (deployment, revision) = (id.deployment(), spec.digest());
    Workload { id, deployment, revision, requires: vec![], policy: None, spec, sealed: vec![] }
}

fn desired(generation: u64, workloads: &[(&str, &str)]) -> DesiredState {
    let workloads = workloads.iter().map(|(id, image)| workload(id, image)).collect();
    let held = Held { epoch: 1, generation };
    DesiredState { held, at_ms: 0, reconnect_spread_ms: 0, policy: None, upgrade: None, workloads }
}

fn agent(checkpoint: Checkpoint) -> Agent {
    agent_of(checkpoint, Owner::default())
}

fn agent_of(checkpoint: Checkpoint, owner: Owner) -> Agent {
    Agent::new(Start {
        now_ms: 0,
        boot: BootId([1; 16]),
        seed: 1,
        version: "test".try_into().unwrap(),
        features: vec![],
        labels: Default::default(),
        facts: Facts { memory_bytes: 1 << 30, ..Facts::default() },
        owner,
        sealing_key: None,
        desired: None,
        checkpoint,
        found: vec![],
        lost: vec![],
        own: Own::default(),
    })
}

fn effects(agent: &mut Agent) -> Vec<Effect> {
    std::iter::from_fn(|| agent.poll_effect()).collect()
}

/// A device whose disk and kernel never fail, and whose images come when the test says.
struct Device {
    agent: Agent,
    now_ms: u64,
    asked: Vec<(String, ContainerId)>,
    running: Vec<ContainerId>,
    /// What each image that was asked for, or started, had to be.
    policies: Vec<ImagePolicies>,
}

impl Device {
    fn new() -> Self {
        Self::of(Owner::default())
    }

    fn of(owner: Owner) -> Self {
        let agent = agent_of(Checkpoint::first(OUTBOX), owner);
        Self { agent, now_ms: 0, asked: vec![], running: vec![], policies: vec![] }
    }

    fn tell(&mut self, input: Input) {
        self.now_ms += 1;
        self.agent.handle(self.now_ms, input);
        while let Some(effect) = self.agent.poll_effect() {
            let answer = self.carry_out(effect);
            answer.into_iter().for_each(|input| self.agent.handle(self.now_ms, input));
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::StoreDesired { held, .. } => Some(Input::DesiredStored(held)),
            Effect::StoreCheckpoint { version, .. } => {
                Some(Input::CheckpointStored { version, done: true })
            }
            Effect::Prepare { container, image, policies, .. } => {
                self.policies.push(*policies);
                self.asked.push((image, container));
                None
            }
            Effect::Start { container, policies, .. } => {
                self.policies.push(*policies);
                self.running.push(container.clone());
                Some(Input::Started { container, pid: 1 })
            }
            Effect::Signal { container, .. } => {
                self.running.retain(|running| *running != container);
                Some(Input::Exited { container, exit: limpet_protocol::Exit::Code(0) })
            }
            _ => None,
        }
    }

    fn want(&mut self, state: DesiredState) {
        let signed = cbor::encode(&state);
        self.tell(Input::Desired { state: Box::new(state), signed });
    }

    fn image(&mut self, image: &str, reason: Option<&str>) {
        let at = self.asked.iter().position(|(asked, _)| asked == image).unwrap();
        let (_, container) = self.asked.remove(at);
        self.tell(match reason {
            None => Input::ImageReady { container },
            Some(reason) => Input::ImageFailed { container, reason: reason.into() },
        });
    }

    fn runs(&self) -> Vec<String> {
        let mut runs: Vec<_> = self.running.iter().map(ToString::to_string).collect();
        runs.sort();
        runs
    }

    fn phase(&self, workload: &str) -> Phase {
        self.status(workload).0
    }

    fn status(&self, workload: &str) -> (Phase, String) {
        let mut all = self.agent.workloads();
        let (_, status, _) = all.find(|(id, ..)| id.as_str() == workload).unwrap();
        (status.phase, status.message)
    }
}

#[test]
fn nothing_that_runs_is_touched_before_all_images_are_here() {
    let mut device = Device::new();
    device.want(desired(1, &[("a", "a1"), ("b", "b1"), ("gone", "g1")]));
    for image in ["a1", "b1", "g1"] {
        device.image(image, None);
    }
    let before = device.runs();
    assert_eq!(before.len(), 3);
    device.want(desired(2, &[("a", "a2"), ("b", "b2"), ("c", "c1")]));
    device.image("a2", None);
    assert_eq!(device.runs(), before, "b2 and c1 are on their way");
    device.image("c1", None);
    assert!(before.iter().all(|id| device.runs().contains(id)), "b2 is on its way");
    device.image("b2", None);
    let after = device.runs();
    assert!(after.len() == 3 && before.iter().all(|id| !after.contains(id)), "{after:?}");
}

#[test]
fn an_image_that_cannot_be_had_keeps_nobody_waiting_and_nor_does_one_of_another_change() {
    let mut device = Device::new();
    device.want(desired(1, &[("a", "a1"), ("b", "b1")]));
    device.image("a1", None);
    device.image("b1", None);
    let before = device.runs();
    device.want(desired(2, &[("a", "a1"), ("b", "b1"), ("slow", "s1")]));
    device.want(desired(3, &[("a", "a1"), ("slow", "s1")]));
    assert_eq!(device.runs(), before[..1], "b goes while s1 is on its way");
    device.want(desired(4, &[("a", "a2"), ("bad", "x"), ("slow", "s1")]));
    device.image("a2", None);
    assert_eq!(device.runs(), before[..1], "x is on its way");
    device.image("x", Some("nobody has it"));
    assert!(device.runs().len() == 1 && device.runs() != before[..1], "{:?}", device.runs());
}

#[test]
fn a_policy_touches_nothing_that_runs_and_is_asked_of_whatever_is_started() {
    let mut device = Device::new();
    device.want(desired(1, &[("a", "a1")]));
    device.image("a1", None);
    let first = device.runs();
    let policy = ImagePolicy { digest: DigestRule::Required, ..ImagePolicy::default() };
    device.want(DesiredState { policy: Some(policy.clone()), ..desired(2, &[("a", "a1")]) });
    assert_eq!((device.runs(), device.asked.len()), (first.clone(), 0));
    // It ends: another container waits for the image to be looked at again.
    let container = device.running.remove(0);
    device.tell(Input::Exited { container, exit: limpet_protocol::Exit::Code(1) });
    let policies = |fleet, deployment| ImagePolicies { fleet, deployment };
    device.now_ms += 60_000;
    device.tell(Input::Tick);
    assert_eq!(device.asked.len(), 1);
    assert_eq!(device.policies.last(), Some(&policies(Some(policy.clone()), None)));
    device.image("a1", Some("the fleet's policy (digest)"));
    assert_eq!((device.runs().len(), device.phase("a")), (0, Phase::Backoff));
    // The deployment's own comes beside it, and asks anew at once.
    let mut both = desired(3, &[("a", "a1")]);
    both.policy = Some(policy.clone());
    both.workloads[0].policy = Some(policy.clone());
    device.want(both);
    device.image("a1", None);
    let all = policies(Some(policy.clone()), Some(policy));
    assert_eq!(device.policies[3..], [all.clone(), all]);
    assert!(device.runs().len() == 1 && device.runs() != first);
}

#[test]
fn what_is_stopped_on_site_stays_so_until_somebody_decides_anew() {
    let mut device = Device::new();
    device.want(desired(1, &[("a", "a1")]));
    device.image("a1", None);
    let on_site = |action| Input::OnSite { workload: "a".parse().unwrap(), action };
    device.tell(on_site(LocalAction::Stop));
    assert_eq!((device.runs().len(), device.phase("a")), (0, Phase::Exited));
    assert_eq!(device.agent.poll_timeout(), None, "nothing is waited for");
    device.tell(Input::Tick);
    assert_eq!(device.runs().len(), 0);
    device.tell(on_site(LocalAction::Start));
    let first = device.runs();
    assert_eq!(device.phase("a"), Phase::Running);
    device.tell(on_site(LocalAction::Restart));
    assert!(device.runs().len() == 1 && device.runs() != first);
    device.tell(on_site(LocalAction::Stop));
    device.want(desired(2, &[("a", "a1")]));
    assert_eq!(device.phase("a"), Phase::Running);
}

/// The latest checkpoint was lost: the controller has heard of events 3 and 4, and the one before it
/// gives 3 out again.
#[test]
fn numbers_that_the_controller_has_heard_are_not_given_out_again() {
    let event = |number| Event {
        number,
        boot: BootId([9; 16]),
        at_ms: 1,
        kind: EventKind::Started,
        workload: None,
        container: None,
        exit: None,
        message: format!("old {number}"),
    };
    let events = vec![event(1), event(2)];
    let mut agent = agent(Checkpoint { next_event: 3, events, ..Checkpoint::first(OUTBOX) });
    let stored = |agent: &mut Agent, effects: &[Effect]| {
        let versions = effects.iter().filter_map(|effect| match effect {
            Effect::StoreCheckpoint { version, .. } => Some(*version),
            _ => None,
        });
        for version in versions {
            agent.handle(1, Input::CheckpointStored { version, done: true });
        }
    };
    let numbers = |effects: &[Effect]| -> Vec<(u64, String)> {
        let batches = effects.iter().filter_map(|effect| match effect {
            Effect::Publish(Message::Events(batch)) => Some(&batch.events),
            _ => None,
        });
        batches.flatten().map(|event| (event.number, event.message.clone())).collect()
    };
    let before = effects(&mut agent);
    agent.handle(2, Input::LinkUp { connection: 1, nonce: Nonce([1; 16]), keep_alive_s: 600 });
    let ack = Ack { outbox: OUTBOX, events: 4, sequence: 0, send_whole: false };
    agent.handle(3, Input::Acked { connection: 1, ack });
    // The checkpoint that was on its way has the old numbers: it proves nothing.
    stored(&mut agent, &before);
    let now = effects(&mut agent);
    assert_eq!(numbers(&now), [], "not before the numbers are on disk");
    stored(&mut agent, &now);
    assert_eq!(numbers(&effects(&mut agent)), [(5, "test".to_owned())], "the start of this agent");
}

#[test]
fn a_controller_that_knows_no_connection_is_greeted_again_and_not_more_often_than_that() {
    let mut agent = agent(Checkpoint::first(OUTBOX));
    let hellos = |agent: &mut Agent| {
        let all = effects(agent).into_iter();
        let hello = |effect| match effect {
            Effect::Publish(Message::Hello(hello)) => Some((hello.connection, hello.sent_ms)),
            _ => None,
        };
        all.filter_map(hello).collect::<Vec<_>>()
    };
    let ack = Ack { outbox: OUTBOX, events: 0, sequence: 0, send_whole: false };
    let acked = |agent: &mut Agent, now_ms, connection| {
        agent.handle(now_ms, Input::Acked { connection, ack });
    };
    agent.handle(5, Input::LinkUp { connection: 5, nonce: Nonce([1; 16]), keep_alive_s: 600 });
    assert_eq!(hellos(&mut agent), [(5, 5)]);
    acked(&mut agent, 6, Ack::NO_CONNECTION);
    acked(&mut agent, 7, 5);
    for now_ms in [8, 9, 30_000] {
        acked(&mut agent, now_ms, Ack::NO_CONNECTION);
        assert_eq!(hellos(&mut agent), [], "at {now_ms}");
    }
    assert!(agent.poll_timeout().is_some_and(|at_ms| at_ms <= 60_000));
    agent.handle(60_000, Input::Tick);
    assert_eq!(hellos(&mut agent), [(5, 60_000)]);
    acked(&mut agent, 60_001, 5);
    agent.handle(120_000, Input::Tick);
    assert_eq!(hellos(&mut agent), [], "nobody has asked");
}

/// What becomes of a look at the log of `web`, under this key.
fn look(key: Option<SealingKey>) -> (Option<Option<String>>, usize) {
    let mut agent = agent(Checkpoint::first(OUTBOX));
    let nonce = Nonce([1; 16]);
    let ack = Ack { outbox: OUTBOX, events: 0, sequence: 0, send_whole: false };
    let action = Action::Logs {
        stream: StreamId([1; 8]),
        workload: "web".parse().unwrap(),
        tail: 1,
        follow: false,
        lease_ms: 1000,
        key,
    };
    let state = Box::new(desired(1, &[("web", "box")]));
    agent.handle(1, Input::LinkUp { connection: 1, nonce, keep_alive_s: 6 });
    agent.handle(2, Input::Acked { connection: 1, ack });
    agent.handle(3, Input::Desired { signed: cbor::encode(&state), state });
    agent.handle(4, Input::DesiredStored(Held { epoch: 1, generation: 1 }));
    let container: ContainerId = "web.1".parse().unwrap();
    agent.handle(5, Input::ImageReady { container: container.clone() });
    agent.handle(6, Input::Started { container, pid: 1 });
    effects(&mut agent);
    agent.handle(7, Input::Commanded { number: 1, nonce, action });
    let (mut result, mut streams) = (None, 0);
    for effect in effects(&mut agent) {
        match effect {
            Effect::Publish(Message::Result { error, .. }) => result = Some(error),
            Effect::Stream(order) => streams += usize::from(Some(order.key) == key),
            _ => {}
        }
    }
    (result, streams)
}

#[test]
fn no_log_leaves_a_device_in_the_open() {
    assert_eq!(look(Some(SealingKey([9; 32]))), (Some(None), 1));
    let (result, streams) = look(None);
    assert!(result.flatten().unwrap().contains("names no key to seal the log to"));
    assert_eq!(streams, 0);
}

/// A desired state of one workload, changed.
fn changed(generation: u64, id: &str, change: impl Fn(&mut WorkloadSpec)) -> DesiredState {
    let mut state = desired(generation, &[(id, "a1")]);
    for workload in &mut state.workloads {
        change(&mut workload.spec);
        workload.revision = workload.spec.digest();
    }
    state
}

#[test]
fn what_the_owner_does_not_allow_is_refused_with_its_rule_and_what_ran_goes_on() {
    let mut device = Device::new();
    device.want(desired(1, &[("a", "a1")]));
    device.image("a1", None);
    let before = device.runs();
    device.want(changed(2, "a", |spec| spec.host.privileged = true));
    let why = "refused by this device's owner: privileged is not allowed";
    assert_eq!(device.status("a"), (Phase::Running, why.to_owned()));
    assert_eq!((device.runs(), device.asked.len()), (before, 0));
    let waiting = device.agent.events_waiting();
    device.tell(Input::Tick);
    assert_eq!(device.agent.events_waiting(), waiting, "it is told once");
    assert_eq!(device.agent.poll_timeout(), None, "and not tried again");
    device.want(changed(3, "b", |spec| spec.host.privileged = true));
    assert_eq!(device.status("b"), (Phase::Failed, why.to_owned()));
    device.want(changed(4, "b", |_| {}));
    device.image("a1", None);
    assert_eq!((device.phase("b"), device.runs().len()), (Phase::Running, 1));
}

#[test]
fn what_the_shell_was_not_allowed_is_not_tried_again() {
    let owner = Owner { privileged: true, ..Owner::default() };
    let refusal = owner.host_path("/srv", "/etc", &[]).unwrap_err();
    let mut device = Device::of(owner);
    let change =
        |generation, arg: &str| changed(generation, "a", |spec| spec.args = vec![arg.to_owned()]);
    device.want(change(1, "one"));
    let (_, container) = device.asked.remove(0);
    device.tell(Input::NotAllowed { container, refusal });
    let why = "refused by this device's owner: host_paths does not allow /etc, which /srv leads to";
    assert_eq!(device.status("a"), (Phase::Failed, why.to_owned()));
    device.tell(Input::Tick);
    assert_eq!((device.asked.len(), device.agent.poll_timeout()), (0, None));
    device.want(change(2, "two"));
    assert_eq!(device.asked.len(), 1, "another revision is another question");
    let (_, container) = device.asked.remove(0);
    device.tell(Input::HostLacks { container, reason: "no /srv".to_owned() });
    assert_eq!(device.status("a"), (Phase::Backoff, "no /srv".to_owned()));
    assert!(device.agent.poll_timeout().is_some(), "it may come yet");
}

#[test]
fn memory_is_shared_out_in_order_and_given_on_when_it_is_free() {
    let owner: Owner = Owner { memory_share: Some(0.5.try_into().unwrap()), ..Owner::default() };
    let mut device = Device::of(owner);
    let want = |generation, ids: &[&str], mib: u64| {
        let ids: Vec<(&str, &str)> = ids.iter().map(|id| (*id, "a1")).collect();
        let mut state = desired(generation, &ids);
        for workload in &mut state.workloads {
            workload.spec.resources.memory_bytes = Some(mib << 20);
            workload.revision = workload.spec.digest();
        }
        state
    };
    // Of 1 GiB.
    device.want(want(1, &["a", "b"], 300));
    device.image("a1", None);
    device.image("a1", None);
    assert_eq!(device.phase("a"), Phase::Running);
    let (phase, why) = device.status("b");
    assert_eq!(phase, Phase::Failed);
    assert!(why.contains("memory_share leaves 536 MB to workloads"), "{why}");
    device.want(want(2, &["b"], 300));
    while !device.asked.is_empty() {
        device.image("a1", None);
    }
    assert_eq!((device.phase("b"), device.runs().len()), (Phase::Running, 1));
    device.want(changed(3, "c", |_| {}));
    let (_, why) = device.status("c");
    assert!(why.contains("memory_share needs workloads with a limit"), "{why}");
}

#[test]
fn a_flood_of_messages_that_are_refused_is_a_line_and_an_event_a_minute() {
    let mut agent = agent(Checkpoint::first(OUTBOX));
    let (mut told, before) = (Vec::new(), agent.events_waiting());
    for now_ms in (0..150_000).step_by(10) {
        agent.handle(now_ms, Input::Refused { reason: format!("at {now_ms}") });
        told.extend(effects(&mut agent).into_iter().filter_map(|effect| match effect {
            Effect::Warn { message } => Some(message),
            _ => None,
        }));
    }
    let first = "refused: at 0";
    let minute = |at: u64| format!("refused: at {at} (and 5999 more before it)");
    assert_eq!(told, [first.to_owned(), minute(60_000), minute(120_000)]);
    assert_eq!(agent.events_waiting(), before + told.len());
}

#[test]
fn logs_that_the_owner_keeps_to_itself_are_not_sent() {
    let owner = Owner { remote_logs: false, ..Owner::default() };
    let mut agent = agent_of(Checkpoint::first(OUTBOX), owner);
    let nonce = Nonce([1; 16]);
    agent.handle(1, Input::LinkUp { connection: 1, nonce, keep_alive_s: 600 });
    let ack = Ack { outbox: OUTBOX, events: 0, sequence: 0, send_whole: false };
    agent.handle(2, Input::Acked { connection: 1, ack });
    let stream = StreamId([1; 8]);
    let workload = "a".parse().unwrap();
    let action = Action::Logs { stream, workload, tail: 1, follow: false, lease_ms: 1, key: None };
    agent.handle(3, Input::Commanded { number: 1, nonce, action });
    let answers = effects(&mut agent).into_iter().filter_map(|effect| match effect {
        Effect::Publish(Message::Result { error, .. }) => error,
        _ => None,
    });
    let answers: Vec<String> = answers.collect();
    assert_eq!(answers, ["refused by this device's owner: remote_logs is not allowed"]);
}
