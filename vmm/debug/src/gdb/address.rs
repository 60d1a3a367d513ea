//! Where gdb is waited for: `unix:PATH` or `HOST:PORT`.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use super::error::GdbError;

/// Where gdb is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system, which only its owner can open.
    Unix(PathBuf),
    /// A TCP port. Whoever reaches it controls the guest.
    Tcp {
        /// A name or a number; where none is given it is this machine's loopback.
        host: String,
        /// The port; 0 takes any that is free.
        port: u16,
    },
}

impl FromStr for Address {
    type Err = GdbError;

    fn from_str(text: &str) -> Result<Self, GdbError> {
        let wrong = || GdbError::Address { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.strip_prefix("tcp:").unwrap_or(text).rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_name = |host: &str| !host.contains(|c: char| c.is_whitespace() || "/:[]".contains(c));
        match bare {
            Some(bare) if bare.parse::<IpAddr>().is_ok() => Ok(Self::Tcp { host: bare.into(), port }),
            None if host.is_empty() => Ok(Self::Tcp { host: "127.0.0.1".into(), port }),
            None if is_name(host) => Ok(Self::Tcp { host: host.into(), port }),
            _ => Err(wrong()),
        }
    }
}

impl Address {
    /// The socket addresses of a TCP port: what the host's name stands for.
    pub(super) fn resolved(&self) -> std::io::Result<Vec<SocketAddr>> {
        match self {
            Self::Unix(_) => Ok(Vec::new()),
            Self::Tcp { host, port } => (host.as_str(), *port).to_socket_addrs().map(Iterator::collect),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn address_is_a_path_or_a_host_with_a_port() {
        let of = |text: &str| text.parse::<Address>().expect("it is one").to_string();
        assert_eq!(of("unix:/tmp/a b"), "unix:/tmp/a b");
        assert_eq!(of(":1234"), "127.0.0.1:1234");
        assert_eq!(of("tcp:localhost:1"), "localhost:1");
        assert_eq!(of("[::1]:0"), "[::1]:0");
        for text in ["", "1234", "unix:", "a:", "a:65536", "::1:5", "[x]:1", "a b:1", "/tmp/x:1"] {
            let error = text.parse::<Address>().expect_err("it is none").to_string();
            assert!(error.contains("unix:PATH") && !error.contains('\n'), "{error}");
        }
    }
}
