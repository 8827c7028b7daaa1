//! Settings: file < environment < flags. Every wrong one is reported at once, by name.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::Targets;

use crate::model::{IfName, Way};
use crate::peers;
use crate::store::consul;

/// Settings as they are given: the flags of `rsnet serve`, the keys of the file, and with `RSNET_` before them in capitals the environment.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Given {
    /// A file of settings: TOML, one `key = "value"` a line
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Where what hosts share is kept: `embedded`, consul://HOST:PORT/PREFIX or consul+https://HOST:PORT/PREFIX [default: embedded]
    #[arg(long)]
    store: Option<String>,
    /// Consul's ACL token; a file keeps it out of the list of processes
    #[arg(long, value_name = "TOKEN")]
    store_token: Option<String>,
    /// A file with Consul's ACL token; read again when it changes, as the three below
    #[arg(long, value_name = "FILE")]
    store_token_file: Option<String>,
    /// The certificate of the CA that signed Consul's, as PEM; needed with https
    #[arg(long, value_name = "FILE")]
    store_ca: Option<String>,
    /// This host's certificate for Consul, as PEM
    #[arg(long, value_name = "FILE")]
    store_cert: Option<String>,
    /// The key of that certificate, as PEM
    #[arg(long, value_name = "FILE")]
    store_key: Option<String>,
    /// Which of Consul's datacenters [default: that of the agent asked]
    #[arg(long, value_name = "NAME")]
    store_datacenter: Option<String>,
    /// Where this host's own state is kept [default: /var/lib/rsnet]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// The interface or address that tunnels between hosts leave by
    #[arg(long, value_name = "IF|ADDRESS")]
    underlay: Option<String>,
    /// This host's name among those that share a store [default: its hostname]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// The TCP port that the hosts of a cluster ask each other at, the same on all; 0: they do not [default: 4795]
    #[arg(long, value_name = "PORT")]
    peer_port: Option<String>,
    /// The engine's API socket, or `none` [default: /var/run/docker.sock]
    #[arg(long, value_name = "SOCKET")]
    docker: Option<String>,
    /// Where Prometheus metrics are served, as ADDRESS:PORT, or `off` [default: off]
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or by room: `info,rsnet::kernel=debug` [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// How it is logged: `text`, or `json`, an object a line [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// The way links get into containers unless a network says otherwise: `engine` or `direct` [default: engine]
    #[arg(long, value_name = "WAY")]
    attach: Option<String>,
    /// Whether overlay and shared macvlan networks that other hosts with this setting make are made here too, and the other way round: `on` or
    /// `off` [default: off]
    #[arg(long, value_name = "SWITCH")]
    spread: Option<String>,
    /// Whether this host's containers on networks that hosts share are services in Consul's catalog: `on` or `off` [default: off]
    #[arg(long, value_name = "SWITCH")]
    catalog: Option<String>,
    /// The plugin's sockets, joined by commas [default: /run/docker/plugins/rsnet.sock]
    #[arg(long, value_name = "PATHS")]
    sockets: Option<String>,
    /// The host's /proc/sys/net, where a managed plugin sees it [default: /proc/sys/net]
    #[arg(long, value_name = "DIR")]
    proc_sys_net: Option<String>,
}

/// Settings as they are used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The store that hosts share, if there is one. This host's own state is never in it.
    pub consul: Option<consul::Settings>,
    pub data_dir: PathBuf,
    pub underlay: Option<Underlay>,
    /// This host's name among those that share a store.
    pub host: String,
    /// Where hosts ask each other, if they do.
    pub peer_port: Option<u16>,
    pub docker: Option<PathBuf>,
    pub metrics: Option<SocketAddr>,
    pub log: Targets,
    pub log_format: LogFormat,
    pub attach: Way,
    /// Networks appear and go by themselves.
    pub spread: bool,
    /// Containers appear in Consul's catalog.
    pub catalog: bool,
    pub sockets: Vec<PathBuf>,
    pub proc_sys_net: PathBuf,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    /// One object a line.
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Underlay {
    Link(IfName),
    Address(IpAddr),
}

/// All that is wrong, a sentence each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

type Values = BTreeMap<String, String>;

