//! What members are offered, and with whose signature they are told.

use limpet_protocol::PublicKey;

use super::super::{AuthorityStep, RotateError};
use super::*;
use crate::view::RotationView;

impl Known {
    fn authority(&self, step: AuthorityStep) -> Result<RotationView, RotateError> {
        self.call(move |fleet| fleet.rotate_authority(&local(), step))
    }

    fn offers(&mut self) -> usize {
        self.ordered().iter().filter(|order| order.ends_with("/command")).count()
    }

    /// The device answers the latest command.
    fn answers(&self, error: Option<&'static str>) {
        self.call(move |fleet| fleet.took_certificate(&id(), fleet.last_command, error));
    }

    fn rotate_signing_key(&self) -> PublicKey {
        self.call(|fleet| fleet.rotate_signing_key(&local())).unwrap();
        self.present()
    }

    fn present(&self) -> PublicKey {
        self.call(|fleet| fleet.keys.present().public())
    }

    /// Its latest desired state.
    fn latest(&self) -> Held {
        self.call(|fleet| fleet.devices[&id()].record.held)
    }

    /// What the device was told since it was last asked, and by whose signature.
    fn told(&mut self) -> Vec<(Kind, PublicKey)> {
        let mut told = Vec::new();
        while let Ok(order) = self.outgoing.try_recv() {
            let Outgoing::Publish { topic, payload, .. } = order else { continue };
            let prefix = "limpet/v1".parse().unwrap();
            let Ok(Topic::Device(device, leaf)) = Topic::parse(&prefix, &topic) else { continue };
            let kind = leaf.kind();
            let expected =
                envelope::Expected { prefix: &prefix, device: &device, kind, signer: None };
            told.push((kind, envelope::open(&payload, expected).unwrap().signer));
        }
        told
    }
}

#[test]
fn what_clients_are_shown_ends_after_the_latest_time_that_a_device_was_told() {
    let mut known = Known::joined(false);
    let ends = |known: &mut Known, at_ms: u64| {
        known.call(move |fleet| {
            fleet.now_ms = at_ms;
            fleet.publish_desired(&id());
            fleet.serve_anew();
        });
        let served = std::iter::from_fn(|| known.outgoing.try_recv().ok());
        let until = served.filter_map(|order| match order {
            Outgoing::Serve(served) => Some(served.until_ms),
            Outgoing::Publish { .. } | Outgoing::Drop { .. } => None,
        });
        until.last().unwrap()
    };
    let (right, wrong) = (1_800_000_000_000, 2_800_000_000_000);
    known.hello(1).unwrap();
    let lives_ms = ends(&mut known, right) - right;
    assert_eq!(ends(&mut known, wrong), wrong + lives_ms);
    // The clock is right again: devices go on believing what they were told.
    assert_eq!(ends(&mut known, right), wrong + lives_ms);
    known.call(|fleet| fleet.load_members().unwrap());
    assert_eq!(ends(&mut known, right), wrong + lives_ms);
}

#[test]
fn what_a_member_is_offered_is_offered_once_on_a_connection() {
    let mut known = Known::joined(false);
    known.hello(1).unwrap();
    known.ordered();
    known.authority(AuthorityStep::Begin).unwrap();
    // Whoever comes with another certificate must find that it is taken.
    assert_eq!(known.ordered(), ["serve", "limpet/v1/d/dev-0/command"]);
    for _ in 0..3 {
        known.call(|fleet| fleet.alive(&id()));
    }
    assert_eq!(known.ordered(), [""; 0]);
    // What was sent on the former connection may have been lost.
    known.hello(2).unwrap();
    assert_eq!(known.offers(), 1);
    let why = known.authority(AuthorityStep::Finish).unwrap_err().to_string();
    assert!(why.contains("Members: dev-0; publishers: none"), "{why}");
    known.answers(None);
    assert_eq!(known.call(|fleet| fleet.rotation()).unwrap().authority.waiting, [""; 0]);
    known.authority(AuthorityStep::Finish).unwrap();
    // It is told that the former is no more; where it refuses that, it is asked when it comes again.
    assert_eq!(known.ordered(), ["serve", "limpet/v1/d/dev-0/command"]);
    known.answers(Some("no"));
    known.call(|fleet| fleet.alive(&id()));
    assert_eq!(known.offers(), 0);
    known.hello(3).unwrap();
    assert_eq!(known.offers(), 1);
}

