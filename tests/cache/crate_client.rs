//! The crate `memcache`, both of its clients.

use std::time::Duration;

use memcache::exp::{Memcache, Ttl};

use super::node::Node;

#[test]
fn the_classic_client_finds_its_way() {
    let node = Node::start();
    let url = format!("memcache://{}?protocol=ascii&timeout=30", node.address());
    let client = memcache::connect(url).unwrap();
    assert!(client.version().unwrap()[0].1.starts_with("1.6.18"));
    client.set("a", "text", 0).unwrap();
    client.set("n", 40, 0).unwrap();
    assert_eq!(client.get::<String>("a").unwrap().as_deref(), Some("text"));
    assert_eq!(client.increment("n", 2).unwrap(), 42);
    assert_eq!(client.decrement("n", 1).unwrap(), 41);
    client.append("a", "!").unwrap();
    client.prepend("a", "?").unwrap();
    let found = client.gets::<(Vec<u8>, u32, Option<u64>)>(&["a", "b"]).unwrap();
    let (value, _, cas) = &found["a"];
    assert_eq!((value.as_slice(), found.len()), (&b"?text!"[..], 1));
    assert!(client.cas("a", "new", 0, cas.unwrap()).unwrap());
    assert!(!client.cas("a", "newer", 0, cas.unwrap()).unwrap());
    // It does not tell whether it was stored.
    let _ = client.add("a", "x", 0);
    assert_eq!(client.get::<String>("a").unwrap().as_deref(), Some("new"));
    client.replace("a", "y", 0).unwrap();
    assert!(client.touch("a", 100).unwrap());
    assert!(client.delete("a").unwrap());
    assert!(!client.delete("a").unwrap());
    let large = vec![7_u8; 1 << 20];
    client.set("large", large.as_slice(), 0).unwrap();
    assert_eq!(client.get::<Vec<u8>>("large").unwrap(), Some(large));
    client.flush().unwrap();
    assert_eq!(client.get::<String>("n").unwrap(), None);
}

#[test]
fn the_meta_client_finds_its_way() {
    let node = Node::start();
    let cache = Memcache::connect([node.address().to_string()]).unwrap();
    cache.set("a", "text", Ttl::secs(600)).unwrap();
    assert_eq!(cache.get::<String>("a").unwrap().as_deref(), Some("text"));
    assert!(!cache.add("a", "x", Ttl::secs(60)).unwrap());
    assert!(cache.replace("a", "y", Ttl::secs(60)).unwrap());
    assert_eq!(cache.incr("n", 5, Ttl::secs(60)).unwrap(), 5);
    assert_eq!(cache.incr("n", 3, Ttl::secs(60)).unwrap(), 8);
    let info = cache.inspect("a").unwrap().unwrap();
    assert_eq!(info.size, 1);
    assert!(info.ttl.unwrap() <= Duration::from_secs(60));
    let pairs = (0..100).map(|number| (format!("k{number}"), format!("v{number}")));
    cache.set_many(pairs, Ttl::secs(60)).unwrap();
    let keys: Vec<String> = (0..101).map(|number| format!("k{number}")).collect();
    assert_eq!(cache.get_many::<String, _>(keys).unwrap().len(), 100);
    let sum = cache
        .update("sum", Ttl::secs(60), |current: Option<u64>| current.unwrap_or(0) + 1)
        .unwrap();
    assert_eq!(sum, 1);
    let made: Result<String, std::io::Error> = Ok("made".to_owned());
    let fetched: String = cache.fetch("made", Ttl::secs(60), || made).unwrap();
    assert_eq!(fetched, "made");
    cache.delete("a").unwrap();
    assert_eq!(cache.get::<String>("a").unwrap(), None);
    cache.meta().noop().unwrap();
    assert!(cache.meta().debug("k1").unwrap().is_some());
}
