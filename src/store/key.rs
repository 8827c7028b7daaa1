use std::fmt;

/// A key: segments of `[A-Za-z0-9._:-]` joined by `/`, none of them empty, `.` or `..`.
///
/// As narrow as this because a key is a path of Consul's HTTP API, where clients and servers resolve dots, collapse slashes and encode
/// everything else, once or twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// A text that is no [`Key`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key {0:?}: segments must be of A-Z a-z 0-9 . _ : - and not be empty, \".\" or \"..\"; choose another")]
pub struct InvalidKey(pub String);

impl Key {
    /// Takes a text that is a key.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidKey> {
        let text = text.into();
        if text.split('/').all(is_segment) { Ok(Self(text)) } else { Err(InvalidKey(text)) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    !matches!(text, "" | "." | "..") && text.bytes().all(allowed)
}

/// A part of the store: everything, or all keys below one, cut between segments (`a` has `a/b` in it, neither `a` nor `ab`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prefix(String);

impl Prefix {
    /// Everything, the record format included.
    pub fn all() -> Self {
        Self(String::new())
    }

    /// All keys below this one, without itself.
    pub fn below(key: &Key) -> Self {
        Self(format!("{key}/"))
    }

    /// The text every key of it starts with: empty, or ending in `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
