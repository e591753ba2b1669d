//! Requests, as the device takes them.
#![expect(unsafe_code, reason = "structures of libibverbs, of zeros and with unions")]

use rdma_mummy_sys::{
    bind_mw_t, bind_mw_tso_union_t, ibv_mw_bind_info, ibv_send_wr, ibv_sge, ibv_wr_opcode,
    imm_data_invalidated_rkey_union_t, rdma_t, wr_t,
};

use super::window::Binding;

/// Memory of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// Its address there.
    pub address: u64,
    /// The key that opens it.
    pub key: u32,
}

/// What a request names of this host's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) lkey: u32,
}

/// What the device is to do.
#[derive(Debug)]
pub(super) enum Operation {
    Read(Local, Remote),
    Write(Local, Remote),
    Bind(Binding),
    Invalidate(u32),
}

/// A request, not posted yet.
pub(super) struct Work<T> {
    pub(super) id: u64,
    pub(super) operation: Operation,
    pub(super) item: T,
}

impl Operation {
    /// The memory that the device needs for it.
    pub(super) fn part(&self) -> ibv_sge {
        match self {
            Self::Read(Local { address, length, lkey }, _)
            | Self::Write(Local { address, length, lkey }, _) => {
                ibv_sge { addr: *address, length: *length, lkey: *lkey }
            }
            Self::Bind(_) | Self::Invalidate(_) => ibv_sge { addr: 0, length: 0, lkey: 0 },
        }
    }

    /// The request number `number`, with its memory in `part`.
    pub(super) fn request(&self, number: u64, part: &mut ibv_sge) -> ibv_send_wr {
        // SAFETY: numbers and pointers, of which 0 is one.
        let mut request: ibv_send_wr = unsafe { std::mem::zeroed() };
        request.wr_id = number;
        match self {
            Self::Read(_, Remote { address, key }) | Self::Write(_, Remote { address, key }) => {
                request.opcode = if matches!(self, Self::Read(..)) {
                    ibv_wr_opcode::IBV_WR_RDMA_READ
                } else {
                    ibv_wr_opcode::IBV_WR_RDMA_WRITE
                };
                request.sg_list = part;
                request.num_sge = 1;
                request.wr = wr_t { rdma: rdma_t { remote_addr: *address, rkey: *key } };
            }
            Self::Bind(binding) => {
                request.opcode = ibv_wr_opcode::IBV_WR_BIND_MW;
                let bind_info = ibv_mw_bind_info {
                    mr: binding.region,
                    addr: binding.address,
                    length: binding.length,
                    mw_access_flags: binding.access,
                };
                let bind_mw = bind_mw_t { mw: binding.window, rkey: binding.key, bind_info };
                request.bind_mw_tso_union = bind_mw_tso_union_t { bind_mw };
            }
            Self::Invalidate(key) => {
                request.opcode = ibv_wr_opcode::IBV_WR_LOCAL_INV;
                let invalidated_rkey = *key;
                request.imm_data_invalidated_rkey_union =
                    imm_data_invalidated_rkey_union_t { invalidated_rkey };
            }
        }
        request
    }
}
