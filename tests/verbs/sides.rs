//! The two sides: a node with memory to read, and connections to it.

use std::sync::Arc;
use std::time::Duration;

use imgcache::index::table::TableGeometry;
use imgcache::node::arena::{Arena, BackingChoice, Layout, Slot, open};
use imgcache::transport::verbs::{
    Buffer, Completion, DEPTH, Domain, Export, Fabric, Lent, LoadQueue, Refused, Region, Remote,
    Scope, ServeQueue, Settings, Status, Transfer,
};

/// The device: that of `scripts/lib/rxe.sh`, or the one that `scripts/rdma-hardware` builds the tests for.
pub const DEVICE: &str = match option_env!("VMM_TEST_RDMA_DEVICE") {
    Some(name) => name,
    None => "rxe0",
};
/// Longer than anything takes that ends at all.
pub const LONG: Duration = Duration::from_secs(60);
/// Bytes of content that a node has.
pub const CONTENT: usize = 8 << 20;

/// A storage node's memory, full of a pattern, and registered.
#[derive(Debug)]
pub struct Node {
    pub domain: Domain,
    pub arena: Arc<Arena>,
    /// All content, for reading.
    pub readable: Arc<Region>,
    /// All content, for windows.
    pub windows: Arc<Region>,
}

pub fn fabric() -> Fabric {
    Fabric::open(DEVICE, None).unwrap()
}

/// The byte at `offset` of every node's content.
pub fn pattern(offset: usize) -> u8 {
    let word = (offset as u64 / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes()[(offset % 8 + 1) % 8] ^ word.to_be_bytes()[0]
}

/// Whether `bytes` is the content at `offset`.
pub fn is_content(bytes: &[u8], offset: usize) -> bool {
    bytes.iter().enumerate().all(|(place, byte)| *byte == pattern(offset + place))
}

impl Node {
    pub fn new() -> Self {
        let table = TableGeometry::with_entries(64).unwrap();
        let layout = Layout::new(table, (CONTENT >> 21) as u64).unwrap();
        let arena = open(layout, BackingChoice::Auto, None).unwrap().arena;
        let content = layout.content;
        let mut all = arena.claim(content, CONTENT, CONTENT).unwrap();
        all.bytes_mut().iter_mut().enumerate().for_each(|(at, byte)| *byte = pattern(at));
        drop(all);
        let domain = fabric().domain().unwrap();
        let export =
            |export| domain.export(arena.memory(), content..content + CONTENT, export).unwrap();
        let (readable, windows) = (export(Export::Readable), export(Export::WindowsOnly));
        Self { domain, arena, readable, windows }
    }

    /// The content at `offset`, by the key for all of it.
    pub fn at(&self, offset: usize) -> Remote {
        let address = self.readable.address() + offset as u64;
        Remote { address, key: self.readable.key().unwrap() }
    }

    /// Part of the content, taken as its owner.
    pub fn slot(&self, offset: usize, length: usize) -> Option<Slot> {
        self.arena.claim(self.arena.layout().content + offset, length, length)
    }

    /// A connection to it.
    pub fn connect<'scope, 'm>(
        &self,
        scope: &'scope Scope<'scope, 'm>,
    ) -> (LoadQueue<'scope, 'm>, ServeQueue<Slot>) {
        connect(&self.domain, scope)
    }
}

/// A connection to a node, in its domain `domain`.
pub fn connect<'scope, 'm>(
    domain: &Domain,
    scope: &'scope Scope<'scope, 'm>,
) -> (LoadQueue<'scope, 'm>, ServeQueue<Slot>) {
    let settings = Settings::for_device(domain.fabric().device());
    let mut client = scope.queue(DEPTH).unwrap();
    let mut server = domain.serve(16).unwrap();
    // As they would come over the wire.
    let (near, far) = (client.endpoint().to_string(), server.endpoint().to_string());
    server.connect(&near.parse().unwrap(), &settings).unwrap();
    client.connect(&far.parse().unwrap(), &settings).unwrap();
    (client, server)
}

/// Registers `memory` in buffers of `size` bytes.
pub fn buffers<'scope, 'm>(
    scope: &'scope Scope<'scope, 'm>,
    memory: &'m mut [u8],
    size: usize,
) -> Vec<Buffer<'scope, 'm>> {
    scope.register(memory.chunks_mut(size).collect()).unwrap()
}

/// Waits for `count` completions, by events.
pub fn all<'scope, 'm>(
    queue: &mut LoadQueue<'scope, 'm>,
    count: usize,
) -> Vec<Completion<Lent<'scope, 'm>>> {
    let mut completions = Vec::new();
    while completions.len() < count {
        let before = completions.len();
        queue.wait(&mut completions, LONG).unwrap();
        assert!(completions.len() > before, "{} of {count} completions came", completions.len());
    }
    completions
}

/// Posts one transfer and waits for it.
pub fn one<'scope, 'm>(
    queue: &mut LoadQueue<'scope, 'm>,
    local: Lent<'scope, 'm>,
    remote: Remote,
) -> (Status, Lent<'scope, 'm>) {
    queue.post(vec![Transfer { id: 7, local, remote }]).map_err(|r: Refused<_>| r.error).unwrap();
    let done = all(queue, 1).remove(0);
    assert_eq!(done.id, 7);
    (done.status, done.item)
}
