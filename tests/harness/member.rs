//! A device that has joined and is in a test's own hands: it can say what no agent would.

use std::path::Path;

use limpet_protocol::{DeviceId, Header, Kind, Membership, Prefix, SigningKey, envelope};
use serde::{Deserialize, Serialize};

use crate::{Agent, Controller, Lab, agent, output};

/// What a member has: a key, and a certificate over it.
pub struct Member {
    /// Its id.
    pub id: DeviceId,
    /// What it signs with.
    pub key: SigningKey,
    /// In PEM: the fleet's authority, its certificate, its key.
    pub files: [String; 3],
    port: String,
}

/// The document of that name in an agent's data folder.
#[derive(Deserialize)]
struct Identity {
    #[serde(with = "serde_bytes")]
    seed: Vec<u8>,
    membership: Membership,
}

impl Member {
    /// Joins a secured fleet.
    pub fn join(lab: &Lab, id: &str, controller: &Controller) -> Self {
        let data = lab.path(&format!("{id}.data"));
        agent::join(&[], id, &data, controller.invitation());
        Self::read(lab, id, &data, controller.mqtt_port)
    }

    /// Takes over from an agent, which ends.
    pub fn of(lab: &Lab, agent: Agent, controller: &Controller) -> Self {
        let (id, data) = (agent.id.clone(), agent.data.clone());
        drop(agent);
        Self::read(lab, &id, &data, controller.mqtt_port)
    }

    fn read(lab: &Lab, id: &str, data: &Path, port: u16) -> Self {
        let bytes = std::fs::read(data.join("identity")).unwrap();
        // The document's content is the CBOR map in it.
        let identity = (0..bytes.len()).find_map(|at| {
            let mut read = serde_cbor::Deserializer::from_slice(&bytes[at..]);
            Identity::deserialize(&mut read).ok()
        });
        let Identity { seed, membership } = identity.unwrap();
        let key = SigningKey::from_seed(&seed).unwrap();
        let file = |name: &str, form: &str, der: &[u8]| {
            let pem = lab.path(&format!("{id}.{name}.pem")).display().to_string();
            let der = lab.file(&format!("{id}.{name}.der"), der).display().to_string();
            let done = output("openssl", &[form, "-inform", "DER", "-in", &der, "-out", &pem]);
            assert_eq!(done.status, 0, "{done:?}");
            pem
        };
        let files = [
            file("ca", "x509", &membership.roots[0]),
            file("cert", "x509", &membership.certificates[0]),
            file("key", "pkey", &key.pkcs8()),
        ];
        Self { id: id.parse().unwrap(), key, files, port: port.to_string() }
    }

    /// What mosquitto's programs are told to connect as this device, but for its client id.
    pub fn credentials(&self) -> Vec<&str> {
        let [ca, cert, key] = &self.files;
        let own = ["-h", "127.0.0.1", "-p", &self.port, "--cafile", ca];
        [&own[..], &["--cert", cert, "--key", key]].concat()
    }

    /// The client id that it must connect with.
    pub fn client_id(&self) -> String {
        format!("limpet/{}/{}", self.id, self.key.public().fingerprint())
    }

    /// A message that it signs, on its first connection.
    pub fn seal<T: Serialize>(&self, kind: Kind, body: &T) -> Vec<u8> {
        let prefix = Prefix::default().to_string();
        let header = Header { prefix, device: self.id.clone(), kind, epoch: 0, number: 1 };
        envelope::seal(&self.key, &header, body)
    }

    /// Publishes on `d/OWN ID/up/LEAF`; gives what mosquitto_pub says, which is nothing where it was taken.
    pub fn publish(&self, lab: &Lab, leaf: &str, payload: &[u8]) -> String {
        let topic = format!("{}/d/{}/up/{leaf}", Prefix::default(), self.id);
        let file = lab.file("payload", payload).display().to_string();
        let client = self.client_id();
        let what = ["-V", "mqttv5", "-q", "1", "-i", &client, "-t", &topic, "-f", &file];
        let done = output("mosquitto_pub", &[&self.credentials()[..], &what].concat());
        done.out + &done.err
    }
}
