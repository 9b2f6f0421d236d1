//! Every topic, built and parsed in this one file (DESIGN section 4).

use std::fmt;
use std::str::FromStr;

use crate::envelope::Kind;
use crate::id::{DeploymentName, DeviceId, IdError, StreamId};

/// What all topics begin with; `limpet/v1` by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a device subscribes to.
    pub fn device_filters(&self, device: &DeviceId) -> [String; 3] {
        ["desired", "command", "down/#"].map(|leaf| format!("{self}/d/{device}/{leaf}"))
    }

    /// What a controller subscribes to: every device's messages, and published manifests.
    pub fn controller_filters(&self) -> [String; 2] {
        [format!("{self}/d/+/up/#"), format!("{self}/deploy/+")]
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self("limpet/v1".to_owned())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Prefix {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        let clean = |level: &str| !level.is_empty() && !level.contains(['+', '#', '$', '\0']);
        if text.len() <= 128 && text.split('/').all(clean) {
            Ok(Self(text.to_owned()))
        } else {
            Err(TopicError::Prefix(text.chars().take(40).collect()))
        }
    }
}

/// A topic below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// `d/D/LEAF`: messages to or from a device.
    Device(DeviceId, Leaf),
    /// `deploy/NAME`: a manifest.
    Deploy(DeploymentName),
    /// `deploy/NAME/result`: what became of it.
    DeployResult(DeploymentName),
}

/// What a device's topic ends with: it says of which kind the messages there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaf {
    /// `desired`
    Desired,
    /// `command`
    Command,
    /// `down/ack`
    Ack,
    /// `up/presence`
    Presence,
    /// `up/hello`
    Hello,
    /// `up/reported`
    Reported,
    /// `up/event`
    Event,
    /// `up/result`
    Result,
    /// `up/desired`
    Returned,
    /// `up/stream/S`: pieces of a leased stream.
    Stream(StreamId),
}

impl Leaf {
    /// Those that stand alone.
    const ALONE: [Self; 9] = [
        Self::Desired,
        Self::Command,
        Self::Ack,
        Self::Presence,
        Self::Hello,
        Self::Reported,
        Self::Event,
        Self::Result,
        Self::Returned,
    ];

    /// The kind of the messages there.
    pub fn kind(self) -> Kind {
        match self {
            Self::Desired => Kind::Desired,
            Self::Command => Kind::Command,
            Self::Ack => Kind::Ack,
            Self::Presence => Kind::Presence,
            Self::Hello => Kind::Hello,
            Self::Reported => Kind::Reported,
            Self::Event => Kind::Event,
            Self::Result => Kind::Result,
            Self::Returned => Kind::Returned,
            Self::Stream(_) => Kind::Stream,
        }
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Desired => "desired",
            Self::Command => "command",
            Self::Ack => "down/ack",
            Self::Presence => "up/presence",
            Self::Hello => "up/hello",
            Self::Reported => "up/reported",
            Self::Event => "up/event",
            Self::Result => "up/result",
            Self::Returned => "up/desired",
            Self::Stream(stream) => return write!(f, "up/stream/{stream}"),
        })
    }
}

/// Why a text is not a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Not usable as a prefix.
    #[error("topic prefix {0:?}: use levels without '+', '#' and '$', 128 bytes in all")]
    Prefix(String),
    /// Below another prefix, or none of Limpet's topics.
    #[error("{0:?} is not a Limpet topic")]
    Unknown(String),
    /// A device id or deployment name that is none.
    #[error("topic {topic:?}: {source}")]
    Id {
        /// The topic.
        topic: String,
        /// What is wrong with it.
        source: IdError,
    },
}

impl Topic {
    /// The full topic.
    pub fn under(&self, prefix: &Prefix) -> String {
        match self {
            Self::Device(device, leaf) => format!("{prefix}/d/{device}/{leaf}"),
            Self::Deploy(name) => format!("{prefix}/deploy/{name}"),
            Self::DeployResult(name) => format!("{prefix}/deploy/{name}/result"),
        }
    }

    /// Reads a full topic.
    ///
    /// # Errors
    /// When it is none of Limpet's, or names something that cannot exist.
    pub fn parse(prefix: &Prefix, topic: &str) -> Result<Self, TopicError> {
        let shown = || topic.chars().take(200).collect::<String>();
        let unknown = || TopicError::Unknown(shown());
        let invalid = |source| TopicError::Id { topic: shown(), source };
        let rest = topic
            .strip_prefix(prefix.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(unknown)?;
        if let Some(rest) = rest.strip_prefix("deploy/") {
            return match rest.strip_suffix("/result") {
                Some(name) => name.parse().map(Self::DeployResult).map_err(invalid),
                None => rest.parse().map(Self::Deploy).map_err(invalid),
            };
        }
        let (device, rest) =
            rest.strip_prefix("d/").and_then(|rest| rest.split_once('/')).ok_or_else(unknown)?;
        let device = device.parse().map_err(invalid)?;
        if let Some(stream) = rest.strip_prefix("up/stream/") {
            return Ok(Self::Device(device, Leaf::Stream(stream.parse().map_err(invalid)?)));
        }
        let leaf = Leaf::ALONE.into_iter().find(|leaf| leaf.to_string() == rest);
        Ok(Self::Device(device, leaf.ok_or_else(unknown)?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_topic_reads_back() {
        let prefix = Prefix::default();
        let device: DeviceId = "pi-1".parse().unwrap();
        let name: DeploymentName = "web".parse().unwrap();
        let leaves = Leaf::ALONE.into_iter().chain([Leaf::Stream(StreamId([7; 8]))]);
        let mut topics: Vec<Topic> =
            leaves.clone().map(|leaf| Topic::Device(device.clone(), leaf)).collect();
        let kinds: BTreeSet<Kind> = leaves.map(Leaf::kind).collect();
        assert_eq!(kinds, Kind::ALL.into_iter().collect());
        topics.push(Topic::Deploy(name.clone()));
        topics.push(Topic::DeployResult(name));
        for topic in topics {
            assert_eq!(Topic::parse(&prefix, &topic.under(&prefix)), Ok(topic));
        }
    }

    #[test]
    fn foreign_topics_are_refused() {
        for topic in [
            "",
            "limpet/v1",
            "limpet/v1/",
            "limpet/v2/d/a/desired",
            "limpet/v1/d/a",
            "limpet/v1/d//desired",
            "limpet/v1/d/a/b/desired",
            "limpet/v1/d/+/desired",
            "limpet/v1/d/a/up/stream",
            "limpet/v1/d/a/up/stream/x",
            "limpet/v1/deploy/",
            "limpet/v1/deploy/A",
            "limpet/v1/deploy/a/b",
            "limpet/v1x/deploy/a",
        ] {
            assert!(Topic::parse(&Prefix::default(), topic).is_err(), "{topic}");
        }
    }
}
