//! The least that a remote driver can do: nothing at all; a bare veth that the engine moves; a bare veth made in the sandbox.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::routing::post;
use rsnet::kernel::{Kernel, Netlink, NetlinkConfig};
use rsnet::model::{Attachment, AttachmentKind, EndpointId, IfName, Key, Mac, Object, Place, SandboxName};
use serde_json::{Value, json};

struct Floor {
    kind: String,
    kernel: Netlink,
    addresses: std::sync::Mutex<std::collections::HashMap<String, String>>,
}

/// Answers on `/run/docker/plugins/floor-KIND.sock` until it is killed.
pub fn serve(kind: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let kernel = Netlink::new(NetlinkConfig::default()).expect("the kernel");
        let socket = tokio::net::UnixListener::bind(format!("/run/docker/plugins/floor-{kind}.sock")).expect("a socket");
        let floor = Arc::new(Floor { kind: kind.to_owned(), kernel, addresses: Default::default() });
        let router = Router::new().fallback(post(answer)).with_state(floor);
        axum::serve(socket, router).await.expect("to serve");
    });
}

async fn answer(State(floor): State<Arc<Floor>>, request: Request) -> String {
    let call = request.uri().path().to_owned();
    let body: Bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await.expect("a body");
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    floor.answer(call.rsplit(['.', '/']).next().unwrap_or_default(), &asked).await.to_string()
}

impl Floor {
    async fn answer(&self, call: &str, asked: &Value) -> Value {
        match call {
            "Activate" => json!({ "Implements": ["NetworkDriver"] }),
            "GetCapabilities" => json!({ "Scope": "local", "ConnectivityScope": "local" }),
            "CreateEndpoint" => {
                let address = asked["Interface"]["Address"].as_str().unwrap_or_default().to_owned();
                self.addresses.lock().expect("no panic").insert(text(asked, "EndpointID"), address);
                json!({})
            }
            "Join" => self.join(asked).await,
            "Leave" if self.kind == "made" => self.delete(asked).await,
            "DeleteEndpoint" if self.kind == "moved" => self.delete(asked).await,
            _ => json!({}),
        }
    }

    async fn join(&self, asked: &Value) -> Value {
        let id: EndpointId = text(asked, "EndpointID").parse().expect("an id");
        let peer = IfName::of("flc-", id.as_str());
        let place = match self.kind.as_str() {
            "nothing" => return json!({ "DisableGatewayService": true }),
            "moved" => Place::Host,
            _ => Place::Sandbox {
                path: text(asked, "SandboxKey").into(),
                name: SandboxName::Prefix("net".into()),
                addresses: self.addresses.lock().expect("no panic").get(id.as_str()).and_then(|a| a.parse().ok()).into_iter().collect(),
                sysctls: Vec::new(),
                gateways: Vec::new(),
                routes: vec![],
            },
        };
        let mac = Mac::local(rand::random());
        let attachment = Attachment {
            host: host_end(id.as_str()),
            alias: format!("rsnet:{id}"),
            kind: AttachmentKind::Veth { peer: peer.clone(), router: None },
            mac,
            mtu: Some(1500),
            place,
        };
        self.kernel.put(&Object::Attachment(attachment)).await.expect("a veth");
        match self.kind.as_str() {
            "moved" => json!({ "InterfaceName": { "SrcName": peer, "DstPrefix": "eth" }, "DisableGatewayService": true }),
            _ => json!({ "DisableGatewayService": true }),
        }
    }

    async fn delete(&self, asked: &Value) -> Value {
        self.kernel.delete(&Key::Attachment(host_end(&text(asked, "EndpointID")))).await.expect("to delete a veth");
        json!({})
    }
}

fn host_end(id: &str) -> IfName {
    IfName::of("flv-", id)
}

fn text(asked: &Value, field: &str) -> String {
    asked[field].as_str().unwrap_or_default().to_owned()
}
