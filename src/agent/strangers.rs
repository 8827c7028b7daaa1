//! Strangers: machines on a segment that have a container's address already.
//!
//! The segment is asked when the endpoint is made, and what it has answered by is looked at when the endpoint joins: what the engine and rsnet
//! do in between is the time to answer. Who answers later than that is told in the log.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::kernel::Kernel;
use crate::model::{Endpoint, EndpointId, IfName, Mac};

/// How long a stranger has to answer: what the question costs a start at most. A machine on a wire answers within 1 ms.
const ANSWER: Duration = Duration::from_millis(5);
/// How long a late answer is told: the kernel asks again after one second and after two.
const LATE: Duration = Duration::from_millis(2500);

/// Who has which address on the segment of which link.
struct Stranger {
    link: IfName,
    address: IpAddr,
    mac: Mac,
}

type Search = AbortOnDropHandle<Option<Stranger>>;

/// The searches under way; one ends with its endpoint.
#[derive(Default)]
pub struct Strangers {
    asked: Mutex<HashMap<EndpointId, (Instant, Search)>>,
    late: Mutex<HashMap<EndpointId, AbortOnDropHandle<()>>>,
}

impl Strangers {
    /// Asks each segment for its address. Must run in a tokio runtime.
    pub fn ask(&self, kernel: &Arc<dyn Kernel>, endpoint: &Endpoint, exclusive: Vec<(IfName, IpAddr)>) {
        if exclusive.is_empty() {
            return;
        }
        let search = AbortOnDropHandle::new(tokio::spawn(search(kernel.clone(), exclusive, endpoint.mac)));
        self.asked.lock().insert(endpoint.id.clone(), (Instant::now(), search));
    }

    /// What is wrong with an endpoint's addresses, in words; waits until every stranger had the time to say so.
    pub async fn refusal(&self, id: &EndpointId) -> Option<String> {
        let (began, mut search) = self.asked.lock().remove(id)?;
        match timeout_at(began + ANSWER, &mut search).await {
            Ok(found) => found.ok().flatten().map(|stranger| stranger.refusal()),
            Err(_) => {
                let telling = AbortOnDropHandle::new(tokio::spawn(tell(id.clone(), search)));
                let mut late = self.late.lock();
                late.retain(|_, telling| !telling.is_finished());
                late.insert(id.clone(), telling);
                None
            }
        }
    }

    pub fn forget(&self, id: &EndpointId) {
        self.asked.lock().remove(id);
        self.late.lock().remove(id);
    }
}

/// The first that answers. A switch may send the container's own answer back.
async fn search(kernel: Arc<dyn Kernel>, exclusive: Vec<(IfName, IpAddr)>, own: Mac) -> Option<Stranger> {
    let kernel = &*kernel;
    let ask = async |(link, address): (IfName, IpAddr)| {
        let mac = kernel.who_has(link.clone(), address, LATE).await.filter(|mac| *mac != own)?;
        Some(Stranger { link, address, mac })
    };
    let mut answers: FuturesUnordered<_> = exclusive.into_iter().map(ask).collect();
    while let Some(answer) = answers.next().await {
        if answer.is_some() {
            return answer;
        }
    }
    None
}

async fn tell(endpoint: EndpointId, search: Search) {
    if let Ok(Some(Stranger { link, address, mac })) = search.await {
        warn!(
            %endpoint,
            "address {address} is in use on the segment of {link} too, by MAC {mac}, which answered after the container had joined: \
             give one of the two another address"
        );
    }
}

impl Stranger {
    fn refusal(&self) -> String {
        let Stranger { link, address, mac } = self;
        format!(
            "address {address} is in use on the segment of {link}, by MAC {mac}; give another --ip, or keep the address from containers with \
             --ip-range or --aux-address; -o probe=false does without this check"
        )
    }
}
