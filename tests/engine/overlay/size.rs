//! How long the tests of endurance go on: the one place where their sizes are told. `SOAK=full make test` takes the full ones.

/// The sizes of a run.
pub struct Size {
    /// Containers that start and stop while addresses change hands and hosts are killed.
    pub reuses: usize,
}

const ORDINARY: Size = Size { reuses: 50 };
const FULL: Size = Size { reuses: 2000 };

pub fn size() -> &'static Size {
    match std::env::var("SOAK").as_deref() {
        Ok("full") => &FULL,
        Ok(other) => panic!("SOAK={other}: full, or not given"),
        Err(_) => &ORDINARY,
    }
}
