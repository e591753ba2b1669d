//! Messages of DHCP as they are on the wire (RFC 2131, 2132), and the frames that carry them.

pub mod frame;
pub mod reply;
pub mod request;
