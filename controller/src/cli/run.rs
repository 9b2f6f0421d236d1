//! `limpet run`

use clap::Args;
use limpet_protocol::DeploymentName;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::progress::{self, Waiting};
use super::{apply, pair};

mod host;

/// Run an image on the fleet, as a deployment
///
/// Words after `--` replace the image's arguments. Run again with other values, it changes the
/// deployment.
///
/// Examples:
///   limpet run web --image=nginx:alpine --replicas=2 --select site=berlin
///   limpet run job --image=busybox --restart=never -- sh -c 'echo done'
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Run {
    /// What the deployment is called
    name: DeploymentName,
    /// The image, as Docker names it
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// How many workloads [1]
    #[arg(long, value_name = "N", conflicts_with = "everywhere")]
    replicas: Option<u32>,
    /// One workload on every matching device
    #[arg(long)]
    everywhere: bool,
    /// A label that devices must carry; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    select: Vec<(String, String)>,
    /// A variable; can be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A secret as the file /run/secrets/NAME, or another; can be repeated
    #[arg(long, value_name = "NAME[:PATH]")]
    secret: Vec<String>,
    /// A secret as a variable; can be repeated
    #[arg(long, value_name = "KEY=NAME", value_parser = pair)]
    secret_env: Vec<(String, String)>,
    /// USER[:GROUP], names or numbers
    #[arg(long)]
    user: Option<String>,
    /// Where the program starts, an absolute path
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Memory at most: 64Mi
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,
    /// Processors at most: 0.5
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// Processes and threads at most
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// When the program ends: always, on-failure or never start it again
    #[arg(long, value_name = "POLICY", default_value = "always")]
    restart: String,
    /// The signal that asks it to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// How long it may take to end: 10s
    #[arg(long, value_name = "TIME")]
    stop_grace: Option<String>,
    #[command(flatten)]
    host: host::Host,
    #[command(flatten)]
    waiting: Waiting,
    /// Replaces the image's arguments
    #[arg(last = true, value_name = "ARG")]
    args: Vec<String>,
}

impl Run {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let result = client.apply(self.manifest().to_string().as_bytes())?;
        apply::accepted(&result, "limpet run")?;
        progress::settle(client, &result, &self.waiting)
    }

    fn secrets(&self) -> Option<Value> {
        let file = |text: &String| match text.split_once(':') {
            Some((name, path)) => json!({ "name": name, "file": path }),
            None => json!(text),
        };
        let env = |(key, name): &(String, String)| json!({ "name": name, "env": key });
        let all = self.secret.iter().map(file).chain(self.secret_env.iter().map(env));
        let all: Vec<Value> = all.collect();
        (!all.is_empty()).then_some(Value::Array(all))
    }

    fn manifest(&self) -> Value {
        let texts = |pairs: &[(String, String)]| -> Option<Value> {
            let fields: Map<String, Value> =
                pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
            (!fields.is_empty()).then_some(Value::Object(fields))
        };
        let fields = |given: Vec<(&str, Option<Value>)>| -> Option<Value> {
            let given: Map<String, Value> =
                given.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect();
            (!given.is_empty()).then_some(Value::Object(given))
        };
        let text = |text: &Option<String>| text.as_ref().map(|text| json!(text));
        let limits = vec![
            ("memory", text(&self.memory)),
            ("cpus", text(&self.cpus)),
            ("pids", self.pids.map(|pids| json!(pids))),
        ];
        let stop = vec![("signal", text(&self.stop_signal)), ("grace", text(&self.stop_grace))];
        let all = vec![
            ("name", Some(json!(self.name.as_str()))),
            ("image", Some(json!(self.image))),
            ("args", (!self.args.is_empty()).then(|| json!(self.args))),
            ("env", texts(&self.env)),
            ("secrets", self.secrets()),
            ("user", text(&self.user)),
            ("workdir", text(&self.workdir)),
            ("replicas", self.replicas.map(|count| json!(count))),
            ("everywhere", self.everywhere.then_some(json!(true))),
            ("select", texts(&self.select)),
            ("resources", fields(limits)),
            ("restart", Some(json!(self.restart))),
            ("stop", fields(stop)),
        ];
        let all = all.into_iter().chain(self.host.manifest()).collect();
        fields(all).unwrap_or_default()
    }
}
