//! `--cache`: images pushed to memcached servers and made ready from them.

use serde_json::Value;

use crate::common::{Bench, guest_file, stderr, stdout};
use crate::memcached::{Memcached, nobody, url};
use crate::support::{number, push_arguments, ready, ready_ends};

fn pushed(bench: &Bench, cache: &str) -> Value {
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-small.cpio.gz"));
    let mut arguments = push_arguments("guest", &kernel, &initrd);
    arguments.extend(["--cache", cache]);
    bench.json(&arguments)
}

#[test]
fn an_image_is_pushed_to_two_servers_and_loaded_where_nothing_else_is() {
    let servers = Memcached::start_all(2);
    let cache = url(&servers);
    let bench = Bench::new();
    let push = pushed(&bench, &cache);
    let report = &push["cache"];
    assert_eq!(report["id"], push["id"]);
    assert_eq!(number(&report["bytes_total"]), number(&push["bytes_total"]));
    let again = bench.json(&["image", "publish", "guest", "--cache", &cache, "--json"]);
    assert_eq!(number(&again["bytes_new"]), 0);
    let text = stdout(&bench.expect(0, &["image", "publish", "guest", "--cache", &cache]));
    assert!(text.starts_with("guest: ") && text.contains(&cache), "{text}");

    let elsewhere = Bench::new();
    let Some(report) = ready(&elsewhere, "guest", &["--cache", &cache]) else { return };
    assert_eq!(report["manifest"], push["id"]);
    let load = &report["load"];
    assert_eq!((&load["transport"], &load["verify"]), (&"memcached".into(), &"full".into()));
    assert_eq!(number(&load["cache"]["chunks_from_origin"]), 0);
    assert_eq!(load["cache"]["nodes"].as_array().unwrap().len(), 2);
    let arrived = number(&load["bytes_fetched"]) + number(&load["bytes_zero"]);
    assert_eq!(arrived, number(&push["bytes_total"]));
    let output = ready_ends(&elsewhere, 0, "guest", &["--cache", &cache, "--timings"]).unwrap();
    let table = stderr(&output);
    assert!(table.contains("chunks from nodes") && table.contains(&servers[1].address), "{table}");
}

#[test]
fn what_the_cache_has_not_comes_from_the_store_and_is_in_the_cache_then() {
    let servers = Memcached::start_all(1);
    let cache = url(&servers);
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let elsewhere = Bench::new();
    let store = bench.store();
    let arguments = ["--cache", &cache, "--origin", store.to_str().unwrap()];
    let Some(report) = ready(&elsewhere, "guest", &arguments) else { return };
    assert!(number(&report["load"]["cache"]["chunks_from_origin"]) > 0, "{report}");
    let report = ready(&elsewhere, "guest", &["--cache", &cache]).unwrap();
    assert_eq!(number(&report["load"]["cache"]["chunks_from_origin"]), 0, "{report}");
    // A host with a store of its own has that behind the cache without being told.
    servers[0].forget_everything();
    let report = ready(&bench, "guest", &["--cache", &cache]).unwrap();
    assert!(number(&report["load"]["cache"]["chunks_from_origin"]) > 0, "{report}");
}

#[test]
fn a_cache_that_is_down_is_8_and_one_without_the_image_is_3() {
    let bench = Bench::new();
    let down = format!("memcached://{}", nobody());
    if let Some(output) = ready_ends(&bench, 8, "guest", &["--cache", &down]) {
        let text = stderr(&output);
        assert!(text.contains("cannot connect") && text.contains(&down[12..]), "{text}");
    }
    let server = Memcached::start();
    let cache = url(std::slice::from_ref(&server));
    if let Some(output) = ready_ends(&bench, 3, "guest", &["--cache", &cache]) {
        assert!(stderr(&output).contains("there is no image 'guest'"), "{output:?}");
    }
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    let output = bench.expect(8, &["image", "publish", "guest", "--cache", &down]);
    assert!(stderr(&output).contains("cannot connect"), "{output:?}");
    // With the store behind it, a cache that is down is a warning.
    if let Some(output) = ready_ends(&bench, 0, "guest", &["--cache", &down]) {
        assert!(stderr(&output).contains("asking the origin"), "{output:?}");
    }
}

#[test]
fn a_cache_that_makes_no_sense_is_2() {
    let bench = Bench::new();
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    for (arguments, words) in [
        (&["image", "publish", "guest"][..], "no cache is named"),
        (&["image", "publish", "guest", "--cache", "redis://a"], "memcached://HOST"),
        (&["boot", "--image", "guest", "--cache", "memcached://a,a"], "named twice"),
        (&["boot", "--image", "guest", "--origin", "/tmp"], "--cache"),
        (&["image", "publish", "guest", "--cache", "memcacheds://a"], "trusted authorities"),
    ] {
        let output = bench.expect(2, arguments);
        assert!(stderr(&output).contains(words), "{output:?}");
    }
    let output =
        bench.expect(1, &["image", "publish", "guest", "--cache", "members:/nonexistent.json"]);
    assert!(stderr(&output).contains("/nonexistent.json"), "{output:?}");
}
