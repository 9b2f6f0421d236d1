//! The vocabulary between the core and its shell.

use std::collections::BTreeSet;

use limpet_protocol::{
    Ack, Action, ContainerId, DesiredState, EventBatch, Exit, Held, Hello, HostAccess,
    ImagePolicies, Membership, Nonce, Reported, SealingKey, Signal, StreamId, Upgrade, Workload,
    WorkloadId,
};

use crate::checkpoint::Checkpoint;
use crate::owner::Refusal;
use crate::upgrade::{Failure, Trial};

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// Time has passed; see [`crate::Agent::poll_timeout`].
    Tick,
    /// A connection is up and subscribed. `connection` is milliseconds since boot.
    LinkUp {
        /// Orders the connections of a boot.
        connection: u64,
        /// Random, of this connection.
        nonce: Nonce,
        /// Seconds between signs of life.
        keep_alive_s: u16,
    },
    /// The connection is gone.
    LinkDown,
    /// A desired state whose signature holds.
    Desired {
        /// Its content.
        state: Box<DesiredState>,
        /// The signed message, to be stored as it came.
        signed: Vec<u8>,
    },
    /// [`Effect::StoreDesired`] is done.
    DesiredStored(Held),
    /// [`Effect::StoreDesired`] could not be done.
    DesiredNotStored {
        /// Which.
        held: Held,
        /// The signed message, to be tried again.
        signed: Vec<u8>,
        /// Why not.
        reason: String,
    },
    /// [`Effect::StoreCheckpoint`] has ended; where it failed, the next one covers it.
    CheckpointStored {
        /// The version that is safe.
        version: u64,
        /// It is on disk.
        done: bool,
    },
    /// An acknowledgement, from the connection whose number its envelope named.
    Acked {
        /// That connection.
        connection: u64,
        /// Its content.
        ack: Ack,
    },
    /// A command whose signature holds.
    Commanded {
        /// Its number.
        number: u64,
        /// Of the connection that it was meant for.
        nonce: Nonce,
        /// What to do.
        action: Action,
    },
    /// A person on site asks for something to be done to a workload.
    OnSite {
        /// The workload.
        workload: WorkloadId,
        /// What.
        action: LocalAction,
    },
    /// The device is about to sleep: it says so and ends its connection.
    Sleep {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// A message was refused.
    Refused {
        /// Where it came from and what is wrong with it.
        reason: String,
    },
    /// The image is not here; a pull has begun.
    Pulling {
        /// The container it is for.
        container: ContainerId,
    },
    /// A pull has come further; told in steps that are worth telling.
    PullProgressed {
        /// The container it is for.
        container: ContainerId,
        /// Bytes that are here.
        received: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The image is complete.
    ImageReady {
        /// The container it is for.
        container: ContainerId,
    },
    /// The image cannot be had.
    ImageFailed {
        /// The container it is for.
        container: ContainerId,
        /// Why.
        reason: String,
    },
    /// The owner of this device does not allow what the container wants: its image, or what it wants
    /// of the host.
    NotAllowed {
        /// The container it is for.
        container: ContainerId,
        /// Which rule, and why.
        refusal: Refusal,
    },
    /// What the container wants of the host is not there.
    HostLacks {
        /// The container it is for.
        container: ContainerId,
        /// What.
        reason: String,
    },
    /// A container's main process runs.
    Started {
        /// Which container.
        container: ContainerId,
        /// Its main process.
        pid: u32,
    },
    /// A container could not be made; nothing of it runs.
    StartFailed {
        /// Which container.
        container: ContainerId,
        /// Why.
        reason: String,
    },
    /// A container's main process has ended.
    Exited {
        /// Which container.
        container: ContainerId,
        /// How.
        exit: Exit,
    },
    /// More of a program of the agent is here; told in steps that are worth telling.
    ProgramProgressed {
        /// Bytes that are here.
        received: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The program is here, is what was ordered, and starts.
    ProgramReady {
        /// It is the one that runs.
        runs: bool,
    },
    /// The program cannot be had, or cannot take over.
    ProgramFailed {
        /// Why.
        reason: String,
        /// It may help to try again.
        may_pass: bool,
    },
    /// [`Effect::KeepProgram`] has ended.
    ProgramKept {
        /// It is on disk, and nothing ends this program for it any more.
        done: bool,
    },
}

/// What a person on site can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalAction {
    /// End it; it stays ended until another desired state, or until it is started.
    Stop,
    /// Start it.
    Start,
    /// End it and start it anew.
    Restart,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Make this the desired state that a restart finds, then [`Input::DesiredStored`].
    StoreDesired {
        /// Which.
        held: Held,
        /// The signed message.
        signed: Vec<u8>,
    },
    /// Make this the checkpoint that a restart finds, then [`Input::CheckpointStored`].
    StoreCheckpoint {
        /// Counts checkpoints.
        version: u64,
        /// Its content.
        checkpoint: Box<Checkpoint>,
    },
    /// Look at what a container wants of the host and have its image ready, then
    /// [`Input::ImageReady`], [`Input::ImageFailed`], [`Input::NotAllowed`] or [`Input::HostLacks`].
    Prepare {
        /// The container it is for.
        container: ContainerId,
        /// Its name, as the operator wrote it.
        image: String,
        /// What it must be.
        policies: Box<ImagePolicies>,
        /// What the container wants of the host.
        host: HostAccess,
    },
    /// Make and start a container, then [`Input::Started`] or [`Input::StartFailed`], and
    /// [`Input::Exited`] when it ends.
    Start {
        /// Which container.
        container: ContainerId,
        /// What it is made from.
        workload: Box<Workload>,
        /// What its image must be: that was made ready for what is wanted, and this may be what ran
        /// before it.
        policies: Box<ImagePolicies>,
    },
    /// Send a signal to a container's main process.
    Signal {
        /// Which container.
        container: ContainerId,
        /// The signal; the image's stop signal where absent.
        signal: Option<Signal>,
    },
    /// Remove everything of a container that has ended. Repeated after a restart if need be.
    Remove {
        /// Which container.
        container: ContainerId,
    },
    /// Keep the end of a container's log where a power cut leaves it, in place of what was kept of
    /// its workload before.
    KeepLog {
        /// Which container.
        container: ContainerId,
    },
    /// Remove what was kept of a workload's logs.
    ForgetLog {
        /// Which workload.
        workload: WorkloadId,
    },
    /// Where room is short, remove images, layers and parts of them that none of these images and no
    /// container that runs needs.
    Collect {
        /// Names of images, as operators wrote them.
        keep: BTreeSet<String>,
        /// Also what belongs to no complete image. Only where nothing is being had: a pull that was
        /// cut goes on from there.
        orphans: bool,
    },
    /// Send a message, if the connection that it was made for is still up.
    Publish(Message),
    /// Send the signed desired state that is stored back to the controller.
    ReturnDesired {
        /// The command that asked for it.
        number: u64,
    },
    /// Keep on what terms the device is a member from here on, then answer the command.
    StoreMembership {
        /// The command that said so.
        number: u64,
        /// The terms.
        membership: Box<Membership>,
    },
    /// Have a program of the agent on the disk, see that it is what was ordered and starts, then
    /// [`Input::ProgramReady`] or [`Input::ProgramFailed`].
    FetchProgram(Box<Upgrade>),
    /// Note that this program is on trial, and hand over to it; [`Input::ProgramFailed`] where that
    /// cannot be.
    TryProgram(Box<Trial>),
    /// Note that the program that runs has proved itself, then [`Input::ProgramKept`].
    KeepProgram,
    /// Note that an order is carried out, or has failed.
    SettleUpgrade {
        /// Which.
        order: u64,
        /// Why it failed; None where it did not.
        failure: Option<Failure>,
    },
    /// Tell whoever reads the agent's own log.
    Warn {
        /// What.
        message: String,
    },
    /// Send a workload's log.
    Stream(StreamOrder),
    /// End a stream.
    EndStream(StreamId),
    /// End the connection when all messages are sent, and begin none for this long.
    Disconnect {
        /// In milliseconds.
        for_ms: u64,
    },
}

/// A log to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOrder {
    /// The stream it goes to.
    pub stream: StreamId,
    /// Whose logs: of its containers as far as they are there, in order.
    pub workload: WorkloadId,
    /// How many of the latest lines come first.
    pub tail: u32,
    /// Go on with what is written from then on.
    pub follow: bool,
    /// Nothing is sent after this, in milliseconds since boot.
    pub until_ms: u64,
    /// What it is sealed to.
    pub key: SealingKey,
}

/// Messages to the controller.
#[derive(Debug, Clone)]
pub enum Message {
    /// The first on a connection.
    Hello(Box<Hello>),
    /// Changed workloads.
    Reported(Reported),
    /// Events, in order.
    Events(EventBatch),
    /// The device is about to sleep.
    Asleep {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// What became of a command.
    Result {
        /// The command.
        number: u64,
        /// Why it was not done.
        error: Option<String>,
    },
}

/// A container that was there when the agent began.
#[derive(Debug, Clone)]
pub struct Found {
    /// Which.
    pub container: ContainerId,
    /// What it was made from; None where its folder does not tell.
    pub made: Option<Workload>,
    /// How it was found.
    pub state: FoundState,
}

/// How a container was found.
#[derive(Debug, Clone, Copy)]
pub enum FoundState {
    /// Its main process runs and is being followed.
    Running {
        /// Its main process.
        pid: u32,
    },
    /// Its main process has ended.
    Ended(Exit),
    /// It was never completely made; nothing of it runs.
    Broken,
}
