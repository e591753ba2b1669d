//! Names of services, patterns of them, identifiers and ranges, as people and guests write them: what is one is
//! the same when it is written again.
#![no_main]

use endpoint::name::{Name, Pattern};
use endpoint::range::{Address, Form};
use endpoint::vid::Vid;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(vid) = text.parse::<Vid>() {
        assert_eq!(vid.to_string().parse(), Ok(vid));
    }
    if let (Ok(pattern), Ok(name)) = (text.parse::<Pattern>(), text.parse::<Name>()) {
        assert!(pattern.matches(&name));
    }
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse().as_ref(), Ok(&address));
        for form in Form::ALL {
            if let Ok(range) = address.range(form) {
                assert!(range.form() == form && range.contains(range.first()));
            }
        }
    }
});