const SWITCH: [(&str, bool); 2] = [("on", true), ("off", false)];

impl Given {
    /// Reads the environment and the file named there or by the flag, and takes each setting from where it weighs most.
    pub fn settle(&self, environment: impl IntoIterator<Item = (String, String)>) -> Result<Settings, ConfigError> {
        let flags = values(self);
        let environment = from_environment(environment);
        let file = flags.get("config").or(environment.get("config")).map(|path| from_file(path)).transpose()?.unwrap_or_default();
        let mut given = file;
        given.extend(environment);
        given.extend(flags);
        Settings::parse(&given)
    }
}

fn values(given: &Given) -> Values {
    // a struct of optional strings always serialises
    let all: BTreeMap<String, Option<String>> =
        serde_json::to_value(given).ok().and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default();
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// An empty variable counts as not given: that is what `docker plugin set NAME=` leaves.
fn from_environment(environment: impl IntoIterator<Item = (String, String)>) -> Values {
    let known = |(name, value): (String, String)| Some((name.strip_prefix("RSNET_")?.to_lowercase(), value));
    environment.into_iter().filter_map(known).filter(|(_, value)| !value.is_empty()).collect()
}

fn from_file(path: &str) -> Result<Values, ConfigError> {
    let wrong = |problem: String| ConfigError(vec![format!("config={path}: {problem}")]);
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let given: Given = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    Ok(values(&given))
}

impl Settings {
    fn parse(given: &Values) -> Result<Self, ConfigError> {
        let mut reader = Reader { given, wrong: Vec::new() };
        let r = &mut reader;
        let settings = Settings {
            consul: r.consul(),
            data_dir: r.path("data_dir", "/var/lib/rsnet").unwrap_or_default(),
            underlay: r.read("underlay", "", "an interface or an IP address", underlay),
            host: r.read("host", &hostname(), "a name of letters, digits, - . and _", host).unwrap_or_default(),
            peer_port: r.read("peer_port", &peers::PORT.to_string(), "a port, or 0", |v| v.parse().ok()).filter(|port| *port != 0),
            docker: r.read("docker", "/var/run/docker.sock", "the path of a socket, or none", or("none", path)).flatten(),
            metrics: r.read("metrics", "off", "ADDRESS:PORT, or off", or("off", |v| v.parse().ok())).flatten(),
            log: r.read("log", "info", "error, warn, info, debug or trace, also by room", |v| v.parse().ok()).unwrap_or_default(),
            log_format: r.word("log_format", [("text", LogFormat::Text), ("json", LogFormat::Json)]),
            attach: r.word("attach", [("engine", Way::Engine), ("direct", Way::Direct)]),
            spread: r.word("spread", SWITCH),
            catalog: r.word("catalog", SWITCH),
            sockets: r.read("sockets", "/run/docker/plugins/rsnet.sock", "absolute paths joined by commas", paths).unwrap_or_default(),
            proc_sys_net: r.path("proc_sys_net", "/proc/sys/net").unwrap_or_default(),
        };
        if reader.wrong.is_empty() { Ok(settings) } else { Err(ConfigError(reader.wrong)) }
    }
}

struct Reader<'g> {
    given: &'g Values,
    wrong: Vec<String>,
}

