//! A client that pushes by hand: to do what ours does not.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use imgcache::key::ChunkKey;
use imgcache::protocol::push_record;
use imgcache::transport::verbs::{
    DEPTH, Fabric, Lent, LoadQueue, Remote, Settings, Source, Status, Transfer,
};

use crate::cache::DEVICE;
use crate::common::node::Node;

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(60);

/// A push that is open.
pub struct Opened {
    stream: BufReader<TcpStream>,
    pub id: String,
    /// The node's queue.
    endpoint: String,
    /// What the node said of each chunk.
    pub answers: Vec<String>,
}

impl Opened {
    /// A connection, without any yet.
    fn control(node: &Node) -> Self {
        let stream = TcpStream::connect(node.address()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let (id, endpoint) = (String::new(), String::new());
        Self { stream: BufReader::new(stream), id, endpoint, answers: Vec::new() }
    }

    /// Begins one.
    pub fn begin(
        node: &Node,
        endpoint: &str,
        chunks: &[(ChunkKey, usize)],
    ) -> Result<Self, String> {
        let mut opened = Self::control(node);
        let list: Vec<u8> = chunks
            .iter()
            .flat_map(|(key, length)| push_record(key, u32::try_from(*length).unwrap()))
            .collect();
        let mut request = format!("push {} {endpoint}\r\n", list.len()).into_bytes();
        request.extend(list);
        request.extend(b"\r\n");
        let reply = opened.ask(&request);
        let Some(rest) = reply.strip_prefix("PUSH ") else { return Err(reply) };
        let words: Vec<&str> = rest.splitn(4, ' ').collect();
        assert_eq!(words[1], chunks.len().to_string());
        (opened.id, opened.endpoint) = (words[0].to_owned(), words[3].to_owned());
        opened.answers = (0..chunks.len()).map(|_| opened.line()).collect();
        Ok(opened)
    }

    /// Begins one that is never written to: nobody is at the other end of its queue.
    pub fn hold(node: &Node, chunks: &[(ChunkKey, usize)]) -> Result<Self, String> {
        let stats = node.stats("rdma");
        let gid = &stats.iter().find(|(name, _)| name == "gid").unwrap().1;
        let endpoint = format!("gid={gid} lid=0 qpn=16777200 psn=1 mtu=1024 reads=1");
        Self::begin(node, &endpoint, chunks)
    }

    pub fn ask(&mut self, request: &[u8]) -> String {
        self.stream.get_mut().write_all(request).unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Ends it, with so many slots written: the node's answer, with a line for each of them.
    pub fn end(&mut self, written: usize) -> Vec<String> {
        let request = format!("pushed {} {written}\r\n", self.id);
        let first = self.ask(request.as_bytes());
        let count = first.strip_prefix("PUSHED ").map_or(0, |count| count.parse().unwrap());
        let lines: Vec<String> = (0..count).map(|_| self.line()).collect();
        std::iter::once(first).chain(lines).collect()
    }

    /// Where chunk `at` goes.
    pub fn slot(&self, at: usize) -> Remote {
        let words: Vec<&str> = self.answers[at].split(' ').collect();
        assert_eq!(words[0], "SLOT", "{:?}", self.answers);
        Remote { address: words[1].parse().unwrap(), key: words[2].parse().unwrap() }
    }
}

/// A push, and the queue to write through.
pub struct Writer<'scope, 'm> {
    pub push: Opened,
    pub pen: Pen<'scope, 'm>,
}

/// A queue, and what can be written through it.
pub struct Pen<'scope, 'm> {
    queue: LoadQueue<'scope, 'm>,
    sources: Vec<Source<'scope, 'm>>,
}

impl Pen<'_, '_> {
    /// Writes content number `source` to `remote`.
    pub fn write(&mut self, source: usize, remote: Remote) -> Status {
        let local = Lent::Source(self.sources[source]);
        self.queue.post(vec![Transfer { id: 1, local, remote }]).unwrap();
        let mut completions = Vec::new();
        assert_eq!(self.queue.wait(&mut completions, LONG).unwrap(), 1);
        completions[0].status
    }
}

/// Begins a push of chunks with these keys, to be written from these contents, and does `work` with it.
pub fn push<R>(
    node: &Node,
    keys: &[ChunkKey],
    contents: &[&[u8]],
    work: impl FnOnce(&mut Writer<'_, '_>) -> R,
) -> R {
    let fabric = Fabric::open(DEVICE, None).unwrap();
    let domain = fabric.domain().unwrap();
    // One piece of memory, as it is registered.
    let memory = contents.concat();
    let mut rest = &memory[..];
    let parts: Vec<&[u8]> =
        contents.iter().map(|content| rest.split_off(..content.len()).unwrap()).collect();
    domain.scope(|scope| {
        let mut queue = scope.queue(DEPTH).unwrap();
        let chunks: Vec<_> =
            keys.iter().zip(&parts).map(|(key, part)| (*key, part.len())).collect();
        let push = Opened::begin(node, &queue.endpoint().to_string(), &chunks).unwrap();
        if push.endpoint != "-" {
            let settings = Settings::for_device(fabric.device());
            queue.connect(&push.endpoint.parse().unwrap(), &settings).unwrap();
        }
        let sources = scope.register_sources(&parts).unwrap();
        work(&mut Writer { push, pen: Pen { queue, sources } })
    })
}

/// Has `content` written to the first byte of the node's memory by a client that may read it.
pub fn write_as_reader(node: &Node, content: &[u8]) -> Status {
    let fabric = Fabric::open(DEVICE, None).unwrap();
    let domain = fabric.domain().unwrap();
    let mut control = Opened::control(node);
    domain.scope(|scope| {
        let mut queue = scope.queue(DEPTH).unwrap();
        assert!(control.ask(b"lease 00000000000000aa 5000 0\r\n\r\n").starts_with("LEASE "));
        let own = queue.endpoint();
        let reply = control.ask(format!("rdma 00000000000000aa {own}\r\n").as_bytes());
        let words: Vec<&str> = reply.splitn(10, ' ').collect();
        assert_eq!(words[0], "RDMA", "{reply}");
        let remote = Remote { address: words[7].parse().unwrap(), key: words[8].parse().unwrap() };
        let settings = Settings::for_device(fabric.device());
        queue.connect(&words[9].parse().unwrap(), &settings).unwrap();
        let sources = scope.register_sources(&[content]).unwrap();
        Pen { queue, sources }.write(0, remote)
    })
}
