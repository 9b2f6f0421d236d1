//! What must hold, by name; a failure names what broke.

/// What must hold.
///
/// At every moment, on a device:
/// - [`OneInstance`](Self::OneInstance): two containers of one workload never run at once.
/// - [`OnlyWhatWasAccepted`](Self::OnlyWhatWasAccepted): what runs was asked for by a desired state
///   that was on this disk.
/// - [`NothingOlder`](Self::NothingOlder): what is started is of the generation in force, or, until
///   that can run, what ran right before it.
/// - [`HealthyIsLeftAlone`](Self::HealthyIsLeftAlone): a container that runs, as the generation in
///   force wants it, is never asked to end; least of all because of the network.
/// - [`AcceptedNeverGoesBack`](Self::AcceptedNeverGoesBack): neither the generation in force nor the
///   one on disk ever goes back, through crashes either.
/// - [`InForceIsOnDisk`](Self::InForceIsOnDisk): a generation in force is on disk.
/// - [`NumbersAreUsedOnce`](Self::NumbersAreUsedOnce): no container takes the number of another that
///   is there, and no event that of another.
/// - [`NothingAliveIsRemoved`](Self::NothingAliveIsRemoved): what is removed has ended.
/// - [`NeededImagesStay`](Self::NeededImagesStay): no image goes that something running needs.
///
/// At every moment, at the controller:
/// - [`EventToldOnce`](Self::EventToldOnce): an event is in the operator's view once, in order.
/// - [`EventNotLost`](Self::EventNotLost): an event that was on a device's disk is in the operator's
///   view in the end, unless a gap that says how many are lost stands for it; and a gap is told only
///   where the outbox overflowed or the store is an old backup.
/// - [`AsManyAsAsked`](Self::AsManyAsAsked): a replica has one device; there are as many as were
///   asked for, placed or waiting; everywhere is every device that fits.
/// - [`OnlyWhereItFits`](Self::OnlyWhereItFits): a workload is placed only where labels, features and
///   memory allow.
/// - [`ReplicasStay`](Self::ReplicasStay): a replica that is wanted stays on a device that fits, there
///   or not.
/// - [`FreshGoWhereSomebodyIs`](Self::FreshGoWhereSomebodyIs): a new replica is not given to a device
///   that has gone while one that fits is connected.
/// - [`NothingRollsBack`](Self::NothingRollsBack): a controller that was restored from an old backup
///   tells a device that is ahead of it nothing until an operator has decided.
///
/// In the end, with all faults healed:
/// - [`Converges`](Self::Converges): within a bounded number of steps nothing more happens, everybody
///   runs what they should and nothing else, and the controller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invariant {
    OneInstance,
    OnlyWhatWasAccepted,
    NothingOlder,
    HealthyIsLeftAlone,
    AcceptedNeverGoesBack,
    InForceIsOnDisk,
    NumbersAreUsedOnce,
    NothingAliveIsRemoved,
    NeededImagesStay,
    EventToldOnce,
    EventNotLost,
    AsManyAsAsked,
    OnlyWhereItFits,
    ReplicasStay,
    FreshGoWhereSomebodyIs,
    NothingRollsBack,
    Converges,
}

impl Invariant {
    /// Ends the seed where it does not hold.
    #[track_caller]
    pub(crate) fn holds(self, holds: bool, what: impl FnOnce() -> String) {
        assert!(holds, "{self:?} does not hold: {}", what());
    }
}
