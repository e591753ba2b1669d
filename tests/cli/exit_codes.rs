//! Exit codes, and the messages that come with them.

use std::path::Path;
use std::time::{Duration, Instant};

use vmm::machine::boot::MACHINE_COMMAND_LINE;

use crate::common::{Bench, damage_a_pack, guest_file, stderr};
use crate::support::{files, finish, push, push_arguments, ramdisk, ready, ready_ends};

/// A command line that no kernel takes.
fn long_text() -> String {
    "x".repeat(5000)
}

#[test]
fn a_command_line_that_makes_no_sense_is_2() {
    let bench = Bench::new();
    for arguments in [
        &[][..],
        &["image"],
        &["fly"],
        &["boot"],
        &["boot", "--image", "../guest"],
        &["boot", "--image", "guest", "--cpus", "0"],
        &["boot", "--image", "guest", "--cpus", "33"],
        &["boot", "--image", "guest", "--memory", "much"],
        &["boot", "--image", "guest", "--memory-backing", "1g"],
        &["image", "push", "guest"],
        &["image", "push", "guest", "--kernel", "vmlinuz", "--chunk-size", "3K"],
        &["image", "rm"],
        &["completions", "none"],
        &["endpoint", "move", "web"],
        &["endpoint", "ls", "*.web"],
        &["flow", "add", "x", "a"],
    ] {
        let output = bench.expect(2, arguments);
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    assert!(!bench.store().exists());
}

#[test]
fn ram_of_a_size_that_no_machine_has_is_2() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    for memory in ["62M", "65M", "513K", "2T"] {
        let Some(output) = ready_ends(&bench, 2, "guest", &["--memory", memory]) else { return };
        assert!(stderr(&output).contains("multiple of 2 MiB, at least 64 MiB"), "{output:?}");
    }
}

#[test]
fn an_image_that_is_not_there_is_3_and_named() {
    let bench = Bench::new();
    push(&bench, "guest", &ramdisk(&bench, "initrd", b"content"));
    let not_found = "there is no image 'team/none'";
    for arguments in [&["image", "inspect", "team/none"], &["image", "rm", "team/none"]] {
        assert!(stderr(&bench.expect(3, arguments)).contains(not_found));
    }
    if let Some(output) = ready_ends(&bench, 3, "team/none", &[]) {
        assert!(stderr(&output).contains(not_found), "{output:?}");
    }
}

#[test]
fn a_folder_that_is_no_store_is_1_and_named_and_stays_as_it_is() {
    let bench = Bench::new();
    std::fs::create_dir(bench.store()).unwrap();
    for verb in [
        &["ls"][..],
        &["verify"],
        &["gc"],
        &["rm", "guest"],
        &["inspect", "guest"],
        &["warm", "guest"],
    ] {
        let message = stderr(&bench.expect(1, &[&["image"], verb].concat()));
        let words = format!("'{}' is not an image store", bench.store().display());
        assert!(message.contains(&words), "{message}");
    }
    assert!(bench.store().read_dir().unwrap().next().is_none());
}

