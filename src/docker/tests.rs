//! What is made of an engine's answers and events, in whichever order they come. The engine is one of this test's own, on a unix socket.

use axum::body::Body;
use axum::extract::Path as PathOf;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::*;

/// What runs, by id, with its name; one without a name does not answer.
#[derive(Clone)]
struct Engine {
    running: Arc<Mutex<BTreeMap<String, String>>>,
    events: broadcast::Sender<String>,
}

impl Engine {
    fn new(running: &[(&str, &str)]) -> Engine {
        let running = running.iter().map(|(id, name)| ((*id).to_owned(), (*name).to_owned())).collect();
        Engine { running: Arc::new(Mutex::new(running)), events: broadcast::Sender::new(16) }
    }

    fn running(&self) -> BTreeMap<String, String> {
        self.running.lock().clone()
    }

    fn set(&self, id: &str, name: &str) {
        self.running.lock().insert(id.to_owned(), name.to_owned());
    }

    fn tell(&self, action: &str, id: &str) {
        self.tell_of("container", action, id);
    }

    fn tell_of(&self, kind: &str, action: &str, id: &str) {
        self.events.send(json!({ "Type": kind, "Action": action, "Actor": { "ID": id } }).to_string() + "\n").unwrap();
    }

    fn inspect(&self, id: &str) -> Option<Value> {
        let name = self.running().get(id)?.clone();
        let network = json!({ "NetworkID": "ab12", "EndpointID": "ef34", "IPAddress": "10.50.0.2" });
        Some(
            json!({ "Id": id, "Name": format!("/{name}"), "State": { "Running": true }, "NetworkSettings": { "Networks": { "blue": network } } }),
        )
    }

