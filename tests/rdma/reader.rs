//! A client that speaks the wire protocol by itself, and reads where and what it wants to.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imgcache::index::IndexKey;
use imgcache::index::announce::Announcement;
use imgcache::index::reader::{Bucket, BucketSource, bucket_of};
use imgcache::index::table::BUCKET_BYTES;
use imgcache::transport::verbs::{
    Buffer, DEPTH, Domain, Fabric, Lent, LoadQueue, Remote, Scope, Settings, Status, Transfer,
};

use crate::cache::DEVICE;
use crate::common::node::Node;

/// How long its leases are for.
const TTL: Duration = Duration::from_secs(60);
/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(60);

pub fn domain() -> Domain {
    Fabric::open(DEVICE, None).unwrap().domain().unwrap()
}

/// A connection to a node, by which its memory is read.
pub struct Reader<'s, 'm> {
    control: BufReader<TcpStream>,
    lease: u64,
    /// When the lease was asked for last; none once it was given back.
    renewed: Option<Instant>,
    queue: LoadQueue<'s, 'm>,
    pub announcement: Announcement,
    /// Where the node's memory begins, and the key to it.
    base: Remote,
}

impl<'s, 'm> Reader<'s, 'm> {
    /// Connects, with a lease of what `keys` name.
    pub fn connect(scope: &'s Scope<'s, 'm>, node: &Node, keys: &[IndexKey]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let lease = NEXT.fetch_add(1, Ordering::Relaxed);
        let renewed = Some(Instant::now());
        let mut control = BufReader::new(TcpStream::connect(node.address()).unwrap());
        let line = format!("lease {lease:016x} {} {}\r\n", TTL.as_millis(), keys.len() * 16);
        let mut request = line.into_bytes();
        request.extend(keys.iter().flat_map(|key| key.0));
        request.extend_from_slice(b"\r\n");
        let answer = ask(&mut control, &request);
        assert!(answer.starts_with("LEASE "), "{answer}");
        assert!(answer.contains(&format!(" {} 0 ", keys.len())), "not all are there: {answer}");
        let mut queue = scope.queue(DEPTH).unwrap();
        let request = format!("rdma {lease:016x} {}\r\n", queue.endpoint());
        let answer = ask(&mut control, request.as_bytes());
        let words: Vec<&str> = answer.split(' ').collect();
        assert!(words.len() == 15 && words[0] == "RDMA", "{answer}");
        let announcement = words[1..7].join(" ").parse().unwrap();
        let base = Remote { address: words[7].parse().unwrap(), key: words[8].parse().unwrap() };
        let settings = Settings::for_device(queue.domain().fabric().device());
        queue.connect(&words[9..].join(" ").parse().unwrap(), &settings).unwrap();
        Self { control, lease, renewed, queue, announcement, base }
    }

    /// From here on it has another key than it was given.
    pub fn forge_key(&mut self) {
        self.base.key ^= 0x100;
    }

    /// Gives the lease back.
    pub fn release(&mut self) {
        self.renewed = None;
        let request = format!("release {:016x} 0\r\n", self.lease);
        assert_eq!(ask(&mut self.control, request.as_bytes()), "RELEASED");
    }

    /// READs, all under way at a time: into each buffer what is at its offset of the node's memory.
    pub fn read(&mut self, reads: Vec<(Buffer<'s, 'm>, u64)>) -> Vec<(Status, Buffer<'s, 'm>)> {
        if self.renewed.is_some_and(|renewed| renewed.elapsed() > TTL / 4) {
            self.renewed = Some(Instant::now());
            let request = format!("lease {:016x} {} 0\r\n\r\n", self.lease, TTL.as_millis());
            let answer = ask(&mut self.control, request.as_bytes());
            assert!(answer.starts_with("LEASE "), "{answer}");
        }
        let count = reads.len();
        let transfer = |(id, (buffer, offset)): (u64, (Buffer<'s, 'm>, u64))| {
            let remote = Remote { address: self.base.address + offset, key: self.base.key };
            Transfer { id, local: Lent::Buffer(buffer), remote }
        };
        let transfers = (0..).zip(reads).map(transfer).collect();
        self.queue.post(transfers).map_err(|refused| refused.error).unwrap();
        let mut done = Vec::new();
        while done.len() < count {
            if self.queue.poll(&mut done).unwrap() == 0 {
                let before = done.len();
                self.queue.wait(&mut done, LONG).unwrap();
                assert!(done.len() > before, "{} of {count} READs have completed", done.len());
            }
        }
        done.sort_by_key(|done| done.id);
        done.into_iter().map(|done| (done.status, done.item.into_buffer().unwrap())).collect()
    }

    /// One READ.
    pub fn read_one(&mut self, buffer: Buffer<'s, 'm>, offset: u64) -> (Status, Buffer<'s, 'm>) {
        self.read(vec![(buffer, offset)]).remove(0)
    }
}

/// Sends `request`; one line of answer.
fn ask(control: &mut BufReader<TcpStream>, request: &[u8]) -> String {
    control.get_mut().write_all(request).unwrap();
    let mut line = String::new();
    control.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Buckets of a node's index, each time as they are then.
pub struct Buckets<'r, 's, 'm> {
    pub reader: &'r mut Reader<'s, 'm>,
    pub memory: Option<[Buffer<'s, 'm>; 2]>,
}

impl BucketSource for Buckets<'_, '_, '_> {
    type Error = Status;

    fn read(&mut self, buckets: [u64; 2], out: &mut [Bucket; 2]) -> Result<(), Status> {
        let index = self.reader.announcement.index;
        let offsets = buckets.map(|number| index + number * BUCKET_BYTES as u64);
        let memory = self.memory.take().unwrap();
        let mut read = self.reader.read(memory.into_iter().zip(offsets).collect()).into_iter();
        let [first, second] = [read.next().unwrap(), read.next().unwrap()];
        let mut result = Ok(());
        for ((status, bytes), bucket) in [&first, &second].into_iter().zip(out) {
            *bucket = bucket_of(bytes.first_chunk().unwrap());
            if !status.is_success() {
                result = Err(*status);
            }
        }
        self.memory = Some([first.1, second.1]);
        result
    }
}
