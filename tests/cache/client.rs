//! The other end of a connection: sends bytes as they are, and looks at what comes back.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::node::PATIENCE;

#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    received: Vec<u8>,
}

impl Client<TcpStream> {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::new(stream)
    }

    /// Sends nothing any more.
    pub fn finish(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
}

impl Client<UnixStream> {
    pub fn connect_unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::new(stream)
    }
}

impl<S: Read + Write> Client<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, received: Vec::new() }
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends what the other side takes of `bytes` before it closes.
    pub fn send_to_the_end(&mut self, bytes: impl AsRef<[u8]>) {
        let closed = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        if let Err(error) = self.stream.write_all(bytes.as_ref()) {
            assert!(closed.contains(&error.kind()), "{error}");
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut buffer = vec![0; 64 << 10];
        let length = self.stream.read(&mut buffer)?;
        self.received.extend_from_slice(&buffer[..length]);
        Ok(length)
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length {
            let missing = length - self.received.len();
            assert_ne!(self.receive().unwrap(), 0, "closed with {missing} bytes missing");
        }
        self.received.drain(..length).collect()
    }

    /// The next `length` bytes, or what comes before the end.
    pub fn up_to(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length && self.receive().is_ok_and(|length| length > 0) {}
        let length = length.min(self.received.len());
        self.received.drain(..length).collect()
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> String {
        let end = loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                break end;
            }
            let so_far = String::from_utf8_lossy(&self.received).into_owned();
            assert_ne!(self.receive().unwrap(), 0, "closed after {so_far:?}");
        };
        let line = self.bytes(end + 2);
        String::from_utf8_lossy(&line[..end]).into_owned()
    }

    /// Sends a request, and returns all that is answered to it.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> String {
        String::from_utf8_lossy(&self.ask_bytes(request)).into_owned()
    }

    /// The same as bytes: the answer ends where that to a `mn` begins.
    pub fn ask_bytes(&mut self, request: impl AsRef<[u8]>) -> Vec<u8> {
        const SENTINEL: &[u8] = b"MN\r\n";
        let mut bytes = request.as_ref().to_vec();
        bytes.extend_from_slice(b"mn\r\n");
        self.send(bytes);
        while !self.received.ends_with(SENTINEL) {
            let so_far = String::from_utf8_lossy(&self.received).into_owned();
            assert_ne!(self.receive().unwrap(), 0, "closed after {so_far:?}");
        }
        let mut answer = std::mem::take(&mut self.received);
        answer.truncate(answer.len() - SENTINEL.len());
        answer
    }

    /// Sends a request that must be answered so.
    #[track_caller]
    pub fn expect(&mut self, request: impl AsRef<[u8]>, answer: &str) {
        let request = request.as_ref();
        let answered = self.ask(request);
        assert_eq!(answered, answer, "to {:?}", String::from_utf8_lossy(request));
    }

    /// All that comes until the other side closes.
    pub fn rest(mut self) -> Vec<u8> {
        loop {
            match self.receive() {
                Ok(0) => return self.received,
                Ok(_) => {}
                // Closed with something that was sent unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return self.received;
                }
                Err(error) => panic!("not closed: {error}"),
            }
        }
    }
}
