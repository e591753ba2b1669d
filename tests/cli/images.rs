//! The life of images in a store: pushed, listed, inspected, verified, removed, collected.

use crate::common::{Bench, guest_file, stdout};
use crate::support::{
    content, files, length, manifest_id, number, push, push_arguments, ramdisk, ready,
};

/// Bytes of a chunk unless told otherwise.
const CHUNK: u64 = 256 << 10;

#[test]
fn a_pushed_image_is_listed_inspected_and_verified() {
    let bench = Bench::new();
    let initrd = guest_file("initrd-small.cpio.gz");
    let pushed = push(&bench, "team/guest:1", &initrd);
    assert_eq!(pushed["name"], "team/guest:1");
    let bytes = |kind: &str| number(&pushed[format!("bytes_{kind}")]);
    let chunks = |kind: &str| number(&pushed[format!("chunks_{kind}")]);
    assert_eq!(bytes("total"), bytes("new") + bytes("shared") + bytes("zero"));
    assert_eq!(chunks("total"), chunks("new") + chunks("shared") + chunks("zero"));
    // The kernel is stored unpacked.
    let packed = guest_file("vmlinuz").metadata().unwrap().len();
    assert!(bytes("total") > 2 * packed, "{pushed}");

    let listed = bench.json(&["image", "ls", "--json"]);
    assert_eq!((length(&listed["images"]), length(&listed["unreadable"])), (1, 0));
    let image = &listed["images"][0];
    assert_eq!(
        (&image["name"], &image["id"], &image["bytes"]),
        (&pushed["name"], &pushed["id"], &pushed["bytes_total"])
    );
    assert!(number(&image["initrd_bytes"]) > initrd.metadata().unwrap().len(), "{image}");
    let release = std::fs::read_to_string(guest_file("kernel.version")).unwrap();
    assert!(image["kernel_version"].as_str().unwrap().contains(release.trim()), "{image}");
    let table = stdout(&bench.expect(0, &["image", "ls"]));
    assert!(table.lines().nth(1).unwrap().starts_with("team/guest:1 "), "{table}");

    let inspected = bench.json(&["image", "inspect", "team/guest:1", "--json"]);
    assert_eq!((&inspected["id"], &inspected["bytes"]), (&image["id"], &image["bytes"]));
    assert_eq!(inspected["sealed"], true);
    assert_eq!(number(&inspected["bytes_stored"]), bytes("new"));
    assert_eq!(length(&inspected["packs"]), 1);
    let manifest = &inspected["manifest"];
    assert_eq!(pushed["notes"], manifest["notes"]);
    assert_eq!(manifest["cmdline"], "console=ttyS0 quiet");
    assert_eq!(number(&manifest["chunk_size"]), CHUNK);
    assert!(manifest["kernel"]["entries"]["linux64"].is_u64(), "{manifest}");
    assert!(manifest["kernel"]["entries"]["pvh32"].is_u64(), "{manifest}");
    let text = stdout(&bench.expect(0, &["image", "inspect", "team/guest:1"]));
    assert!(text.contains(image["id"].as_str().unwrap()) && text.contains(release.trim()));

    let verified = bench.json(&["image", "verify", "--json"]);
    assert_eq!(number(&verified["images"]), 1);
    assert_eq!((number(&verified["chunks"]), length(&verified["damage"])), (chunks("new"), 0));
    assert_eq!(number(&verified["bytes"]), bytes("new"));
}

#[test]
fn what_was_pushed_before_is_not_stored_again() {
    let bench = Bench::new();
    let initrd = guest_file("initrd-small.cpio.gz");
    let first = push(&bench, "guest", &initrd);
    assert!(number(&first["bytes_new"]) > 0);
    let packs = files(&bench, "packs");
    for name in ["guest", "other"] {
        let again = push(&bench, name, &initrd);
        assert_eq!((&again["id"], number(&again["chunks_new"])), (&first["id"], 0));
    }
    assert_eq!(files(&bench, "packs"), packs);

    // The kernel inside the bzImage is the same as the ELF file.
    let elf = bench.json(&push_arguments("elf", &guest_file("vmlinux"), &initrd));
    assert_ne!(elf["id"], first["id"]);
    assert_eq!((number(&elf["bytes_new"]), &elf["bytes_total"]), (0, &first["bytes_total"]));
    let inspected = bench.json(&["image", "inspect", "elf", "--json"]);
    assert_eq!(inspected["bytes_shared"], inspected["bytes_stored"]);
}

#[test]
fn a_changed_byte_costs_one_chunk_and_the_old_name_keeps_the_old_content() {
    let bench = Bench::new();
    let mut bytes = content(4 << 20);
    push(&bench, "old", &ramdisk(&bench, "initrd", &bytes));
    bytes[2 << 20] ^= 1;
    let changed = push(&bench, "new", &ramdisk(&bench, "initrd", &bytes));
    assert_eq!((number(&changed["chunks_new"]), number(&changed["bytes_new"])), (1, CHUNK));
    assert_ne!(manifest_id(&bench, "old"), manifest_id(&bench, "new"));
    ready(&bench, "old", &["--verify-full"]);
    ready(&bench, "new", &["--verify-full"]);
}

