//! What a VM may do with endpoints. The operator says it when the VM is started; hosts ask before they ask the
//! directory.

use serde::{Deserialize, Serialize};

use crate::name::{InvalidName, Name, Pattern};
use crate::range::Range;

/// The most ranges of one VM: a directory is no place for a flood.
pub const MOST_RANGES: usize = 64;

/// What a VM wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// Announce a service, listen to its ranges, withdraw it.
    Announce,
    /// Have an endpoint moved.
    Move,
    /// Split, merge and mirror ranges.
    Split,
}

/// Why a VM may not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// It has not the right.
    #[error("the VM may not {0:?}: start it with that right")]
    Deed(Deed),
    /// It has the right for other services.
    #[error("the VM may do nothing with {0}: start it with that service")]
    Service(Name),
    /// These identifiers are not its own.
    #[error("{0} are not the VM's: it may change what it has announced")]
    NotOwn(Range),
    /// It has too many ranges.
    #[error("the VM would have {0} ranges, {1} are allowed: merge or withdraw some")]
    Quota(usize, usize),
}

/// What a VM may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rights {
    /// What it may do at all.
    pub deeds: Vec<Deed>,
    /// With which services: names and patterns.
    pub services: Vec<String>,
    /// How many ranges it may have.
    pub ranges: usize,
}

impl Default for Rights {
    /// None: any VM may be a client.
    fn default() -> Self {
        Self { deeds: Vec::new(), services: Vec::new(), ranges: MOST_RANGES }
    }
}

impl Rights {
    /// Looks that the services are names or patterns.
    ///
    /// # Errors
    /// One is neither.
    pub fn check(&self) -> Result<(), InvalidName> {
        self.services.iter().try_for_each(|text| text.parse::<Pattern>().map(drop))
    }

    /// Whether the VM, which has the ranges `own`, may announce `new` ranges of `service`.
    ///
    /// # Errors
    /// It may not.
    pub fn announce(&self, service: &Name, own: usize, new: usize) -> Result<(), Forbidden> {
        self.may(Deed::Announce, service)?;
        self.has_room(own.saturating_add(new))
    }

    /// Whether the VM, which has the ranges `own`, may have `range` of `service` moved.
    ///
    /// # Errors
    /// It may not.
    pub fn transfer(&self, service: &Name, own: &[Range], range: Range) -> Result<(), Forbidden> {
        self.may(Deed::Move, service)?;
        is_own(own, range)
    }

    /// Whether the VM, which has the ranges `own`, may make `parts` ranges of `range` of `service`.
    ///
    /// # Errors
    /// It may not.
    pub fn split(
        &self,
        service: &Name,
        own: &[Range],
        range: Range,
        parts: usize,
    ) -> Result<(), Forbidden> {
        self.may(Deed::Split, service)?;
        is_own(own, range)?;
        self.has_room(own.len().saturating_sub(1).saturating_add(parts))
    }

    fn may(&self, deed: Deed, service: &Name) -> Result<(), Forbidden> {
        if !self.deeds.contains(&deed) {
            return Err(Forbidden::Deed(deed));
        }
        // What is no pattern is no right.
        let matches =
            |text: &String| text.parse::<Pattern>().is_ok_and(|pattern| pattern.matches(service));
        if self.services.iter().any(matches) {
            Ok(())
        } else {
            Err(Forbidden::Service(service.clone()))
        }
    }

    fn has_room(&self, count: usize) -> Result<(), Forbidden> {
        if count <= self.ranges { Ok(()) } else { Err(Forbidden::Quota(count, self.ranges)) }
    }
}

fn is_own(own: &[Range], range: Range) -> Result<(), Forbidden> {
    if own.iter().any(|have| have.covers(range)) { Ok(()) } else { Err(Forbidden::NotOwn(range)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::Form;

    #[test]
    fn a_vm_may_what_it_was_given() {
        let service: Name = "kv.a".parse().unwrap();
        let whole = Range::whole(Form::Prefix, &service);
        let none = Rights::default();
        assert_eq!(none.announce(&service, 0, 1), Err(Forbidden::Deed(Deed::Announce)));
        let rights = Rights {
            deeds: vec![Deed::Announce, Deed::Split],
            services: vec!["kv.*".into(), "*".into()],
            ..none
        };
        assert!(rights.check().is_err(), "everything is no service");
        assert_eq!(rights.announce(&service, 63, 1), Ok(()));
        assert_eq!(rights.announce(&service, 64, 1), Err(Forbidden::Quota(65, 64)));
        assert_eq!(rights.announce(&service, usize::MAX, 1), Err(Forbidden::Quota(usize::MAX, 64)));
        let other: Name = "dhcp".parse().unwrap();
        assert_eq!(rights.announce(&other, 0, 1), Err(Forbidden::Service(other)));
        assert_eq!(rights.transfer(&service, &[whole], whole), Err(Forbidden::Deed(Deed::Move)));
        let (half, _) = whole.split(100).unwrap();
        assert_eq!(rights.split(&service, &[whole], half, 2), Ok(()));
        assert_eq!(rights.split(&service, &[half], whole, 2), Err(Forbidden::NotOwn(whole)));
        assert_eq!(rights.split(&service, &[whole], half, 65), Err(Forbidden::Quota(65, 64)));
    }
}
