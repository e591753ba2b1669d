//! What a guest may do, as the register `RIGHTS` says it.

macro_rules! rights {
    ($($(#[doc = $doc:literal])+ $name:ident = $bit:literal, $label:literal;)+) => {
        $($(#[doc = $doc])+ pub const $name: u32 = 1 << $bit;)+
        /// Bit, name and meaning of each right.
        pub const RIGHTS: &[(u32, &str, &str)] = &[$(($bit, $label, concat!($($doc),+))),+];
    };
}

rights! {
    /// The guest is a manager: it may see the VMs that managers of its name started on its host, and stop them.
    MANAGER = 0, "manager";
    /// It may boot VMs, within the operator's limits.
    BOOT = 1, "boot";
    /// It may ask to be moved, with its endpoints.
    MIGRATE = 2, "migrate";
    /// It may split, merge and mirror what its endpoints serve.
    SPLIT = 3, "split";
    /// It may read images other than its own.
    FETCH = 4, "fetch";
    /// It may say which cache the VMs that it boots come from.
    CACHE = 5, "cache";
    /// It may serve: announce endpoints of the services that its operator named, and take their moves.
    SERVE = 6, "serve";
}
