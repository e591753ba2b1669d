//! Membership files: weights, nodes that drain, and a move under way.

use imgcache::cluster::members::{Member, MemberState, Members, Previous, VERSION};

use crate::servers::Memcached;
use crate::support::{Fixture, cluster};

fn member(name: &str, server: &Memcached) -> Member {
    let address = server.address.parse().unwrap();
    Member { name: name.into(), address, weight: 1, state: MemberState::Active }
}

#[test]
fn while_items_move_they_are_read_where_they_were() {
    let fixture = Fixture::new(6 << 20, 64 << 10);
    let servers = Memcached::start_all(3);
    let path = fixture.folder.path().join("members.json");
    let url = format!("members:{}", path.display());
    let old: Vec<Member> = vec![member("a", &servers[0]), member("b", &servers[1])];
    let mut members = Members {
        version: VERSION,
        epoch: 1,
        replicas: 1,
        tls: false,
        nodes: old.clone(),
        previous: None,
    };
    members.write(&path).unwrap();
    let running = cluster(&url);
    fixture.publish(&running).unwrap();
    let report = fixture.check(running.clone());
    assert_eq!((report.epoch, report.retries), (1, 0));

    // A node is added and one drains: a running client follows, and finds everything.
    members.epoch = 2;
    members.nodes.push(member("c", &servers[2]));
    members.nodes[0].state = MemberState::Draining;
    members.previous = Some(Previous { epoch: 1, replicas: 1, nodes: old });
    members.write(&path).unwrap();
    let report = fixture.check(running.clone());
    assert!(report.epoch == 2 && report.misses > 0, "{report:?}");
    let supplied: Vec<&str> = report.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(supplied, ["a", "b"], "c has nothing yet: {report:?}");

    // Published again it is where it belongs, and the node that drains is not asked.
    fixture.publish(&running).unwrap();
    members.epoch = 3;
    members.previous = None;
    members.write(&path).unwrap();
    let report = fixture.check(running);
    assert_eq!((report.epoch, report.retries), (3, 0), "{report:?}");
    assert!(report.nodes.iter().all(|node| node.name != "a"), "{report:?}");
}