impl Reader<'_> {
    /// The setting of this name, or what `default` means; no default, no setting.
    fn read<T>(&mut self, name: &str, default: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = self.given.get(name).map_or(default, String::as_str);
        if value.is_empty() {
            return None;
        }
        let parsed = parse(value);
        if parsed.is_none() {
            let shown = if name == "store_token" { "…" } else { value };
            self.wrong.push(format!("setting {name}={shown} ({}) is not valid; give {expected}", variable(name)));
        }
        parsed
    }

    fn path(&mut self, name: &str, default: &str) -> Option<PathBuf> {
        self.read(name, default, "an absolute path", path)
    }

    /// One of two words, and what it means.
    fn word<T: Copy + Default>(&mut self, name: &str, words: [(&str, T); 2]) -> T {
        let meaning = |value: &str| words.into_iter().find(|(word, _)| *word == value).map(|(_, meaning)| meaning);
        self.read(name, "", &words.map(|(word, _)| word).join(" or "), meaning).unwrap_or_default()
    }

    /// The store that hosts share. What is given for one that is not chosen is only looked at for its form.
    fn consul(&mut self) -> Option<consul::Settings> {
        let expected = "embedded, consul://HOST:PORT/PREFIX or consul+https://HOST:PORT/PREFIX";
        let address = self.read("store", "embedded", expected, or("embedded", consul::Address::parse)).flatten();
        let text = self.read("store_token", "", "Consul's token, visible characters only", consul::Token::text);
        let file = self.path("store_token_file", "").map(consul::Token::File);
        let (ca, certificate, key) = (self.path("store_ca", ""), self.path("store_cert", ""), self.path("store_key", ""));
        let datacenter = self.read("store_datacenter", "", "a name of letters, digits, - and _", datacenter);
        let address = address?;
        self.fit(&address);
        let identity = certificate.zip(key).map(|(certificate, key)| consul::Identity { certificate, key });
        Some(consul::Settings { address, datacenter, token: text.or(file), ca, identity })
    }

    /// What goes together, and what does not.
    fn fit(&mut self, address: &consul::Address) {
        let given = |name| self.given.contains_key(name);
        let mut wrong = Vec::new();
        if given("store_token") && given("store_token_file") {
            wrong.push(("store_token_file", "is given beside RSNET_STORE_TOKEN; give one of them".to_owned()));
        }
        for (one, other) in [("store_cert", "store_key"), ("store_key", "store_cert")] {
            if given(one) && !given(other) {
                wrong.push((other, format!("is not given, but {} is; give both or neither", variable(one))));
            }
        }
        if address.https && !given("store_ca") {
            wrong.push(("store_ca", format!("is not given, and {address} is believed only by it; give the file of the CA's certificate")));
        }
        for name in ["store_ca", "store_cert", "store_key"].into_iter().filter(|name| !address.https && given(name)) {
            wrong.push((name, format!("is of no use with {address}; give consul+https://…, or take it away")));
        }
        self.wrong.extend(wrong.into_iter().map(|(name, problem)| format!("setting {name} ({}) {problem}", variable(name))));
    }
}

fn variable(name: &str) -> String {
    format!("RSNET_{}", name.to_uppercase())
}

/// A word that means nothing, or something else.
fn or<T>(nothing: &str, parse: impl Fn(&str) -> Option<T>) -> impl Fn(&str) -> Option<Option<T>> {
    move |value| if value == nothing { Some(None) } else { parse(value).map(Some) }
}

fn datacenter(value: &str) -> Option<String> {
    value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)).then(|| value.to_owned())
}

fn path(value: &str) -> Option<PathBuf> {
    value.starts_with('/').then(|| value.into())
}

fn paths(value: &str) -> Option<Vec<PathBuf>> {
    value.split(',').map(path).collect()
}

fn underlay(value: &str) -> Option<Underlay> {
    value.parse().map(Underlay::Address).ok().or_else(|| value.parse().map(Underlay::Link).ok())
}

fn host(value: &str) -> Option<String> {
    value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)).then(|| value.to_owned())
}

