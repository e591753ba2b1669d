//! What became of a request: the completion statuses of the InfiniBand specification (volume 1,
//! 11.6.2), as `libibverbs` numbers them.

use std::fmt;

use rdma_mummy_sys::ibv_wc_status as wc;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It was done.
    Success,
    /// More bytes than the local memory has, or than the port sends.
    LocalLength,
    /// The queue could not do it; a bug here, or in the driver.
    LocalOperation,
    /// The local memory is not registered for this; a bug here.
    LocalProtection,
    /// It was not tried, because an earlier one failed.
    Flushed,
    /// A window was not bound, or not invalidated.
    WindowBind,
    /// The other side answered what makes no sense.
    BadResponse,
    /// The other side wrote where it has no right to.
    LocalAccess,
    /// The other side does not understand the request.
    RemoteInvalidRequest,
    /// The other side's memory is not open to this: wrong key, address or right.
    RemoteAccess,
    /// The other side could not do it.
    RemoteOperation,
    /// The other side did not answer.
    RetryExceeded,
    /// The other side was not ready.
    ReceiverNotReady,
    /// The device has failed.
    Fatal,
    /// Something else, by its number.
    Other(u32),
}

impl Status {
    /// The status with `libibverbs`' number.
    pub fn from_number(number: u32) -> Self {
        match number {
            wc::IBV_WC_SUCCESS => Self::Success,
            wc::IBV_WC_LOC_LEN_ERR => Self::LocalLength,
            wc::IBV_WC_LOC_QP_OP_ERR => Self::LocalOperation,
            wc::IBV_WC_LOC_PROT_ERR => Self::LocalProtection,
            wc::IBV_WC_WR_FLUSH_ERR => Self::Flushed,
            wc::IBV_WC_MW_BIND_ERR => Self::WindowBind,
            wc::IBV_WC_BAD_RESP_ERR => Self::BadResponse,
            wc::IBV_WC_LOC_ACCESS_ERR => Self::LocalAccess,
            wc::IBV_WC_REM_INV_REQ_ERR => Self::RemoteInvalidRequest,
            wc::IBV_WC_REM_ACCESS_ERR => Self::RemoteAccess,
            wc::IBV_WC_REM_OP_ERR => Self::RemoteOperation,
            wc::IBV_WC_RETRY_EXC_ERR => Self::RetryExceeded,
            wc::IBV_WC_RNR_RETRY_EXC_ERR => Self::ReceiverNotReady,
            wc::IBV_WC_FATAL_ERR => Self::Fatal,
            other => Self::Other(other),
        }
    }

    /// Whether it was done. After anything else the queue does nothing more: make a new one.
    pub fn is_success(self) -> bool {
        self == Self::Success
    }

    /// Whether the other side refused: the key is stale, or never was for this.
    pub fn is_remote_access(self) -> bool {
        self == Self::RemoteAccess
    }

    /// Whether the other side, or the way to it, is gone.
    pub fn is_retry_exceeded(self) -> bool {
        self == Self::RetryExceeded
    }

    /// Whether it is an earlier request that failed, or the queue that was closed.
    pub fn is_flushed(self) -> bool {
        self == Self::Flushed
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("done"),
            Self::LocalLength => f.write_str("more bytes than fit"),
            Self::LocalOperation => f.write_str("the local device could not do it"),
            Self::LocalProtection => f.write_str("the local memory is not registered for it"),
            Self::Flushed => f.write_str("not tried, because an earlier request failed"),
            Self::WindowBind => f.write_str("the memory window was refused"),
            Self::BadResponse => f.write_str("the other side's answer makes no sense"),
            Self::LocalAccess => f.write_str("the other side has no right to this memory"),
            Self::RemoteInvalidRequest => f.write_str("the other side takes no such request"),
            Self::RemoteAccess => {
                f.write_str("the other side refused access: wrong key, address or right")
            }
            Self::RemoteOperation => f.write_str("the other side could not do it"),
            Self::RetryExceeded => f.write_str("the other side does not answer"),
            Self::ReceiverNotReady => f.write_str("the other side is not ready"),
            Self::Fatal => f.write_str("the device has failed"),
            Self::Other(number) => write!(f, "status {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_meaning() {
        let all: Vec<_> = (0..40).map(Status::from_number).collect();
        for (number, status) in (0_u32..).zip(&all) {
            assert_eq!(all.iter().filter(|other| *other == status).count(), 1, "{status:?}");
            assert!(!status.to_string().is_empty());
            assert_eq!(status.is_success(), number == 0);
            assert_eq!(status.is_flushed(), number == 5);
            assert_eq!(status.is_remote_access(), number == 10);
            assert_eq!(status.is_retry_exceeded(), number == 12);
        }
    }
}
