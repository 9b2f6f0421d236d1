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
    /// `d/D/...`: a message of this kind to or from a device.
    Device(DeviceId, Kind),
    /// `d/D/up/stream/S`: a piece of a leased stream.
    Stream(DeviceId, StreamId),
    /// `deploy/NAME`: a manifest.
    Deploy(DeploymentName),
    /// `deploy/NAME/result`: what became of it.
    DeployResult(DeploymentName),
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
            Self::Device(device, kind) => format!("{prefix}/d/{device}/{}", leaf(*kind)),
            Self::Stream(device, stream) => format!("{prefix}/d/{device}/up/stream/{stream}"),
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
            return Ok(Self::Stream(device, stream.parse().map_err(invalid)?));
        }
        let kind = Kind::ALL.into_iter().find(|kind| *kind != Kind::Stream && leaf(*kind) == rest);
        Ok(Self::Device(device, kind.ok_or_else(unknown)?))
    }
}

fn leaf(kind: Kind) -> &'static str {
    match kind {
        Kind::Desired => "desired",
        Kind::Command => "command",
        Kind::Ack => "down/ack",
        Kind::Presence => "up/presence",
        Kind::Hello => "up/hello",
        Kind::Reported => "up/reported",
        Kind::Event => "up/event",
        Kind::Result => "up/result",
        Kind::Returned => "up/desired",
        Kind::Stream => "up/stream",
        // They travel over HTTPS: no topic is read as theirs.
        Kind::Join => "up/join",
        Kind::Renew => "up/renew",
        // Its topic is that of its deployment.
        Kind::Manifest => "up/manifest",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_reads_back() {
        let prefix = Prefix::default();
        let device: DeviceId = "pi-1".parse().unwrap();
        let name: DeploymentName = "web".parse().unwrap();
        let mut topics: Vec<Topic> = Kind::ALL
            .into_iter()
            .filter(|kind| *kind != Kind::Stream)
            .map(|kind| Topic::Device(device.clone(), kind))
            .collect();
        topics.push(Topic::Stream(device, StreamId([7; 8])));
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