/// Damages the largest pack, and has every way of loading, verifying and mending tell.
fn damage_is_4(initrd: &str) {
    let bench = Bench::new();
    bench.push("team/guest", "vmlinuz", initrd);
    damage_a_pack(&bench);
    let boots: Vec<_> = [&[][..], &["--ramdisk", "copy"], &["--verify-full"]]
        .iter()
        .filter_map(|way| ready_ends(&bench, 4, "team/guest", way))
        .collect();

    let output = bench.expect(4, &["image", "verify", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["damage"].as_array().unwrap().len(), 1, "{report}");
    let chunk = &report["damage"][0]["chunk"];
    assert_eq!(chunk["images"], serde_json::json!(["team/guest"]));
    let key = chunk["key"].as_str().unwrap();
    let text = String::from_utf8(bench.expect(4, &["image", "verify"]).stdout).unwrap();
    assert!(text.contains(key) && text.contains("'team/guest'"), "{text}");
    for boot in boots {
        let message = stderr(&boot);
        assert!(message.contains("image 'team/guest' is damaged: chunk "), "{message}");
        assert!(message.contains(key), "no {key} in {message}");
        assert!(boot.stdout.is_empty(), "{boot:?}");
    }

    // Pushing it again mends it, and gc removes what is left of the damage.
    bench.push("team/guest", "vmlinuz", initrd);
    ready(&bench, "team/guest", &["--verify-full"]);
    bench.expect(0, &["image", "gc"]);
    bench.expect(0, &["image", "verify"]);
}

#[test]
fn a_damaged_kernel_is_4_and_the_chunk_is_named() {
    damage_is_4("initrd-small.cpio.gz");
}

#[test]
fn a_damaged_ramdisk_is_4_and_the_chunk_is_named() {
    damage_is_4("initrd-100.cpio");
}

#[test]
fn a_damaged_or_missing_table_is_4_and_named_and_another_push_mends_it() {
    let bench = Bench::new();
    let initrd = ramdisk(&bench, "initrd", b"content");
    push(&bench, "guest", &initrd);
    let tables = [files(&bench, "names"), files(&bench, "manifests")].concat();
    assert_eq!(tables.len(), 3);
    for table in tables {
        let name = table.file_name().unwrap().to_str().unwrap();
        let id = name.trim_end_matches(".at");
        for missing in [false, true] {
            if missing && table.parent().unwrap().ends_with("names") {
                continue; // no such image
            }
            if missing {
                std::fs::remove_file(&table).unwrap();
            } else {
                std::fs::write(&table, b"nonsense").unwrap();
            }
            for arguments in [&["image", "inspect", "guest"][..], &["image", "gc"]] {
                let output = bench.expect(4, arguments);
                let message = stderr(&output);
                assert!(message.contains("image 'guest' is damaged"), "{arguments:?}: {message}");
                assert!(message.contains(id), "{arguments:?}: {message}");
            }
            bench.expect(4, &["image", "verify"]);
            if let Some(output) = ready_ends(&bench, 4, "guest", &[]) {
                assert!(stderr(&output).contains("image 'guest' is damaged"), "{output:?}");
            }
            push(&bench, "guest", &initrd);
            bench.expect(0, &["image", "verify"]);
            ready(&bench, "guest", &[]);
        }
    }
}

#[test]
fn a_pack_cut_short_or_missing_is_4_and_another_push_mends_it() {
    let bench = Bench::new();
    let initrd = guest_file("initrd-100.cpio");
    push(&bench, "guest", &initrd);
    for keep in [40 << 20, 0] {
        let packs = files(&bench, "packs").into_iter().filter(|path| path.extension().is_none());
        let pack = packs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        if keep == 0 {
            std::fs::remove_file(&pack).unwrap();
        } else {
            let writable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            std::fs::set_permissions(&pack, writable).unwrap();
            std::fs::OpenOptions::new().write(true).open(&pack).unwrap().set_len(keep).unwrap();
        }
        for way in ["auto", "copy"] {
            if let Some(output) = ready_ends(&bench, 4, "guest", &["--ramdisk", way]) {
                let message = stderr(&output);
                assert!(message.contains("image 'guest' is damaged"), "{message}");
                assert!(message.contains(pack.to_str().unwrap()), "{message}");
            }
        }
        bench.expect(4, &["image", "verify"]);
        push(&bench, "guest", &initrd);
        ready(&bench, "guest", &["--verify-full"]);
    }
}

#[test]
fn pvm_is_5_at_once_and_explained() {
    if !Path::new("/sys/module/kvm_pvm").exists() {
        eprintln!("not a PVM host: nothing to see");
        return;
    }
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let begun = Instant::now();
    let output = finish(bench.vmm(&["boot", "--image", "guest"]));
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    for words in ["PVM", "stock kernel", "lab", "--ready-only"] {
        assert!(stderr(&output).contains(words), "no {words:?} in {output:?}");
    }
    assert!(output.stdout.is_empty());
    let check = bench.expect(5, &["check", "--json"]);
    let findings: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    let kind = findings.as_array().unwrap().iter().find(|f| f["subject"] == "KVM kind").unwrap();
    assert_eq!(kind["grade"], "fail");
    assert!(kind["fix"].is_string(), "{kind}");
}

#[test]
fn too_few_huge_pages_are_5_and_counted() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    // More than any host has.
    let arguments = ["--memory-backing", "hugetlb", "--memory", "1T"];
    let Some(output) = ready_ends(&bench, 5, "guest", &arguments) else { return };
    let message = stderr(&output);
    assert!(message.contains("524288 pages of 2 MiB are needed"), "{message}");
    assert!(message.contains("sysctl vm.nr_hugepages="), "{message}");
}

