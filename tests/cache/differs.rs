//! What differs from memcached on purpose, as `docs/cache-protocol.md` lists it: each line is held
//! against both.

use super::node::{Memcached, Node};

#[track_caller]
fn differs(request: &str, ours: &str, memcacheds: &str) {
    let (node, memcached) = (Node::start(), Memcached::start());
    node.connect().expect(request, ours);
    memcached.connect().expect(request, memcacheds);
}

#[test]
fn what_is_left_of_a_bad_data_block_is_no_command() {
    differs(
        "set a 0 0 3\r\nabc__version x\r\n",
        "CLIENT_ERROR bad data chunk\r\n",
        "CLIENT_ERROR bad data chunk\r\nVERSION 1.6.18\r\n",
    );
}

#[test]
fn the_data_of_a_refused_command_is_no_command() {
    let request = format!("set {} 0 0 7\r\nversion\r\n", "k".repeat(251));
    let error = "CLIENT_ERROR bad command line format\r\n";
    differs(&request, error, &format!("{error}VERSION 1.6.18\r\n"));
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let error = "CLIENT_ERROR bad command line format\r\n";
    differs(
        "set a 4294967297 0 1\r\nx\r\nget a\r\n",
        &format!("{error}END\r\n"),
        "STORED\r\nVALUE a 1 1\r\nx\r\nEND\r\n",
    );
}

#[test]
fn control_characters_in_keys_are_refused() {
    differs("set a\tb 0 0 1\r\nx\r\n", "CLIENT_ERROR bad command line format\r\n", "STORED\r\n");
}

#[test]
fn numbers_are_not_padded() {
    differs(
        "set n 0 0 2\r\n10\r\ndecr n 1\r\nget n\r\n",
        "STORED\r\n9\r\nVALUE n 0 1\r\n9\r\nEND\r\n",
        "STORED\r\n9\r\nVALUE n 0 2\r\n9 \r\nEND\r\n",
    );
}

#[test]
fn numbers_are_digits_only() {
    let error = "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
    differs("set n 0 0 3\r\n1 x\r\nincr n 1\r\n", &format!("STORED\r\n{error}"), "STORED\r\n2\r\n");
}

#[test]
fn the_flag_for_cas_values_of_later_versions_is_known() {
    differs(
        "ms a 1 E77\r\nx\r\nmg a c\r\n",
        "HD\r\nHD c77\r\n",
        "CLIENT_ERROR invalid flag\r\nEN\r\n",
    );
}

#[test]
fn keys_are_echoed_as_they_were_asked_for() {
    differs("ms Zm9v 1 b\r\nx\r\nmg foo k\r\n", "HD\r\nHD kfoo\r\n", "HD\r\nHD kZm9v b\r\n");
}

#[test]
fn a_value_that_is_refused_takes_no_item_of_an_image_along() {
    let large = format!("{}\r\n{}\r\n", 2_000_000, "x".repeat(2_000_000));
    for (flags, command) in [(0x766d_6301, "set a"), (0x766d_6302, "ms a"), (0x766d_6303, "set a")]
    {
        let refused = match command {
            "ms a" => format!("ms a 2000000 F{flags}\r\n{}\r\n", "x".repeat(2_000_000)),
            _ => format!("set a {flags} 0 {large}"),
        };
        let request = format!("set a {flags} 0 1\r\nx\r\n{refused}get a\r\n");
        let answers = "STORED\r\nSERVER_ERROR object too large for cache\r\n";
        let kept = format!("{answers}VALUE a {flags} 1\r\nx\r\nEND\r\n");
        differs(&request, &kept, &format!("{answers}END\r\n"));
    }
    // Anything else goes, as there.
    let request = format!("set a 5 0 1\r\nx\r\nset a 5 0 {large}get a\r\n");
    let answers = "STORED\r\nSERVER_ERROR object too large for cache\r\nEND\r\n";
    differs(&request, answers, answers);
}

#[test]
fn extensions_are_unknown_to_memcached() {
    differs(
        "release 0000000000000001 0\r\nunpin x\r\n",
        "NOT_FOUND\r\nCLIENT_ERROR bad command line format\r\n",
        "ERROR\r\nERROR\r\n",
    );
}