#[test]
fn gc_gives_back_what_no_name_needs_and_only_that() {
    let bench = Bench::new();
    push(&bench, "kept", &guest_file("initrd-small.cpio.gz"));
    let kept = manifest_id(&bench, "kept");
    let bytes = content(8 << 20);
    push(&bench, "gone", &ramdisk(&bench, "initrd", &bytes));
    let collected = bench.json(&["image", "gc", "--json"]);
    assert_eq!(number(&collected["manifests_removed"]), 0, "{collected}");
    assert_eq!(number(&collected["packs_removed"]), 0, "{collected}");
    bench.expect(0, &["image", "verify"]);

    bench.expect(0, &["image", "rm", "gone"]);
    assert_eq!(length(&bench.json(&["image", "ls", "--json"])["images"]), 1);
    let collected = bench.json(&["image", "gc", "--json"]);
    assert_eq!(number(&collected["manifests_removed"]), 1);
    assert!(number(&collected["bytes_freed"]) >= 8 << 20, "{collected}");
    assert_eq!(number(&bench.json(&["image", "gc", "--json"])["bytes_freed"]), 0);
    assert_eq!(manifest_id(&bench, "kept"), kept);
    bench.expect(0, &["image", "verify"]);
    ready(&bench, "kept", &["--verify-full"]);

    bench.expect(0, &["image", "rm", "kept"]);
    bench.expect(0, &["image", "gc"]);
    for folder in ["packs", "manifests", "names", "tmp"] {
        assert!(files(&bench, folder).is_empty(), "{folder}");
    }
}

#[test]
fn images_are_removed_all_or_none() {
    let bench = Bench::new();
    let initrd = ramdisk(&bench, "initrd", b"content");
    for name in ["a", "b", "c"] {
        push(&bench, name, &initrd);
    }
    bench.expect(3, &["image", "rm", "a", "none", "b"]);
    assert_eq!(files(&bench, "names").len(), 3);
    bench.expect(0, &["image", "rm", "a", "b"]);
    assert_eq!(bench.json(&["image", "ls", "--json"])["images"][0]["name"], "c");
}

#[test]
fn a_kernel_kept_as_it_is_is_stored_packed_and_entered_by_its_own_code() {
    let bench = Bench::new();
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-small.cpio.gz"));
    let mut arguments = push_arguments("as-is", &kernel, &initrd);
    arguments.push("--as-is");
    let pushed = bench.json(&arguments);
    let given = kernel.metadata().unwrap().len() + initrd.metadata().unwrap().len();
    assert!(number(&pushed["bytes_total"]) <= given, "{pushed}");
    let inspected = bench.json(&["image", "inspect", "as-is", "--json"]);
    let entries = &inspected["manifest"]["kernel"]["entries"];
    assert!(entries["linux64"].is_u64() && entries["pvh32"].is_null(), "{entries}");
    ready(&bench, "as-is", &[]);
}

#[test]
fn the_store_is_where_the_option_the_variable_or_the_home_says() {
    let bench = Bench::new();
    let initrd = ramdisk(&bench, "initrd", b"content");
    let kernel = guest_file("vmlinuz");
    let home = bench.path().join("home");
    let images = |folder: &str| home.join(folder).join("names").read_dir().unwrap().count();
    let pushes = |variable: &str, value: &str, option: &[&str]| {
        let status = bench
            .vmm(&push_arguments("guest", &kernel, &initrd))
            .args(option)
            .env_remove("VMM_STORE")
            .env_remove("XDG_DATA_HOME")
            .env("HOME", &home)
            .env(variable, value)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
    };
    let inside = |folder: &str| home.join(folder).to_str().unwrap().to_owned();
    pushes("LANG", "C", &[]);
    assert_eq!(images(".local/share/vmm/images"), 1);
    pushes("XDG_DATA_HOME", &inside("data"), &[]);
    assert_eq!(images("data/vmm/images"), 1);
    pushes("VMM_STORE", &inside("variable"), &[]);
    assert_eq!(images("variable"), 1);
    pushes("VMM_STORE", &inside("not-this"), &["--store", &inside("option")]);
    assert_eq!(images("option"), 1);
    assert!(!home.join("not-this").exists());
}

#[test]
fn the_guest_agent_is_added_to_a_ramdisk_or_is_it() {
    let bench = Bench::new();
    let agent = bench.path().join("agent");
    let mut program = vec![0; 120];
    program[..6].copy_from_slice(b"\x7fELF\x02\x01");
    // A program for x86-64 with one header, of what is to be loaded.
    for (at, value) in [(16, 2), (18, 62), (32, 64), (54, 56), (56, 1), (64, 1)] {
        program[at] = value;
    }
    std::fs::write(&agent, &program).unwrap();
    let with_agent = format!("--with-agent={}", agent.display());
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-small.cpio.gz"));
    let initrd_bytes = |name: &str| {
        let listed = bench.json(&["image", "ls", "--json"]);
        let images = listed["images"].as_array().unwrap();
        let image = images.iter().find(|image| image["name"] == name).unwrap();
        number(&image["initrd_bytes"])
    };

    let mut arguments = push_arguments("with", &kernel, &initrd);
    arguments.push(&with_agent);
    let pushed = bench.json(&arguments);
    assert!(pushed["notes"].to_string().contains("sbin/guest-agent"), "{pushed}");
    push(&bench, "without", &initrd);
    let more = initrd_bytes("with") - initrd_bytes("without");
    assert!((120..1024).contains(&more), "{more}");

    let alone = ["image", "push", "alone", "--kernel", kernel.to_str().unwrap(), &with_agent];
    bench.expect(0, &alone);
    assert!((120..1024).contains(&initrd_bytes("alone")));

    // What is no static program, or is not there, is no agent; and nothing was pushed.
    for (content, said) in [(Some(&b"#!/bin/sh"[..]), "static"), (None, "scripts/guest-agent")] {
        match content {
            Some(content) => std::fs::write(&agent, content).unwrap(),
            None => std::fs::remove_file(&agent).unwrap(),
        }
        let mut arguments = push_arguments("bad", &kernel, &initrd);
        arguments.push(&with_agent);
        let output = bench.expect(6, &arguments);
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{output:?}");
    }
    bench.expect(3, &["image", "inspect", "bad"]);
}