    /// Serves for as long as the test lives, on a socket in this directory.
    fn serve(&self, directory: &Path) -> std::path::PathBuf {
        let socket = directory.join("docker.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let json = |value: Value| async move { value.to_string() };
        let router = Router::new()
            .route("/networks", get(move || json(json!([{ "Id": "ab12", "Name": "blue" }]))))
            .route("/info", get(move || json(json!({ "Plugins": { "Network": ["rsnet"] } }))))
            .route("/containers/json", get(list_running))
            .route("/containers/{id}/json", get(inspect_one))
            .route("/events", get(events))
            .route("/version", get(move || json(json!({ "ApiVersion": "1.41" }))))
            .layer(middleware::map_response(as_json))
            .with_state(self.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        socket
    }
}

async fn as_json(mut response: Response) -> Response {
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

async fn list_running(State(engine): State<Engine>) -> String {
    let network = |id: &str| json!({ "blue": { "NetworkID": "ab12", "EndpointID": format!("ef{id}") } });
    let shown = |(id, name): (&String, &String)| {
        let state = if name == "ended" { "exited" } else { "running" };
        json!({ "Id": id, "Names": [format!("/{name}")], "State": state, "NetworkSettings": { "Networks": network(id) } })
    };
    json!(engine.running().iter().map(shown).collect::<Vec<_>>()).to_string()
}

async fn inspect_one(State(engine): State<Engine>, PathOf(id): PathOf<String>) -> Response {
    while engine.running().get(&id).is_some_and(String::is_empty) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    match engine.inspect(&id) {
        Some(found) => found.to_string().into_response(),
        None => (StatusCode::NOT_FOUND, json!({ "message": "no such container" }).to_string()).into_response(),
    }
}

async fn events(State(engine): State<Engine>) -> Body {
    let events = futures_util::stream::unfold(engine.events.subscribe(), async |mut events| {
        let event = events.recv().await.ok()?;
        Some((Ok::<_, std::convert::Infallible>(event), events))
    });
    Body::from_stream(events)
}

/// Learns from this engine.
async fn learning(engine: &Engine, directory: &Path) -> Arc<Names> {
    let (names, socket) = (Arc::new(Names::default()), engine.serve(directory));
    let learner = names.clone();
    tokio::spawn(async move { learner.learn(&socket).await });
    names
}

async fn until(names: &Names, what: impl Fn(&Names) -> bool) {
    let mut changes = names.changes();
    let waited = timeout(Duration::from_secs(10), async {
        while !what(names) {
            changes.changed().await.unwrap();
        }
    });
    assert!(waited.await.is_ok(), "{:?}", names.containers());
}

fn called(names: &Names) -> Vec<String> {
    names.containers().into_iter().map(|container| container.name).collect()
}

#[tokio::test]
async fn nothing_counts_as_all_that_runs_before_each_was_looked_at() {
    let (directory, engine) = (tempfile::tempdir().unwrap(), Engine::new(&[("1", "one"), ("2", "")]));
    let names = learning(&engine, directory.path()).await;
    until(&names, |names| called(names) == ["one"]).await;
    assert!(!names.has_told() && !names.in_touch());
    engine.set("2", "two");
    until(&names, Names::has_told).await;
    assert_eq!(called(&names), ["one", "two"]);
    assert_eq!(names.of(&"ab12".parse().unwrap()).as_deref(), Some("blue"));
}

#[tokio::test]
async fn an_answer_that_comes_after_the_container_died_does_not_count() {
    let (directory, engine) = (tempfile::tempdir().unwrap(), Engine::new(&[]));
    let names = learning(&engine, directory.path()).await;
    until(&names, Names::has_told).await;
    while engine.events.receiver_count() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine.set("1", "");
    engine.tell("start", "1");
    engine.tell("die", "1");
    engine.set("2", "other");
    engine.tell("start", "2");
    until(&names, |names| called(names) == ["other"]).await;
    engine.set("1", "late");
    engine.set("3", "last");
    engine.tell("start", "3");
    until(&names, |names| called(names).contains(&"last".to_owned())).await;
    assert_eq!(called(&names), ["other", "last"]);
    engine.set("2", "renamed");
    engine.tell("rename", "2");
    until(&names, |names| called(names) == ["renamed", "last"]).await;
    engine.set("2", "well");
    engine.tell("health_status: healthy", "2");
    until(&names, |names| called(names) == ["well", "last"]).await;
}

#[tokio::test]
async fn that_a_network_came_or_went_or_lost_a_container_is_told_apart_from_all_other_news() {
    let (directory, engine) = (tempfile::tempdir().unwrap(), Engine::new(&[("1", "one")]));
    let names = learning(&engine, directory.path()).await;
    until(&names, Names::has_told).await;
    while engine.events.receiver_count() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut changes = names.network_changes();
    engine.set("1", "renamed");
    engine.tell("rename", "1");
    until(&names, |names| called(names) == ["renamed"]).await;
    assert!(!changes.has_changed().unwrap());
    for action in ["create", "disconnect", "destroy"] {
        engine.tell_of("network", action, "ab12");
        timeout(Duration::from_secs(10), changes.changed()).await.unwrap_or_else(|_| panic!("{action} is not told")).unwrap();
    }
}

/// A directory as a host's `/run` where systemd holds the engine's socket.
fn run_of_systemd() -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(run.path().join("systemd/system")).unwrap();
    run
}

#[tokio::test]
async fn an_engine_that_systemd_would_start_is_asked_only_once_it_runs() {
    let (run, engine) = (run_of_systemd(), Engine::new(&[("1", "one")]));
    let names = learning(&engine, run.path()).await;
    tokio::time::sleep(2 * AGAIN).await;
    assert!(!names.in_touch() && engine.events.receiver_count() == 0, "nobody connected");
    std::fs::write(run.path().join("docker.pid"), "7").unwrap();
    until(&names, Names::in_touch).await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_at_its_end_is_waited_for_and_its_successor_asked_at_once() {
    let run = run_of_systemd();
    let (socket, file) = (run.path().join("docker.sock"), run.path().join("docker.pid"));
    std::fs::write(&file, "7").unwrap();
    let first = awake::awake(&socket, None).await;
    assert!(first.is_some());
    let began = tokio::time::Instant::now();
    assert_eq!(awake::awake(&socket, first).await, first, "it is the same after all");
    assert_eq!(began.elapsed().as_secs(), 60);
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(SystemTime::now() + Duration::from_secs(9)).unwrap();
    let began = tokio::time::Instant::now();
    assert_ne!(awake::awake(&socket, first).await, first);
    assert_eq!(began.elapsed().as_secs(), 0);
    std::fs::remove_dir_all(run.path().join("systemd")).unwrap();
    assert_eq!(awake::awake(&socket, first).await, None, "nobody would start it");
}

#[tokio::test]
async fn what_ended_with_a_killed_engine_has_no_endpoints_though_the_engine_lists_them() {
    let (directory, engine) = (tempfile::tempdir().unwrap(), Engine::new(&[("1", "one"), ("2", "ended")]));
    let told = ask(&engine.serve(directory.path())).await.unwrap();
    assert_eq!(told.containers.keys().collect::<Vec<_>>(), ["ef1"]);
}
