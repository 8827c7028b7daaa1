//! The engine's calls against the whole daemon but for its edges: the fake kernel and firewall, with faults, and the real embedded store.

mod borrow;
mod calls;
mod faults;
mod format;
mod hostile;
mod wire;
mod world;