#[test]
fn a_kernel_or_ramdisk_that_is_none_is_6_and_named() {
    let bench = Bench::new();
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-small.cpio.gz"));
    let missing = bench.path().join("missing");
    let folder = bench.path().to_owned();
    for (file, words) in [
        (&missing, "No such file"),
        (&folder, "Is a directory"),
        (&Path::new("/dev/zero").to_owned(), "empty"),
    ] {
        for arguments in
            [push_arguments("guest", file, &initrd), push_arguments("guest", &kernel, file)]
        {
            let message = stderr(&bench.expect(6, &arguments));
            assert!(message.contains(file.to_str().unwrap()), "{message}");
            assert_eq!(message.matches(words).count(), 1, "told once: {message}");
        }
    }
    // One for the other.
    let message = stderr(&bench.expect(6, &push_arguments("guest", &initrd, &initrd)));
    assert!(message.contains("is it the ramdisk?"), "{message}");
    let message = stderr(&bench.expect(6, &push_arguments("guest", &kernel, &kernel)));
    assert!(message.contains("no newc cpio archive"), "{message}");
    assert!(bench.json(&["image", "ls", "--json"])["images"].as_array().unwrap().is_empty());
}

#[test]
fn an_image_that_does_not_fit_is_7_and_what_is_missing_is_told() {
    let bench = Bench::new();
    push(&bench, "large", &guest_file("initrd-300.cpio"));
    let arguments = ["--memory", "128M"];
    let Some(output) = ready_ends(&bench, 7, "large", &arguments) else { return };
    let message = stderr(&output);
    assert!(message.contains("image 'large' does not fit"), "{message}");
    let missing: u64 = message
        .split_once("needs ")
        .and_then(|(_, rest)| rest.rsplit_once(" MiB more"))
        .and_then(|(before, _)| before.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{message}"));
    // What is said to be missing is enough, and all of it is needed.
    let memory = |more: u64| format!("{}M", (128 + more).next_multiple_of(2));
    ready(&bench, "large", &["--memory", &memory(missing)]);
    ready_ends(&bench, 7, "large", &["--memory", &memory(missing - 2)]);
}

#[test]
fn a_kernel_command_line_that_is_too_long_is_2_at_a_push_and_7_at_a_boot() {
    let bench = Bench::new();
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-small.cpio.gz"));
    let text = long_text();
    let mut arguments = push_arguments("guest", &kernel, &initrd);
    arguments.extend(["--cmdline", &text]);
    let message = stderr(&bench.expect(2, &arguments));
    assert!(message.contains("has 5000 bytes"), "{message}");
    assert!(message.contains("this kernel takes at most 2047 in all"), "{message}");

    // At a boot, the machine's own words and a space come in front.
    let most = 2047 - (MACHINE_COMMAND_LINE.len() + 1);
    *arguments.last_mut().unwrap() = &text[..=most];
    bench.expect(2, &arguments);
    assert!(!bench.store().exists(), "it is told before anything is stored");
    *arguments.last_mut().unwrap() = &text[..most];
    bench.json(&arguments);
    ready(&bench, "guest", &[]);
    push(&bench, "guest", &initrd);
    let Some(output) = ready_ends(&bench, 7, "guest", &["--cmdline-append", &text]) else { return };
    assert!(stderr(&output).contains("at most 2047 can be passed"), "{output:?}");
}

#[test]
fn a_report_that_cannot_be_written_is_1_and_named() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let file = bench.path().join("no-such-folder/report.json");
    let arguments = ["--report", file.to_str().unwrap()];
    let Some(output) = ready_ends(&bench, 1, "guest", &arguments) else { return };
    assert!(stderr(&output).contains(file.to_str().unwrap()), "{output:?}");
}

#[test]
fn a_reader_that_has_gone_is_1_and_no_panic() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let ready = ready_ends(&bench, 0, "guest", &[])
        .map(|_| [&["boot", "--ready-only", "--image", "guest"][..], &["image", "gc"]].into_iter());
    let lists = [&["image", "ls"][..], &["image", "inspect", "guest"], &["completions", "bash"]];
    for arguments in lists.into_iter().chain(ready.into_iter().flatten()) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = bench.vmm(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains("cannot write to standard output"), "{output:?}");
    }
}
