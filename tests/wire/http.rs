//! HTTP/1.1 over TLS by hand: bytes out, and what comes back as it came.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Nothing here takes longer, even on a busy machine; this ends a hopeless wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client certificate and its key, PEM.
#[derive(Clone)]
pub struct Certificate {
    pub chain: String,
    pub key: String,
}

/// One connection.
pub struct Wire {
    tls: StreamOwned<ClientConnection, TcpStream>,
    /// Received and not yet taken.
    rest: Vec<u8>,
}

/// An answer, as it came.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Status line and headers, without the empty line after them; the value of `date` is replaced, for it is another each time.
    pub head: String,
    pub body: Vec<u8>,
}

/// A request as bytes. `head`: request line and headers, one a line, without `content-length`.
pub fn request(head: &str, body: &[u8]) -> Vec<u8> {
    let mut text = head.trim_end().lines().map(str::trim).collect::<Vec<_>>().join("\r\n");
    if !body.is_empty() {
        let _ = write!(text, "\r\nContent-Length: {}", body.len());
    }
    [text.as_bytes(), b"\r\n\r\n", body].concat()
}

impl Wire {
    /// Connects with ALPN `http/1.1`; trusts `roots` (PEM) and shows `certificate` if there is one.
    pub fn open(to: SocketAddr, roots: &str, certificate: Option<&Certificate>) -> Self {
        let mut trusted = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(roots.as_bytes()) {
            trusted.add(der.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(trusted);
        let mut config = match certificate {
            None => config.with_no_client_auth(),
            Some(Certificate { chain, key }) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain.unwrap(), key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::from(to.ip());
        let tcp = TcpStream::connect(to).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        Self {
            tls: StreamOwned::new(tls, tcp),
            rest: Vec::new(),
        }
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.tls.write_all(bytes).unwrap();
        self.tls.flush().unwrap();
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        while self.rest.len() < count {
            assert!(self.more(), "the connection ended after {:?}", self.rest);
        }
        self.rest.drain(..count).collect()
    }

    /// Whether the far end has closed the connection, with nothing more said.
    pub fn is_closed(&mut self) -> bool {
        self.rest.is_empty() && !self.more()
    }

    fn more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = match self.tls.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the far end neither says anything nor closes")
            }
            // A peer that goes without a goodbye on the TLS layer has gone all the same.
            Err(_) => 0,
        };
        self.rest.extend_from_slice(&buffer[..count]);
        count > 0
    }

    /// Status line and headers.
    fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.rest.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.take(end + 4);
                return String::from_utf8(head[..end].to_vec()).unwrap();
            }
            assert!(self.more(), "the connection ended in a head: {:?}", self.rest);
        }
    }

    /// The answer to a request; `bodiless`: it was HEAD.
    pub fn hear(&mut self, bodiless: bool) -> Answer {
        let head = self.head();
        let field = |name: &str| header(&head, name).map(str::to_owned);
        let code = code_of(&head);
        let body = match (field("content-length"), field("transfer-encoding").as_deref()) {
            _ if bodiless || code < 200 || code == 204 || code == 304 => Vec::new(),
            (Some(length), None) => self.take(length.parse().unwrap()),
            (None, Some("chunked")) => self.chunks(),
            (None, None) => {
                while self.more() {}
                std::mem::take(&mut self.rest)
            }
            odd => panic!("{odd:?} in {head}"),
        };
        let head = match field("date") {
            Some(date) => head.replace(&date, "<now>"),
            None => head,
        };
        Answer { head, body }
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.extend(self.take(1));
            }
            let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
            body.extend(self.take(size));
            assert_eq!(self.take(2), b"\r\n");
            if size == 0 {
                return body;
            }
        }
    }

    /// A request and its answer.
    pub fn ask(&mut self, head: &str, body: &[u8]) -> Answer {
        self.say(&request(head, body));
        self.hear(head.starts_with("HEAD "))
    }
}

impl Answer {
    pub fn code(&self) -> u16 {
        code_of(&self.head)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn code_of(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    let mut fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
    fields.find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then_some(value))
}
