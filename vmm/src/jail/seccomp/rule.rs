//! A rule of a filter: a system call that is allowed, for such arguments, and why.

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// A system call that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Its name, as in `libc`.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// What its arguments must be, all of it; nothing: anything.
    pub arguments: &'static [Argument],
    /// What needs it.
    pub why: &'static str,
    /// Why it may not be used for long: then it is no fault if no test comes by it.
    pub seldom: Option<&'static str>,
}

/// What an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    /// Which: 0 to 5.
    pub index: u8,
    /// The bits that count.
    pub mask: u32,
    /// What they must be.
    pub value: u32,
}

/// Argument `index` is `value`, of 32 bits.
pub const fn is(index: u8, value: u32) -> Argument {
    Argument { index, mask: u32::MAX, value }
}

/// None of the bits of `mask` is set in argument `index`.
pub const fn without(index: u8, mask: u32) -> Argument {
    Argument { index, mask, value: 0 }
}

impl Rule {
    /// The same, which tests need not come by, for a reason.
    #[must_use]
    pub const fn seldom(self, because: &'static str) -> Self {
        Self { seldom: Some(because), ..self }
    }

    /// Whether it allows a call.
    pub fn allows(&self, number: i64, arguments: &[u64; 6]) -> bool {
        self.number == number
            && self.arguments.iter().all(|wanted| {
                let given = arguments.get(usize::from(wanted.index)).copied().unwrap_or(u64::MAX);
                given & u64::from(wanted.mask) == u64::from(wanted.value)
            })
    }

    /// As the compiler of filters wants it; without conditions there is nothing to say.
    pub(super) fn condition(&self) -> Result<Option<SeccompRule>, BackendError> {
        if self.arguments.is_empty() {
            return Ok(None);
        }
        let conditions = self.arguments.iter().map(|argument| {
            let Argument { index, mask, value } = *argument;
            let compare = SeccompCmpOp::MaskedEq(mask.into());
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, compare, value.into())
        });
        SeccompRule::new(conditions.collect::<Result<_, _>>()?).map(Some)
    }
}

/// A rule: `permit!(SYS_name, "why")`, or `permit!(SYS_name, [arguments], "why")`.
macro_rules! permit {
    ($name:ident, $why:literal) => {
        permit!($name, [], $why)
    };
    ($name:ident, [$($argument:expr),*], $why:literal) => {
        $crate::jail::seccomp::rule::Rule {
            name: stringify!($name),
            number: libc::$name,
            arguments: &[$($argument),*],
            why: $why,
            seldom: None,
        }
    };
}
pub(super) use permit;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_holds_for_its_arguments_only() {
        const MAPPED: [Argument; 2] = [without(2, 4), is(3, 0x22)];
        let rule = Rule { name: "mmap", number: 9, arguments: &MAPPED, why: "test", seldom: None };
        assert!(rule.allows(9, &[1, 2, 3, 0x22, 0, 0]));
        assert!(!rule.allows(9, &[1, 2, 7, 0x22, 0, 0]));
        assert!(!rule.allows(9, &[1, 2, 3, 0x32, 0, 0]));
        assert!(!rule.allows(10, &[1, 2, 3, 0x22, 0, 0]));
    }
}
