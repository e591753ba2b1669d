//! The pool of images.

use std::collections::BTreeSet;
use std::fs;

use crate::common::agent::Agent;
use crate::common::stderr;

/// Inodes of the pool's files that a VM has mapped.
fn mapped(agent: &Agent, vm: &str) -> BTreeSet<String> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", agent.vm_pid(vm).as_raw_pid()));
    let maps = maps.unwrap();
    // Address, access, offset, device, inode, path: the pool's is mapped to be written privately.
    let lines = maps.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let private = lines.filter(|words| words.len() > 5 && words[1] == "rw-p" && words[4] != "0");
    private
        .filter(|words| !words[5].contains("/vmm") && !words[5].contains(".so"))
        .map(|words| words[4].to_owned())
        .collect()
}

#[test]
fn tenants_share_no_page_and_vms_of_one_share_all() {
    let Some(agent) = Agent::start(&[]) else { return };
    for tenant in ["acme", "umbrella"] {
        let words = ["fleet", "boot", "--hold", "--memory", "64M", "--image", "small"];
        let more = ["--count", "2", "--name", tenant, "--tenant", tenant];
        agent.expect(0, &[&words[..], &more].concat());
    }
    assert_eq!((agent.pool("images"), agent.pool("misses")), (2, 2));
    let [one, other] = ["acme-1", "umbrella-1"].map(|vm| mapped(&agent, vm));
    assert_eq!((one.len(), other.len()), (1, 1), "{one:?} {other:?}");
    assert_ne!(one, other);
    assert_eq!(one, mapped(&agent, "acme-2"));
}

#[test]
fn what_nobody_uses_is_given_up_for_another_and_what_is_used_or_pinned_is_not() {
    let Some(agent) = Agent::start(&["--pool", "64M"]) else { return };
    // Different enough that its manifest is another; both do not fit.
    let (kernel, initrd) =
        ["vmlinuz", "initrd-small.cpio.gz"].map(crate::common::guest_file).into();
    let words = ["image", "push", "other", "--cmdline", "quiet", "--kernel"];
    let files = [kernel.to_str().unwrap(), "--initrd", initrd.to_str().unwrap()];
    agent.expect(0, &[&words[..], &files].concat());

    agent.fleet("web", "small", 1);
    let refused = agent.expect(5, &["node", "pull", "other"]);
    assert!(stderr(&refused).contains("--pool"), "{}", stderr(&refused));
    assert!(stderr(&agent.expect(1, &["node", "drop", "small"])).contains("1 VM"));
    agent.expect(0, &["rm", "--force", "web-1"]);
    agent.expect(0, &["node", "pull", "other", "--pin"]);
    assert_eq!((agent.pool("images"), agent.pool("evictions")), (1, 1));
    agent.expect(5, &["node", "pull", "small"]);
    agent.expect(0, &["node", "unpin", "other"]);
    agent.expect(0, &["node", "pull", "small"]);
    agent.expect(0, &["node", "drop", "small"]);
    assert_eq!((agent.pool("images"), agent.pool("bytes")), (0, 0));
}
