//! Who is connected: so many and no more. Whoever comes when all seats are taken gets that of the one who has sat there for longest without
//! a call under way. So connections that only hold a seat never keep the engine out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The engine keeps six idle connections, and opens as many as it starts containers at a time.
const SEATS: usize = 256;
/// How long to wait for a seat before somebody else is asked to leave.
const MOMENT: Duration = Duration::from_millis(50);

pub struct Guests {
    seats: Arc<Semaphore>,
    /// In the order of their coming.
    present: Arc<Mutex<VecDeque<Guest>>>,
}

/// One connection.
#[derive(Clone, Default)]
pub struct Guest(Arc<Calls>);

#[derive(Default)]
struct Calls {
    under_way: AtomicUsize,
    leave: CancellationToken,
}

/// A guest's place. Free again when it is dropped.
pub struct Seat {
    guest: Guest,
    present: Arc<Mutex<VecDeque<Guest>>>,
    _permit: OwnedSemaphorePermit,
}

/// A call under way, until it is dropped.
pub struct Call(Guest);

impl Default for Guests {
    fn default() -> Self {
        Guests { seats: Arc::new(Semaphore::new(SEATS)), present: Arc::default() }
    }
}

impl Guests {
    /// Waits for a seat, and makes one free if need be. Where all have calls under way, that takes until one of those is done.
    pub async fn admit(&self) -> Seat {
        loop {
            if self.seats.available_permits() == 0 {
                self.dismiss_one();
            }
            // the semaphore is never closed
            if let Ok(Ok(permit)) = timeout(MOMENT, self.seats.clone().acquire_owned()).await {
                let guest = Guest::default();
                self.present.lock().push_back(guest.clone());
                return Seat { guest, present: self.present.clone(), _permit: permit };
            }
        }
    }

    fn dismiss_one(&self) {
        let mut present = self.present.lock();
        let idle = present.iter().position(|guest| !guest.has_call());
        if let Some(guest) = idle.and_then(|index| present.remove(index)) {
            guest.0.leave.cancel();
        }
    }
}

impl Seat {
    pub fn guest(&self) -> Guest {
        self.guest.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.present.lock().retain(|guest| !Arc::ptr_eq(&guest.0, &self.guest.0));
    }
}

impl Guest {
    /// Says that a request came whole.
    pub fn call(&self) -> Call {
        self.0.under_way.fetch_add(1, Ordering::SeqCst);
        Call(self.clone())
    }

    pub fn has_call(&self) -> bool {
        self.0.under_way.load(Ordering::SeqCst) > 0
    }

    /// Returns when the seat is wanted for somebody else.
    pub async fn dismissed(&self) {
        self.0.leave.cancelled().await;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_came_first_and_has_no_call_makes_room() {
        let guests = Guests::default();
        let mut seats = Vec::new();
        for _ in 0..SEATS {
            seats.push(guests.admit().await);
        }
        let _call = seats[0].guest().call();
        let (first_idle, last) = (seats.remove(1), seats.pop().unwrap());
        let leaving = tokio::spawn(async move {
            first_idle.guest().dismissed().await;
            drop(first_idle);
        });
        let newcomer = guests.admit().await;
        leaving.await.unwrap();
        assert!(timeout(MOMENT, last.guest().dismissed()).await.is_err(), "one seat was enough");
        drop(newcomer);
    }
}
