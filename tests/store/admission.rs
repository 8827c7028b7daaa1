//! Being let in: ACLs that deny what is not allowed, certificates on both sides, and what happens when they change.

use std::path::{Path, PathBuf};
use std::process::Command;

use futures_util::StreamExt;
use rsnet::store::consul::{Identity, Service, Settings, Token};
use rsnet::store::{Consul, Expect, Key, Leases, Prefix, Store, StoreError};
use serde_json::{Value, json};

use super::conformance;
use super::server::{CONSUL, Server, own_network, settings, token, wait_until};

const MASTER: &str = "11111111-2222-3333-4444-555555555555";
const UNKNOWN: &str = "99999999-2222-3333-4444-555555555555";

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// A Consul that denies everything but to tokens, with the policy that we ship.
fn guarded() -> Server {
    let acl = json!({ "enabled": true, "default_policy": "deny", "tokens": { "master": MASTER, "agent": MASTER } });
    let consul = Server::dev_with(&json!({ "acl": acl }));
    let policy = format!("@{}/packaging/consul-policy.hcl", env!("CARGO_MANIFEST_DIR"));
    let create = ["acl", "policy", "create", "-name", "rsnet", "-rules", &policy];
    wait_until("the ACL system", || administer(&consul, &create));
    administer(&consul, &["acl", "policy", "create", "-name", "reader", "-rules", r#"key_prefix "rsnet/" { policy = "read" }"#]).unwrap();
    administer(&consul, &["kv", "put", "others/secret", "x"]).unwrap();
    consul
}

/// Consul's command line with the token that may do everything.
fn administer(consul: &Server, arguments: &[&str]) -> Result<String, String> {
    let output = consul.command(arguments).env("CONSUL_HTTP_TOKEN", MASTER).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("{arguments:?}: {}", text(&output.stderr))) }
}

/// A new token with a policy.
fn new_token(consul: &Server, policy: &str) -> String {
    let text = administer(consul, &["acl", "token", "create", "-format=json", "-policy-name", policy]).unwrap();
    let made: Value = serde_json::from_str(&text).unwrap();
    made["SecretID"].as_str().unwrap().to_owned()
}

/// Ours, with the prefix that the policy is for.
fn with_token(token: Option<Token>) -> Settings {
    Settings { token, ..settings("consul://127.0.0.1:8500/rsnet") }
}

#[track_caller]
fn denied<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("RSNET_STORE_TOKEN"), "{error}");
}

#[tokio::test]
async fn the_policy_that_we_ship_is_enough() {
    own_network();
    let consul = guarded();
    conformance::all(&Consul::new(with_token(token(&new_token(&consul, "rsnet"))))).await;
}

#[tokio::test]
async fn the_catalog_takes_its_own_policy() {
    own_network();
    let consul = guarded();
    let policy = format!("@{}/packaging/consul-policy-catalog.hcl", env!("CARGO_MANIFEST_DIR"));
    administer(&consul, &["acl", "policy", "create", "-name", "catalog", "-rules", &policy]).unwrap();
    let address = "192.0.2.1".parse().unwrap();
    let service = Service { name: "web".to_owned(), address, port: 80, tags: vec![], passing: true, output: "runs".to_owned() };
    let without = Consul::new(with_token(token(&new_token(&consul, "rsnet"))));
    denied(without.register("rsnet-h1", address, "a", &service).await);
    assert_eq!(without.contact().problem, None, "the store can be used all the same");
    let with = Consul::new(with_token(token(&new_token(&consul, "catalog"))));
    with.register("rsnet-h1", address, "a", &service).await.unwrap();
    denied(with.register("n1", address, "a", &service).await);
    let found = with.node("rsnet-h1").await.unwrap().expect("the node");
    assert_eq!(found.services, [("a".to_owned(), service)].into());
    with.deregister("rsnet-h1", None).await.unwrap();
    assert_eq!(with.node("rsnet-h1").await.unwrap(), None);
}

