//! Every meta command, its flags and its ends.

use super::node::Node;

#[test]
fn flags_ask_for_what_is_answered_in_their_order() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("ms a 3 F7 T1000\r\nabc\r\n", "HD\r\n");
    client.expect("mg a\r\n", "HD\r\n");
    client.expect("mg a v\r\n", "VA 3\r\nabc\r\n");
    client.expect("mg a s f k O1 v\r\n", "VA 3 s3 f7 ka O1\r\nabc\r\n");
    client.expect("mg a k f s\r\n", "HD ka f7 s3\r\n");
    client.expect("mg b v\r\n", "EN\r\n");
    client.expect("mg b v k Oxyz\r\n", "EN kb Oxyz\r\n");
    client.expect("mg b v q\r\n", "");
    client.expect("mg a q\r\n", "HD\r\n");
    let answer = client.ask("mg a t\r\n");
    let ttl: u32 = answer.trim_end().strip_prefix("HD t").unwrap().parse().unwrap();
    assert!((990..=1000).contains(&ttl), "{answer}");
    client.expect("mg a T0 t\r\n", "HD t-1\r\n");
}

#[test]
fn order_of_time_flags_counts() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("ms a 1\r\nx\r\n", "HD\r\n");
    client.expect("mg a t T1000\r\n", "HD t-1\r\n");
    assert_ne!(client.ask("mg a T2000 t\r\n"), "HD t-1\r\n");
}

#[test]
fn hits_are_told_before_they_count() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("ms a 1\r\nx\r\n", "HD\r\n");
    client.expect("mg a h l u\r\n", "HD h0 l0\r\n");
    client.expect("mg a h\r\n", "HD h0\r\n");
    client.expect("mg a h\r\n", "HD h1\r\n");
    let answer = client.ask("me a\r\n");
    assert!(answer.starts_with("ME a exp=-1 la=0 cas="), "{answer}");
    assert!(answer.contains(" fetch=yes "), "{answer}");
    client.expect("me b\r\n", "EN\r\n");
}

#[test]
fn keys_may_be_base64() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("ms Zm9v 1 b\r\nx\r\n", "HD\r\n");
    client.expect("get foo\r\n", "VALUE foo 0 1\r\nx\r\nEND\r\n");
    client.expect("mg Zm9v b k v\r\n", "VA 1 kZm9v b\r\nx\r\n");
    // Bytes that no plain key can have.
    client.expect("ms AAEgfw== 1 b\r\ny\r\n", "HD\r\n");
    client.expect("mg AAEgfw== b v\r\n", "VA 1\r\ny\r\n");
    client.expect("mg Zm9 b v\r\n", "CLIENT_ERROR error decoding key\r\n");
    client.expect("md Zm9v b q\r\n", "");
    client.expect("get foo\r\n", "END\r\n");
}

#[test]
fn sets_have_modes_and_compare() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("ms a 1 ME\r\n1\r\n", "HD\r\n");
    client.expect("ms a 1 ME\r\nx\r\n", "NS\r\n");
    client.expect("ms b 1 MR\r\nx\r\n", "NS\r\n");
    client.expect("ms a 1 MA\r\n2\r\n", "HD\r\n");
    client.expect("ms a 1 MP\r\n0\r\n", "HD\r\n");
    client.expect("ms b 1 MA\r\nx\r\n", "NS\r\n");
    client.expect("mg a v\r\n", "VA 3\r\n012\r\n");
    client.expect("ms a 1 MX\r\nx\r\n", "CLIENT_ERROR invalid mode for ms M token\r\n");
    let answer = client.ask("ms a 1 c k O9\r\n5\r\n");
    let cas: u64 = answer.split_whitespace().nth(1).unwrap()[1..].parse().unwrap();
    assert_eq!(answer, format!("HD c{cas} ka O9\r\n"));
    client.expect(format!("ms a 1 C{}\r\nx\r\n", cas + 1), "EX\r\n");
    client.expect(format!("ms a 1 C{cas} q\r\n6\r\n"), "");
    client.expect(format!("ms a 1 C{cas} q\r\n7\r\n"), "EX\r\n");
    client.expect(format!("ms b 1 C{cas}\r\nx\r\n"), "NF\r\n");
    client.expect("mg a v\r\n", "VA 1\r\n6\r\n");
    client.expect("ms a 1 E1000000000000\r\nx\r\n", "HD\r\n");
    client.expect("mg a c\r\n", "HD c1000000000000\r\n");
}

#[test]
fn one_client_wins_what_is_to_be_made() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("mg a N1000 v\r\n", "VA 0 W\r\n\r\n");
    client.expect("mg a N1000 v\r\n", "VA 0 Z\r\n\r\n");
    client.expect("ms a 3\r\nnew\r\n", "HD\r\n");
    client.expect("mg a N1000 v\r\n", "VA 3\r\nnew\r\n");
    // Soon to expire.
    client.expect("ms b 1 T100\r\nx\r\n", "HD\r\n");
    client.expect("mg b R30\r\n", "HD\r\n");
    client.expect("mg b R300\r\n", "HD W\r\n");
    client.expect("mg b R300\r\n", "HD Z\r\n");
}

#[test]
fn stale_items_are_served_and_won_once() {
    let node = Node::start();
    let mut client = node.connect();
    let answer = client.ask("ms a 3 c\r\nold\r\n");
    let cas: u64 = answer.trim_end().strip_prefix("HD c").unwrap().parse().unwrap();
    client.expect("md a I T1000\r\n", "HD\r\n");
    client.expect("mg a v\r\n", "VA 3 X W\r\nold\r\n");
    client.expect("mg a v\r\n", "VA 3 Z X\r\nold\r\n");
    // A value that was made before it became stale is stored as stale.
    client.expect(format!("ms a 5 I C{cas}\r\nolder\r\n"), "HD\r\n");
    client.expect("mg a v\r\n", "VA 5 Z X\r\nolder\r\n");
    client.expect("ms a 3\r\nnew\r\n", "HD\r\n");
    client.expect("mg a v\r\n", "VA 3\r\nnew\r\n");
}

#[test]
fn deletes_compare_and_keep_quiet() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("ms a 1\r\nx\r\n", "HD\r\n");
    client.expect("md a C1000000\r\n", "EX\r\n");
    client.expect("md a k O1\r\n", "HD ka O1\r\n");
    client.expect("md a q\r\n", "NF\r\n");
    client.expect("ms a 1\r\nx\r\n", "HD\r\n");
    client.expect("md a q\r\n", "");
    client.expect("md a s s\r\n", "CLIENT_ERROR invalid or duplicate flag\r\n");
}

#[test]
fn arithmetic_makes_what_is_missing_when_told() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("ma n\r\n", "NF\r\n");
    client.expect("ma n k O1\r\n", "NF kn O1\r\n");
    client.expect("ma n N0 J10 v\r\n", "VA 2\r\n10\r\n");
    client.expect("ma n v\r\n", "VA 2\r\n11\r\n");
    client.expect("ma n D5 M- v\r\n", "VA 1\r\n6\r\n");
    client.expect("ma n D50 MD v t\r\n", "VA 1 t-1\r\n0\r\n");
    client.expect("ma n q\r\n", "");
    client.expect("ma n\r\n", "HD\r\n");
    client.expect("ma n C1000000\r\n", "EX\r\n");
    client.expect("ma n MX\r\n", "CLIENT_ERROR invalid mode for ma M token\r\n");
    client.expect("ms n 1\r\nx\r\n", "HD\r\n");
    let answer = "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
    client.expect("ma n\r\n", answer);
}
