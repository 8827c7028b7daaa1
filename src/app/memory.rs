//! The memory that glibc keeps for later. A call with ten thousand ports needs 30 MB for a moment; threads have heaps of their own, each of which
//! then keeps what it once had: 67 MB after some such calls, 2.5 MB of them in use.

use std::time::Duration;

use nix::libc;

/// How often what is free is given back to the kernel.
const AGAIN: Duration = Duration::from_secs(60);

/// Has all threads share a heap. To be called before there is a second one.
pub fn share_heap() {
    // SAFETY: it takes two integers and sets a number of the allocator's.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        tracing::debug!("the allocator keeps a heap for each thread");
    }
}

/// Not on a thread that answers calls: it takes 2 to 20 ms where there is much to give back.
pub async fn give_back() {
    loop {
        tokio::time::sleep(AGAIN).await;
        // SAFETY: it takes an integer, and leaves what is in use where it is.
        let trim = || unsafe { libc::malloc_trim(0) };
        let _ = tokio::task::spawn_blocking(trim).await;
    }
}
