//! `--endpoint`: which virtual endpoints a VM may serve, and what it may have done with them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use control_abi::rights;
use endpoint::name::{InvalidName, Name, Pattern};
use endpoint::rights::{Deed, MOST_RANGES, Rights};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most services and addresses that one VM can be given.
const MOST: usize = 32;

/// What a VM may do with virtual endpoints. A VM that is given this, even if it is nothing, can look services up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointSpec {
    /// The services that it may announce, and that may be moved to it: names, and patterns such as `kv.*`.
    #[schema(max_items = 32, example = json!(["web"]))]
    pub services: Vec<String>,
    /// The addresses of these services, in their order; one alone is that of all. Without any, the VM's own is theirs.
    #[schema(max_items = 32, value_type = Vec<String>, example = json!(["10.77.0.80"]))]
    pub addresses: Vec<IpAddr>,
    /// It may ask that its endpoints be moved to other VMs.
    #[serde(rename = "move")]
    pub may_move: bool,
    /// It may split, merge and mirror them.
    #[serde(rename = "split")]
    pub may_split: bool,
}

/// Why a text does not say what a VM may do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointSpecError {
    /// A word that is none.
    #[error("'{}' is none of services=NAME+NAME, addresses=IP+IP, move and split", .0.escape_default())]
    Word(String),
    /// No service.
    #[error(transparent)]
    Service(#[from] InvalidName),
    /// No address.
    #[error("'{}' is no IP address that an endpoint can have", .0.escape_default())]
    Address(String),
    /// Too many.
    #[error("at most {MOST} services and as many addresses")]
    Most,
}

impl EndpointSpec {
    /// Checks what the command line has checked already.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), EndpointSpecError> {
        if self.services.len() > MOST || self.addresses.len() > MOST {
            return Err(EndpointSpecError::Most);
        }
        self.services.iter().try_for_each(|text| text.parse::<Pattern>().map(drop))?;
        let bad = |address: &&IpAddr| address.is_unspecified() || address.is_multicast();
        match self.addresses.iter().find(bad) {
            Some(address) => Err(EndpointSpecError::Address(address.to_string())),
            None => Ok(()),
        }
    }

    /// The address that `service` has here, if it has one.
    pub fn address_of(&self, service: &Name) -> Option<IpAddr> {
        let is_it = |text: &String| text.parse::<Pattern>().is_ok_and(|p| p.matches(service));
        let at = self.services.iter().position(is_it)?;
        let only = self.addresses.first().filter(|_| self.addresses.len() == 1);
        self.addresses.get(at).or(only).copied()
    }

    /// What hosts ask before they ask the directory.
    pub fn rights(&self) -> Rights {
        let mut deeds = Vec::new();
        if !self.services.is_empty() {
            deeds.push(Deed::Announce);
        }
        if self.may_move {
            deeds.push(Deed::Move);
        }
        if self.may_split {
            deeds.push(Deed::Split);
        }
        Rights { deeds, services: self.services.clone(), ranges: MOST_RANGES }
    }

    /// The same as the control device has it: bits of [`control_abi::rights`].
    pub fn device_rights(&self) -> u32 {
        let bit = |has: bool, bit: u32| if has { bit } else { 0 };
        bit(!self.services.is_empty(), rights::SERVE)
            | bit(self.may_move, rights::MIGRATE)
            | bit(self.may_split, rights::SPLIT)
    }
}

impl FromStr for EndpointSpec {
    type Err = EndpointSpecError;

    fn from_str(text: &str) -> Result<Self, EndpointSpecError> {
        let mut spec = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word.split_once('=') {
                None if word == "move" => spec.may_move = true,
                None if word == "split" => spec.may_split = true,
                Some(("services", names)) => {
                    spec.services.extend(names.split('+').map(str::to_owned));
                }
                Some(("addresses", addresses)) => {
                    for text in addresses.split('+') {
                        let address = text.parse();
                        let wrong = |_| EndpointSpecError::Address(text.to_owned());
                        spec.addresses.push(address.map_err(wrong)?);
                    }
                }
                _ => return Err(EndpointSpecError::Word(word.to_owned())),
            }
        }
        spec.check()?;
        Ok(spec)
    }
}

impl fmt::Display for EndpointSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if !self.services.is_empty() {
            words.push(format!("services={}", self.services.join("+")));
        }
        if !self.addresses.is_empty() {
            let addresses: Vec<_> = self.addresses.iter().map(IpAddr::to_string).collect();
            words.push(format!("addresses={}", addresses.join("+")));
        }
        words.extend(self.may_move.then(|| "move".to_owned()));
        words.extend(self.may_split.then(|| "split".to_owned()));
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_vm_may_is_read_as_it_is_written() {
        let whole = "services=web+kv.*,addresses=10.77.0.80+fd00::80,move,split";
        for text in ["", "services=web", "addresses=10.0.0.1,move", whole] {
            let spec: EndpointSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<EndpointSpec>(&json).unwrap(), spec);
        }
        let spec: EndpointSpec = whole.parse().unwrap();
        let bits = rights::SERVE | rights::MIGRATE | rights::SPLIT;
        assert_eq!((spec.device_rights(), spec.rights().deeds.len()), (bits, 3));
        assert_eq!(EndpointSpec::default().device_rights(), 0);
        let address = |text: &str| spec.address_of(&text.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(address("web").as_deref(), Some("10.77.0.80"));
        assert_eq!(address("kv.a").as_deref(), Some("fd00::80"));
        assert_eq!(address("dhcp"), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let many = format!("addresses=10.0.0.1{}", "+10.0.0.1".repeat(MOST));
        for text in ["web", "services=*", "services=a b", "addresses=x", "addresses=0.0.0.0", &many]
        {
            assert!(text.parse::<EndpointSpec>().is_err(), "{text}");
        }
    }
}
