//! Where Consul is and how rsnet is let in: the words, without opening anything.

use std::fmt;
use std::path::PathBuf;

use super::super::Key;

/// Everything there is to know of a Consul before asking it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it is.
    pub address: Address,
    /// Which of its datacenters; none: the one of the agent that is asked.
    pub datacenter: Option<String>,
    /// What to say who we are.
    pub token: Option<Token>,
    /// Whom to believe, for https: a PEM file of one or more certificates.
    pub ca: Option<PathBuf>,
    /// Our own certificate, for https where Consul asks for one.
    pub identity: Option<Identity>,
}

/// `consul://HOST:PORT/PREFIX`, or `consul+https://…`. The port is 8500, or 8501 with https, unless given; the prefix is `rsnet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Whether to speak TLS.
    pub https: bool,
    /// A name, an IPv4 address, or an IPv6 address in brackets; with its port.
    pub authority: String,
    /// Every key of ours is below this one.
    pub prefix: Key,
}

/// A Consul ACL token. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// Itself.
    Text(String),
    /// A file whose first word it is; read again when it changes.
    File(PathBuf),
}

/// A client certificate. Both files are PEM, and read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those that sign it if the CA did not.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Address {
    /// Takes a text that is an address. `https://` says the same as `consul+https://`.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let https = match scheme {
            "consul" => false,
            "consul+https" | "https" => true,
            _ => return None,
        };
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = if prefix.is_empty() { "rsnet" } else { prefix.strip_suffix('/').unwrap_or(prefix) };
        Some(Self { https, authority: with_port(authority, https)?, prefix: Key::new(prefix).ok()? })
    }
}

/// The host with its port, or with Consul's usual one.
fn with_port(authority: &str, https: bool) -> Option<String> {
    let usual = if https { 8501 } else { 8500 };
    let text = match authority.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => authority.to_owned(),
        _ => format!("{authority}:{usual}"),
    };
    let (host, port) = text.rsplit_once(':')?;
    // A managed plugin has no /etc/hosts to look that name up in.
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let named = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    let port = port.parse::<u16>().ok().filter(|port| *port > 0)?;
    (named || v6).then(|| format!("{host}:{port}"))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "consul+https" } else { "consul" };
        write!(f, "{scheme}://{}/{}", self.authority, self.prefix)
    }
}

impl Token {
    /// Takes a text that Consul could have given: visible characters without a space.
    pub fn text(text: &str) -> Option<Self> {
        let visible = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        visible.then(|| Self::Text(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_consuls_usual_ports() {
        let shown = |text| Address::parse(text).unwrap().to_string();
        assert_eq!(shown("consul://127.0.0.1"), "consul://127.0.0.1:8500/rsnet");
        assert_eq!(shown("consul://localhost:1/x"), "consul://127.0.0.1:1/x");
        assert_eq!(shown("consul://consul.example:80/"), "consul://consul.example:80/rsnet");
        assert_eq!(shown("consul+https://[fd00::1]/a/b/"), "consul+https://[fd00::1]:8501/a/b");
        assert_eq!(shown("https://[fd00::1]:1/x"), "consul+https://[fd00::1]:1/x");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "consul",
            "consul://",
            "consul:///x",
            "http://h",
            "etcd://h",
            "consul://h:0",
            "consul://h:x",
            "consul://h:70000",
            "consul://[::g]",
            "consul://a b",
            "consul://h/..",
            "consul://h//x",
            "consul://h/a?b",
            "consul://u@h",
        ] {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        assert!(!format!("{:?}", Token::text("5ecret").unwrap()).contains("5ecret"));
        assert_eq!(Token::text("two words"), None);
    }
}