/// The commands of the page, as typed.
#[tokio::test]
async fn the_page_on_the_store_leads_to_a_token_that_is_enough() {
    own_network();
    let acl = json!({ "enabled": true, "default_policy": "deny", "tokens": { "master": MASTER, "agent": MASTER } });
    let consul = Server::dev_with(&json!({ "acl": acl }));
    wait_until("the ACL system", || administer(&consul, &["acl", "policy", "list"]));
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(project.join("docs/store.md")).unwrap();
    let blocks = page.split("```console").filter_map(|block| block.split_once('\n')?.1.split("```").next());
    let commands = blocks.into_iter().find(|block| block.starts_with("consul acl")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(project.join("packaging"), dir.path().join("packaging")).unwrap();
    let path = format!("/var/cache/rsnet/consul/usr/bin:{}", std::env::var("PATH").unwrap());
    let mut typed = Command::new("sh");
    typed.args(["-ec", commands]).current_dir(dir.path()).env("PATH", path).env("CONSUL_HTTP_TOKEN", MASTER);
    let output = typed.env("CONSUL_HTTP_ADDR", "127.0.0.1:8500").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Consul::new(with_token(Some(Token::File(dir.path().join("consul.token"))))).check().await.unwrap();
}

#[tokio::test]
async fn the_policy_that_we_ship_allows_nothing_else() {
    own_network();
    let consul = guarded();
    let ours = new_token(&consul, "rsnet");
    let run = |arguments: &[&str]| consul.command(arguments).env("CONSUL_HTTP_TOKEN", &ours).output().unwrap();
    for arguments in [
        &["kv", "get", "others/secret"][..],
        &["kv", "put", "others/secret", "y"],
        &["kv", "put", "rsnet", "y"],
        &["kv", "delete", "-recurse", ""],
        &["acl", "token", "list"],
        &["services", "register", "-name", "x"],
    ] {
        let output = run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("403"), "{arguments:?}: {error}");
    }
    assert!(run(&["catalog", "nodes"]).stdout.is_empty() || !String::from_utf8_lossy(&run(&["catalog", "nodes"]).stdout).contains("n1"));
    assert_eq!(administer(&consul, &["kv", "get", "others/secret"]).unwrap(), "x\n");
}

/// Consul leaves out of a list what a token may not see: without care an empty cluster.
#[tokio::test]
async fn nobody_takes_what_he_may_not_see_for_empty() {
    own_network();
    let consul = guarded();
    Consul::new(with_token(token(MASTER))).put(&key("a/b"), vec![], Expect::Any).await.unwrap();
    for token in [None, token(UNKNOWN)] {
        let store = Consul::new(with_token(token));
        denied(store.check().await);
        denied(store.get(&key("a/b")).await);
        denied(store.list(&Prefix::below(&key("a"))).await);
        denied(store.put(&key("a/b"), vec![], Expect::Any).await);
        denied(store.grant("host", std::time::Duration::from_secs(10)).await);
        denied(store.watch(&Prefix::below(&key("a"))).await.unwrap().next().await.unwrap());
    }
    let reader = Consul::new(with_token(token(&new_token(&consul, "reader"))));
    assert_eq!(reader.list(&Prefix::below(&key("a"))).await.unwrap().len(), 1);
    denied(reader.check().await);
    denied(reader.put(&key("a/b"), b"new".into(), Expect::Any).await);
}

#[tokio::test]
async fn a_new_token_in_the_file_is_taken_without_a_restart() {
    own_network();
    let consul = guarded();
    let file = consul.path("token");
    let (old, new) = (new_token(&consul, "rsnet"), new_token(&consul, "rsnet"));
    let store = Consul::new(with_token(Some(Token::File(file.clone()))));
    let missing = store.check().await.unwrap_err().to_string();
    assert!(missing.contains(&format!("store_token_file={} (RSNET_STORE_TOKEN_FILE): No such file", file.display())), "{missing}");
    std::fs::write(&file, format!("{old}\n")).unwrap();
    let mut watch = store.watch(&Prefix::below(&key("a"))).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), []);
    administer(&consul, &["acl", "token", "delete", "-id", &accessor(&consul, &old)]).unwrap();
    denied(store.put(&key("a/1"), vec![], Expect::Any).await);
    // an empty file is not believed: somebody is just writing it
    std::fs::write(&file, "").unwrap();
    denied(store.put(&key("a/1"), vec![], Expect::Any).await);
    std::fs::write(&file, format!("{new}\n")).unwrap();
    store.put(&key("a/1"), vec![], Expect::Any).await.unwrap();
    while watch.next().await.unwrap().map_or(0, |snapshot| snapshot.len()) != 1 {}
}

fn accessor(consul: &Server, secret: &str) -> String {
    let text = consul.command(&["acl", "token", "read", "-self", "-format=json"]).env("CONSUL_HTTP_TOKEN", secret).output().unwrap().stdout;
    serde_json::from_slice::<Value>(&text).unwrap()["AccessorID"].as_str().unwrap().to_owned()
}

/// A CA with a server's and a client's certificate, in a directory.
struct Papers(PathBuf);

impl Papers {
    fn new(directory: &Path) -> Self {
        std::fs::create_dir(directory).unwrap();
        let papers = Self(directory.to_owned());
        papers.tls(&["ca", "create"]);
        papers.tls(&["cert", "create", "-server", "-additional-ipaddress=127.0.0.1"]);
        papers.tls(&["cert", "create", "-client"]);
        papers
    }

