//! The identifier of a machine's generation, as guests find it.

use crate::common::Bench;
use crate::common::guest::{Boot, boot};
use crate::common::ramdisk::push_kernel;

/// Prints the identifier from where the tables say that it is, and what drives it.
const SCRIPT: &str = "
set -e
page=$((0xff000 / 16))
echo id: $(dd if=/dev/mem bs=16 skip=$page count=1 2>/dev/null | hexdump -ve '1/1 \"%02x\"')
echo device: $(echo /sys/bus/acpi/devices/VMGENCTR:*)
echo driver: $(echo /sys/bus/acpi/drivers/vmgenid/VMGENCTR:*)
grep -q 'ACPI:Ged' /proc/interrupts && echo notified: yes
echo script: done
";

fn said<'a>(booted: &'a Boot, key: &str) -> &'a str {
    let prefix = format!("{key}: ");
    let line = booted.console.lines().find_map(|line| line.trim().strip_prefix(prefix.as_str()));
    line.unwrap_or_else(|| panic!("no {key} in {booted:#?}"))
}

/// Debian's kernel for clouds has no driver for it, so its standard kernel is booted.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_stock_kernel_finds_it_and_each_start_has_its_own() {
    let bench = Bench::new();
    push_kernel(&bench, "guest", "vmlinuz-standard", SCRIPT);
    let ids = [(); 2].map(|()| {
        let booted = boot(&bench, "guest", &["--memory", "256M"]);
        assert_eq!(booted.code, Some(0), "{booted:#?}");
        assert!(booted.console.contains("script: done"), "{booted:#?}");
        assert_eq!(said(&booted, "device"), "/sys/bus/acpi/devices/VMGENCTR:00");
        assert_eq!(said(&booted, "driver"), "/sys/bus/acpi/drivers/vmgenid/VMGENCTR:00");
        assert_eq!(said(&booted, "notified"), "yes");
        let id = said(&booted, "id").to_owned();
        assert_eq!(booted.report["generation_id"], id);
        id
    });
    assert_ne!(ids[0], ids[1]);
}
