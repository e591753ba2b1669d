//! `stats` in memcached's names and formats.

use std::collections::BTreeMap;

use super::node::{Memcached, Node};

fn stats(text: &str) -> BTreeMap<String, String> {
    let text = text.strip_suffix("END\r\n").unwrap();
    text.lines()
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            assert_eq!(words.next(), Some("STAT"), "{line}");
            let (name, value) = (words.next().unwrap(), words.next().unwrap());
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

#[test]
fn general_statistics_have_memcacheds_names_and_count_the_same() {
    let (node, memcached) = (Node::start(), Memcached::start());
    let (mut ours, mut theirs) = (node.connect(), memcached.connect());
    let script = "set a 0 0 1\r\n1\r\nget a b\r\nincr a 1\r\nincr b 1\r\ndecr a 1\r\ndecr b 1\r\n\
                  touch a 0\r\ntouch b 0\r\ndelete a\r\ndelete b\r\ncas c 0 0 1 5\r\nx\r\n\
                  set d 0 -1 1\r\nx\r\nget d\r\nflush_all\r\nadd e 0 0 1\r\nx\r\n\
                  cas e 0 0 1 999999\r\nx\r\n";
    assert_eq!(ours.ask(script), theirs.ask(script));
    let (ours, theirs) = (stats(&ours.ask("stats\r\n")), stats(&theirs.ask("stats\r\n")));
    for name in [
        "cmd_set",
        "cmd_flush",
        "get_hits",
        "get_misses",
        "delete_misses",
        "delete_hits",
        "incr_misses",
        "incr_hits",
        "decr_misses",
        "decr_hits",
        "cas_misses",
        "cas_hits",
        "cas_badval",
        "touch_hits",
        "touch_misses",
        "cmd_touch",
        "store_too_large",
        "curr_items",
        "curr_connections",
        "pointer_size",
        "accepting_conns",
        "hash_is_expanding",
    ] {
        assert_eq!(ours.get(name), theirs.get(name), "{name}");
    }
    for name in [
        "pid",
        "uptime",
        "time",
        "version",
        "rusage_user",
        "rusage_system",
        "bytes",
        "total_items",
        "limit_maxbytes",
        "threads",
        "evictions",
        "reclaimed",
        "bytes_read",
        "bytes_written",
        "total_connections",
        "max_connections",
        "conn_yields",
        "hash_power_level",
        "hash_bytes",
        "expired_unfetched",
        "evicted_unfetched",
        "slabs_moved",
        "cmd_get",
        "cmd_meta",
    ] {
        assert!(ours.contains_key(name) && theirs.contains_key(name), "{name}");
    }
}

#[test]
fn items_and_slabs_go_by_class() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("stats items\r\n", "END\r\n");
    client.expect("set a 0 0 1000\r\n".to_owned() + &"x".repeat(1000) + "\r\n", "STORED\r\n");
    let items = stats(&client.ask("stats items\r\n"));
    let name = items.keys().find(|name| name.ends_with(":number")).unwrap();
    let class = name.split(':').nth(1).unwrap();
    assert_eq!(items[name], "1");
    assert_eq!(items[&format!("items:{class}:mem_requested")], "1000");
    let slabs = stats(&client.ask("stats slabs\r\n"));
    assert_eq!(slabs[&format!("{class}:used_chunks")], "1");
    let size: u64 = slabs[&format!("{class}:chunk_size")].parse().unwrap();
    assert!(size >= 1000);
    assert_eq!(slabs["active_slabs"], "1");
    client.expect("stats sizes\r\n", "STAT sizes_status disabled\r\nEND\r\n");
    client.expect("stats nonsense\r\n", "ERROR\r\n");
    client.expect("stats cachedump 1 1\r\n", "CLIENT_ERROR stats cachedump not allowed\r\n");
}

#[test]
fn settings_and_connections_are_told() {
    let node = Node::start_with(&["--max-connections", "77", "--node-name", "here"]);
    let mut client = node.connect();
    let settings = stats(&client.ask("stats settings\r\n"));
    assert_eq!(settings["maxconns"], "77");
    assert_eq!(settings["item_size_max"], "1048576");
    assert_eq!(settings["tcpport"], node.address().port().to_string());
    let connections = stats(&client.ask("stats conns\r\n"));
    let addr = connections.iter().find(|(name, _)| name.ends_with(":addr")).unwrap().1;
    assert_eq!(*addr, format!("tcp:{}", client.stream().local_addr().unwrap()));
    assert!(
        connections
            .iter()
            .any(|(name, value)| name.ends_with(":state") && value == "conn_parse_cmd")
    );
    let placement = stats(&client.ask("stats placement\r\n"));
    assert_eq!((placement["node_name"].as_str(), placement["draining"].as_str()), ("here", "0"));
    assert_eq!(placement["boot_id"].len(), 16);
}

#[test]
fn many_connections_and_leases_are_told_too() {
    let node = Node::start();
    let mut clients: Vec<_> = (0..200_u64)
        .map(|number| {
            let mut client = node.connect();
            client.send(format!("lease {number:016x} 60000 0\r\n\r\n"));
            assert!(client.line().starts_with("LEASE "));
            client
        })
        .collect();
    let client = &mut clients[0];
    client.send("stats conns\r\nstats leases\r\nmn\r\n");
    let mut told = [0; 2];
    for told in &mut told {
        let ends = [":state", ":items"];
        loop {
            let line = client.line();
            if line == "END" {
                break;
            }
            let name = line.split(' ').nth(1).unwrap();
            *told += usize::from(ends.iter().any(|end| name.ends_with(end)));
        }
    }
    assert_eq!((told, client.line().as_str()), ([200, 200], "MN"));
}

#[test]
fn reset_begins_anew() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set a 0 0 1\r\nx\r\nget a\r\n", "STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n");
    client.expect("stats reset\r\n", "RESET\r\n");
    let after = stats(&client.ask("stats\r\n"));
    assert_eq!((after["get_hits"].as_str(), after["cmd_set"].as_str()), ("0", "0"));
    assert_eq!(after["curr_items"], "1");
}

#[test]
fn images_are_listed_with_what_is_here_of_them() {
    let node = Node::start();
    let mut client = node.connect();
    let manifest = "ab".repeat(32);
    let record = format!("vmm-name 1\nname debian:12\nmanifest {manifest}\nrevision 5\n");
    let flags = 0x766d_6303;
    client.expect(
        format!("set n/debian:12 {flags} 0 {}\r\n{record}\r\n", record.len()),
        "STORED\r\n",
    );
    // Somebody's own item with the same flags is none.
    client.expect(format!("set n/other {flags} 0 1\r\nx\r\n"), "STORED\r\n");
    let images = stats(&client.ask("stats image\r\n"));
    assert_eq!(images["debian:12:manifest"], manifest);
    assert_eq!(images["debian:12:revision"], "5");
    assert_eq!(images["debian:12:manifest_held"], "0");
    assert_eq!(images.len(), 3, "{images:?}");
}