    fn tls(&self, arguments: &[&str]) {
        let mut command = Command::new(CONSUL);
        let output = command.arg("tls").args(arguments).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn ca(&self) -> PathBuf {
        self.0.join("consul-agent-ca.pem")
    }

    fn file(&self, who: &str, suffix: &str) -> PathBuf {
        self.0.join(format!("dc1-{who}-consul-0{suffix}.pem"))
    }

    /// A Consul that speaks to nobody without a certificate of this CA.
    fn server(&self) -> Server {
        Server::dev_with(&json!({
            "ports": { "https": 8501 }, "verify_incoming": true,
            "ca_file": self.ca(), "cert_file": self.file("server", ""), "key_file": self.file("server", "-key"),
        }))
    }

    fn settings(&self) -> Settings {
        let identity = Identity { certificate: self.file("client", ""), key: self.file("client", "-key") };
        Settings { ca: Some(self.ca()), identity: Some(identity), ..settings("consul+https://127.0.0.1:8501/test") }
    }

    /// Takes the place of other papers, one file after the other.
    fn replace(&self, others: &Papers) {
        for (from, to) in self.all().into_iter().zip(others.all()) {
            std::fs::copy(from, to).unwrap();
        }
    }

    fn all(&self) -> [PathBuf; 5] {
        let [who, suffixes] = [["server", "client"], ["", "-key"]];
        [
            self.ca(),
            self.file(who[0], suffixes[0]),
            self.file(who[0], suffixes[1]),
            self.file(who[1], suffixes[0]),
            self.file(who[1], suffixes[1]),
        ]
    }
}

#[tokio::test]
async fn tls_with_certificates_on_both_sides_keeps_the_contract() {
    own_network();
    let dir = tempfile::tempdir().unwrap();
    let papers = Papers::new(&dir.path().join("papers"));
    let _consul = papers.server();
    conformance::all(&Consul::new(papers.settings())).await;
}

#[tokio::test]
async fn who_is_not_certified_is_refused_on_both_sides() {
    own_network();
    let dir = tempfile::tempdir().unwrap();
    let (papers, others) = (Papers::new(&dir.path().join("papers")), Papers::new(&dir.path().join("others")));
    let consul = papers.server();
    let told = async |settings: Settings| Consul::new(settings).check().await.unwrap_err().to_string();
    let error = told(Settings { identity: None, ..papers.settings() }).await;
    assert!(error.contains("consul+https://127.0.0.1:8501/test") && error.to_lowercase().contains("certificate"), "{error}");
    let error = told(Settings { identity: others.settings().identity, ..papers.settings() }).await;
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let error = told(Settings { ca: Some(others.ca()), ..papers.settings() }).await;
    assert!(error.contains("invalid peer certificate"), "{error}");
    let error = told(settings("consul://127.0.0.1:8501/test")).await;
    assert!(error.contains("400") && error.contains("HTTPS server"), "{error}");
    let error = told(Settings { address: settings("https://127.0.0.1:8500/test").address, ..papers.settings() }).await;
    assert!(error.contains("consul+https://127.0.0.1:8500/test"), "{error}");
    assert_eq!(consul.consul(&["kv", "get", "-keys", ""]).trim(), "", "nobody got in");
}

#[tokio::test]
async fn files_that_are_no_certificates_are_named() {
    own_network();
    let dir = tempfile::tempdir().unwrap();
    let papers = Papers::new(&dir.path().join("papers"));
    let identity = |certificate, key| Some(Identity { certificate, key });
    let (ca, certificate, key) = (papers.ca(), papers.file("client", ""), papers.file("client", "-key"));
    for (settings, name) in [
        (Settings { ca: Some(key.clone()), ..papers.settings() }, "RSNET_STORE_CA"),
        (Settings { ca: Some(dir.path().join("none")), ..papers.settings() }, "RSNET_STORE_CA"),
        (Settings { identity: identity(key.clone(), key.clone()), ..papers.settings() }, "RSNET_STORE_CERT"),
        (Settings { identity: identity(ca, key), ..papers.settings() }, "RSNET_STORE_CERT"),
        (Settings { identity: identity(certificate.clone(), certificate), ..papers.settings() }, "RSNET_STORE_KEY"),
    ] {
        let error = Consul::new(settings).check().await.unwrap_err();
        assert!(matches!(error, StoreError::Setting { .. }) && error.to_string().contains(&format!("({name})")), "{error}");
    }
}

#[tokio::test]
async fn new_certificates_are_taken_without_a_restart() {
    own_network();
    let dir = tempfile::tempdir().unwrap();
    let (papers, fresh) = (Papers::new(&dir.path().join("papers")), Papers::new(&dir.path().join("fresh")));
    let mut consul = papers.server();
    let store = Consul::new(papers.settings());
    store.put(&key("a"), b"old".into(), Expect::Any).await.unwrap();
    // a certificate whose key is not there yet does not count
    std::fs::copy(fresh.file("client", ""), papers.file("client", "")).unwrap();
    store.put(&key("a"), b"still".into(), Expect::Any).await.unwrap();
    consul.kill();
    fresh.replace(&papers);
    consul.start_again();
    consul.await_leader();
    store.put(&key("a"), b"new".into(), Expect::Absent).await.unwrap();
    assert_eq!(consul.consul(&["kv", "get", "test/a"]), "new\n");
}
