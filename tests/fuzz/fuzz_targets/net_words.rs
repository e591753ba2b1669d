//! What is said of networks in words and in frames: requests for an address, lists of ports.

#![no_main]

use devices::virtio::net::dhcp::{Answerer, Lease, Taken};
use devices::virtio::net::mac::MacAddress;
use devices::virtio::net::ports::PortRules;
use libfuzzer_sys::fuzz_target;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(rules) = text.parse::<PortRules>() {
            assert_eq!(rules.to_string().parse::<PortRules>().as_ref(), Ok(&rules));
        }
        if let Ok(mac) = text.parse::<MacAddress>() {
            assert_eq!(mac.to_string(), text.to_lowercase());
        }
    }
    let lease = Lease {
        address: [10, 0, 0, 2].into(),
        prefix: 24,
        gateway: Some([10, 0, 0, 1].into()),
        dns: vec![[1, 1, 1, 1].into(); 3],
        host_name: Some("vm".into()),
    };
    let answerer = Answerer::new(MacAddress::new(MAC).expect("an address"), 1500, lease);
    // As it is, and as the end of a datagram that is to a DHCP server.
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    frame.extend([0, 68, 0, 67, 0, 0, 0, 0]);
    frame.extend(data);
    for frame in [data, &frame] {
        if let Taken::Answer(answer) = answerer.take(frame) {
            assert!(answer.len() < 700, "{answer:?}");
            assert!(answer[..6] == MAC || answer[..6] == [0xff; 6], "{answer:?}");
        }
    }
});
