//! Tests of the membership file: its rules, its replacement, and what a reader sees of it.

use super::*;

fn member(name: &str, port: u16) -> Member {
    Member {
        name: name.into(),
        address: NodeAddress::Tcp { host: "h".into(), port },
        weight: 1,
        state: MemberState::Active,
    }
}

fn members(epoch: u64, nodes: Vec<Member>) -> Members {
    Members { version: VERSION, epoch, replicas: 2, tls: false, nodes, previous: None }
}

#[test]
fn every_rule_names_what_breaks_it() {
    let good = || members(3, vec![member("a", 1), member("b", 2)]);
    good().check().unwrap();
    let refused = |change: fn(&mut Members), words: &str| {
        let mut bad = good();
        change(&mut bad);
        let error = bad.check().unwrap_err();
        assert!(error.contains(words), "{error}");
    };
    refused(|m| m.version = 2, "version 2");
    refused(|m| m.epoch = 0, "epoch 0");
    refused(|m| m.replicas = 0, "0 replicas");
    refused(|m| m.replicas = 5, "5 replicas");
    refused(|m| m.nodes.clear(), "0 nodes");
    refused(|m| m.nodes[1].name = "a".into(), "nodes[1] ('a'): another node has this name");
    refused(|m| m.nodes[1].name = "a b".into(), "nodes[1] ('a b')");
    refused(|m| m.nodes[1].address = m.nodes[0].address.clone(), "has the address h:1");
    refused(|m| m.nodes[0].weight = 0, "nodes[0] ('a'): weight 0");
    refused(|m| m.nodes.iter_mut().for_each(|n| n.state = MemberState::Draining), "no node is");
    let unix = |m: &mut Members| {
        m.tls = true;
        m.nodes[0].address = NodeAddress::Unix("/s".into());
    };
    refused(unix, "not spoken to by TLS");
    let previous = |m: &mut Members, epoch, nodes| {
        m.previous = Some(Previous { epoch, replicas: 2, nodes });
    };
    let mut bad = good();
    previous(&mut bad, 3, vec![member("a", 1)]);
    assert!(bad.check().unwrap_err().contains("not before 3"));
    previous(&mut bad, 2, vec![member("a", 9)]);
    assert!(bad.check().unwrap_err().contains("node 'a' is at h:1 and, in previous, at h:9"));
    previous(&mut bad, 2, Vec::new());
    assert!(bad.check().unwrap_err().contains("previous.nodes: 0 nodes"));
}

#[test]
fn a_draining_node_is_given_nothing_and_read_by_way_of_previous() {
    let mut now = members(2, vec![member("a", 1), member("b", 2)]);
    now.nodes[0].state = MemberState::Draining;
    now.previous =
        Some(Previous { epoch: 1, replicas: 1, nodes: vec![member("a", 1), member("c", 3)] });
    now.check().unwrap();
    let names: Vec<_> = now.all().iter().map(|node| node.name.clone()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let before = now.previous_placement().unwrap();
    for number in 0..50_u32 {
        let key = crate::index::IndexKey::of(&number.to_le_bytes());
        assert_eq!(now.placement().replicas_of(&key).as_slice(), [1]);
        assert!(matches!(before.replicas_of(&key).as_slice(), [0 | 2]));
    }
}

#[test]
fn what_is_written_is_read_and_only_replaced_by_later_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("members.json");
    let first = members(5, vec![member("a", 1)]);
    first.write(&path).unwrap();
    assert_eq!(Members::read(&path).unwrap(), first);
    for epoch in [4, 5] {
        let error = members(epoch, vec![member("b", 1)]).write(&path).unwrap_err();
        assert!(matches!(error, MembersError::Outdated { found: 5, .. }), "{error}");
    }
    members(6, vec![member("b", 1)]).write(&path).unwrap();
    assert_eq!(Members::read(&path).unwrap().nodes[0].name, "b");
    fs::write(&path, "{").unwrap();
    assert!(members(7, vec![member("b", 1)]).write(&path).is_err(), "it is not known what it was");
}

#[test]
fn a_file_by_hand_needs_little_and_may_have_nothing_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("members.json");
    fs::write(&path, r#"{"version":1,"epoch":1,"nodes":[{"name":"a","address":"h"}]}"#).unwrap();
    let read = Members::read(&path).unwrap();
    assert_eq!((read.replicas, read.nodes[0].weight, read.tls), (2, 1, false));
    for text in [
        "",
        r#"{"version":1,"epoch":1,"nodes":[{"name":"a","address":"h","wait":3}]}"#,
        r#"{"version":1,"epoch":1,"nodes":[{"name":"a","address":"h:x"}]}"#,
    ] {
        fs::write(&path, text).unwrap();
        let error = Members::read(&path).unwrap_err().to_string();
        assert!(error.contains("members.json"), "{error}");
    }
    File::create(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
    assert!(Members::read(&path).unwrap_err().to_string().contains("at most"));
}

#[test]
fn a_reader_follows_the_file_but_not_backwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("members.json");
    let replace = |epoch| {
        let _ = fs::remove_file(&path);
        members(epoch, vec![member("a", 1)]).write(&path).unwrap();
    };
    assert!(MembersFile::open(&path).is_err());
    replace(2);
    let file = MembersFile::open(&path).unwrap();
    let epoch = || file.current().epoch;
    assert_eq!(epoch(), 2);
    replace(3);
    assert_eq!(epoch(), 3);
    replace(1);
    assert_eq!(epoch(), 3);
    fs::write(&path, "nonsense").unwrap();
    assert_eq!(epoch(), 3);
    fs::remove_file(&path).unwrap();
    assert_eq!(epoch(), 3);
    replace(4);
    assert_eq!(epoch(), 4);
}