/// What the kernel calls this host; a name that is none of ours has its other characters left out.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.chars().filter(|c| host(&c.to_string()).is_some()).collect();
    if name.is_empty() { "host".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn nothing_given_is_a_working_single_host() {
        let settings = Given::default().settle([]).unwrap();
        assert_eq!(settings.data_dir, PathBuf::from("/var/lib/rsnet"));
        assert_eq!(settings.sockets, [PathBuf::from("/run/docker/plugins/rsnet.sock")]);
        assert_eq!((settings.metrics, settings.attach), (None, Way::Engine));
    }

    #[test]
    fn a_flag_weighs_more_than_the_environment_and_that_more_than_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("rsnet.toml");
        std::fs::write(&file, "data_dir = \"/file\"\nattach = \"direct\"\nmetrics = \"127.0.0.1:1\"\n").unwrap();
        let given = Given { config: Some(file.to_str().unwrap().into()), data_dir: Some("/flag".into()), ..Given::default() };
        let settings = given.settle(environment(&[("RSNET_DATA_DIR", "/env"), ("RSNET_METRICS", "off"), ("RSNET_LOG", "")])).unwrap();
        assert_eq!(settings.data_dir, PathBuf::from("/flag"));
        assert_eq!((settings.metrics, settings.attach), (None, Way::Direct));
    }

    #[test]
    fn every_wrong_setting_is_reported_at_once_by_name() {
        let wrong = environment(&[
            ("RSNET_STORE", "etcd://x"),
            ("RSNET_STORE_TOKEN_FILE", "token"),
            ("RSNET_STORE_CA", "ca.pem"),
            ("RSNET_STORE_DATACENTER", "here and there"),
            ("RSNET_DATA_DIR", "relative"),
            ("RSNET_UNDERLAY", "not an interface"),
            ("RSNET_PEER_PORT", "70000"),
            ("RSNET_DOCKER", "x"),
            ("RSNET_METRICS", "9"),
            ("RSNET_LOG", "loud=very"),
            ("RSNET_ATTACH", "sideways"),
            ("RSNET_LOG_FORMAT", "verse"),
            ("RSNET_SPREAD", "maybe"),
            ("RSNET_CATALOG", "yes"),
        ]);
        let error = Given::default().settle(wrong.clone()).unwrap_err().to_string();
        for (name, value) in wrong {
            assert!(error.contains(&name) && error.contains(&value), "{name} is not in {error}");
        }
    }

    #[test]
    fn a_consul_is_read_with_all_that_belongs_to_it() {
        let given = environment(&[
            ("RSNET_STORE", "consul+https://consul.example:8501/a/b"),
            ("RSNET_STORE_TOKEN_FILE", "/t"),
            ("RSNET_STORE_CA", "/ca"),
            ("RSNET_STORE_CERT", "/cert"),
            ("RSNET_STORE_KEY", "/key"),
            ("RSNET_STORE_DATACENTER", "dc-2"),
        ]);
        let consul = Given::default().settle(given).unwrap().consul.unwrap();
        assert_eq!(consul.address.to_string(), "consul+https://consul.example:8501/a/b");
        assert_eq!((consul.token, consul.datacenter), (Some(consul::Token::File("/t".into())), Some("dc-2".to_owned())));
        assert_eq!(consul.identity, Some(consul::Identity { certificate: "/cert".into(), key: "/key".into() }));
        assert!(Given::default().settle(environment(&[("RSNET_STORE", "embedded"), ("RSNET_STORE_CA", "/ca")])).unwrap().consul.is_none());
    }

    #[test]
    fn what_does_not_go_together_is_reported_at_once_by_name() {
        let told = |pairs: &[_]| Given::default().settle(environment(pairs)).unwrap_err().to_string();
        let http = [("RSNET_STORE", "consul://h"), ("RSNET_STORE_TOKEN", "a"), ("RSNET_STORE_TOKEN_FILE", "/t"), ("RSNET_STORE_KEY", "/k")];
        let error = told(&http);
        assert_eq!(
            error.lines().collect::<Vec<_>>(),
            [
                "setting store_token_file (RSNET_STORE_TOKEN_FILE) is given beside RSNET_STORE_TOKEN; give one of them",
                "setting store_cert (RSNET_STORE_CERT) is not given, but RSNET_STORE_KEY is; give both or neither",
                "setting store_key (RSNET_STORE_KEY) is of no use with consul://h:8500/rsnet; give consul+https://…, or take it away",
            ]
        );
        assert!(told(&[("RSNET_STORE", "https://h")]).contains("(RSNET_STORE_CA) is not given"));
    }

    #[test]
    fn a_wrong_token_is_named_and_not_shown() {
        let error = Given::default().settle(environment(&[("RSNET_STORE_TOKEN", "5ecret 5ecret")])).unwrap_err().to_string();
        assert!(error.contains("RSNET_STORE_TOKEN") && !error.contains("5ecret"), "{error}");
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("rsnet.toml");
        std::fs::write(&file, "datadir = \"/x\"\n").unwrap();
        let given = Given { config: Some(file.to_str().unwrap().into()), ..Given::default() };
        assert!(given.settle([]).unwrap_err().to_string().contains("datadir"));
    }
}