#[test]
fn a_device_is_told_with_the_key_that_it_believes_whatever_was_lost() {
    let mut known = Known::joined(false);
    known.hello(1).unwrap();
    let (first, held) = (known.present(), known.latest());
    known.told();
    let second = known.rotate_signing_key();
    // It does not hold yet what it was told: nothing is offered that would make that worthless.
    assert!(known.told().is_empty());
    known.greets(2, held, Some(first)).unwrap();
    let told = known.told();
    assert!(told.contains(&(Kind::Command, first)), "{told:?}");
    assert!(told.iter().all(|(_, signer)| *signer == first), "{told:?}");
    // It has taken the other; its answer was lost. What it holds is signed anew.
    known.greets(3, held, Some(second)).unwrap();
    let told = known.told();
    assert!(told.contains(&(Kind::Desired, second)), "{told:?}");
    assert!(told.iter().all(|(_, signer)| *signer == second), "{told:?}");
    assert!(known.call(move |fleet| fleet.keys.signing(&first).is_none()), "nobody believes it");
    // Before that has arrived, there is no third.
    let third = known.rotate_signing_key();
    assert!(known.told().is_empty());
    known.greets(4, known.latest(), Some(second)).unwrap();
    assert!(known.told().contains(&(Kind::Command, second)));
    let waiting = |known: &Known| known.call(|fleet| fleet.rotation()).unwrap().signing_key.waiting;
    assert_eq!(waiting(&known), ["dev-0"]);
    known.answers(None);
    assert_eq!(waiting(&known), [""; 0]);
    assert_eq!(known.told(), [(Kind::Desired, third)]);
    // One that comes from the future of this controller is told of, and told with the present key.
    let stranger = SigningKey::generate().unwrap().public();
    known.greets(5, known.latest(), Some(stranger)).unwrap();
    assert!(known.told().iter().all(|(_, signer)| *signer == third));
    assert_eq!(waiting(&known), ["dev-0"]);
}

#[test]
fn a_key_that_was_offered_signs_until_its_device_has_said_whom_it_believes() {
    let mut known = Known::joined(false);
    known.hello(1).unwrap();
    let (first, held) = (known.present(), known.latest());
    known.greets(2, held, Some(first)).unwrap();
    let second = known.rotate_signing_key();
    let third = known.rotate_signing_key();
    // Another member has taken the third, while the answer of this one to the second is on its way.
    known.call(move |fleet| {
        let another: DeviceId = "dev-1".parse().unwrap();
        let member = fleet.members.records[&id()].clone();
        fleet.members.records.insert(another.clone(), member);
        fleet.believes(&another, Some(third));
    });
    known.told();
    known.greets(3, held, Some(second)).unwrap();
    let told = known.told();
    assert!(!told.is_empty() && told.iter().all(|(_, signer)| *signer == second), "{told:?}");
}

#[test]
fn who_is_removed_and_believes_a_former_key_joins_anew_or_learns_why_not() {
    let known = Known::joined(false);
    known.hello(1).unwrap();
    let first = known.present();
    known.greets(2, known.latest(), Some(first)).unwrap();
    let second = known.rotate_signing_key();
    let removed = |known: &Known| {
        known.stands(Standing::Revoked);
        assert_eq!(known.call(|fleet| fleet.forget(&local(), &id())), Some(true));
    };
    removed(&known);
    known.join_believing(&known.device, &known.token(false), Some(first)).unwrap();
    removed(&known);
    // Others have taken the second: nobody is known any more to believe the first.
    known.join_believing(&known.device, &known.token(false), Some(second)).unwrap();
    known.call(|fleet| fleet.retire_keys());
    removed(&known);
    let token = known.token(false);
    let why = known.join_believing(&known.device, &token, Some(first)).unwrap_err();
    assert!(why.contains("believes the signatures of") && why.contains("data folder"), "{why}");
    // Its token is there for it still, once it is made anew.
    known.join_believing(&SigningKey::generate().unwrap(), &token, None).unwrap();
}
