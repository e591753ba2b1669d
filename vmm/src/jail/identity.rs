//! Who the process of a VM is to the host.

use std::fs;

/// The first user and group of VMs: behind all that systemd and others hand out by themselves
/// (systemd, docs/UIDS-GIDS.md), and before those that not every program takes for a number.
const FIRST: u32 = 0x7100_0000;
/// How many there are.
const COUNT: u32 = 0x0080_0000;

/// Who a process is when it has confined itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Who started it: all that one can be without root.
    Own,
    /// A user and a group of this number, of nobody else.
    Number(u32),
}

impl Identity {
    /// That of the VM with this number on this host, which runs at the same time as no other one with it.
    pub fn numbered(vm: u32) -> Self {
        Self::Number(FIRST + vm % COUNT)
    }

    /// That of [`numbered`](Self::numbered) where this process may give it to others, else its own.
    pub fn best(vm: u32) -> Self {
        let numbered = Self::numbered(vm);
        let root = rustix::process::geteuid().is_root();
        match numbered {
            Self::Number(number) if root && is_known(number) => numbered,
            _ => Self::Own,
        }
    }
}

/// Whether users and groups of this number are any in this process' user namespace.
fn is_known(number: u32) -> bool {
    ["/proc/self/uid_map", "/proc/self/gid_map"]
        .iter()
        .all(|map| fs::read_to_string(map).is_ok_and(|map| is_mapped(&map, number)))
}

fn is_mapped(map: &str, number: u32) -> bool {
    map.lines().any(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (words.next(), words.next(), words.next())
        else {
            return false;
        };
        number.checked_sub(first).is_some_and(|offset| offset < count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_out_of_everybodys_way() {
        for vm in [0, 1, COUNT - 1, COUNT, u32::MAX] {
            let Identity::Number(number) = Identity::numbered(vm) else { panic!() };
            assert!((0x7100_0000..0x7f00_0000).contains(&number), "{number:#x}");
        }
        assert_ne!(Identity::numbered(1), Identity::numbered(2));
    }

    #[test]
    fn ids_are_mapped_or_not() {
        let all = "         0          0 4294967295\n";
        assert!(is_mapped(all, 5) && is_mapped(all, u32::MAX - 1));
        let some = "0 1000 1\n1 100000 65536\n";
        assert!(is_mapped(some, 0) && is_mapped(some, 65536));
        assert!(!is_mapped(some, 65537));
        assert!(!is_mapped("", 0));
    }
}
