//! The flows of a switch.
//!
//! | table | what it says |
//! |---|---|
//! | 0 | who may send; what may goes on, the rest is dropped and counted |
//! | [`ALL`] | where identifiers are |
//! | [`HERE`] | the same for what comes by a tunnel, which goes to no other host |

use rovs_openflow::{ActionList, Flow, FlowCommand, InstructionList, Match};

use super::Rest;
use crate::mark::ETHERTYPE;

/// Where frames of this host go.
pub const ALL: u8 = 240;
/// Where frames of other hosts go.
pub const HERE: u8 = 241;
const ENTRY: u8 = 0;

/// By what flows are known: all of them begin alike.
pub mod cookie {
    /// What dropped frames whose sender is not there.
    pub const SPOOFED: u64 = 0x766d_7673_0000_0001;
    /// What dropped frames to identifiers without a home.
    pub const UNKNOWN: u64 = 0x766d_7673_0000_0002;
    pub const OTHER: u64 = 0x766d_7673_0000_0000;
    /// What is alike.
    pub const MASK: u64 = 0xffff_ffff_0000_0000;
}

/// The priorities of flows; all but the least are above those that others usually give theirs.
mod priority {
    pub const LEAST: u16 = 0;
    pub const FLOOD: u16 = 0xf00a;
    pub const UPLINK: u16 = 0xf032;
    /// Of frames to an identifier, from whoever is no guest.
    pub const RECEIVES: u16 = 0xf040;
    pub const TUNNEL: u16 = 0xf048;
    /// Of a guest's frames by no address of its own.
    pub const SPOOFED: u16 = 0xf050;
    pub const VID: u16 = 0xf064;
    pub const MUTED: u16 = 0xf0c8;
    pub const MARK: u16 = 0xf12c;
}

fn flow(table: u8, priority: u16, matching: Match) -> Flow {
    Flow::add().table(table).priority(priority).cookie(cookie::OTHER).match_fields(matching)
}

fn on(flow: Flow, table: u8) -> Flow {
    flow.instructions(InstructionList::new().goto_table(table))
}

/// What takes exactly this flow away.
pub fn without(mut flow: Flow) -> Flow {
    flow.command = FlowCommand::DeleteStrict;
    flow.instructions = InstructionList::new();
    flow.actions = ActionList::new();
    flow
}

/// What takes all flows of a switch away: of it alone, if others have some too.
pub fn none(rest: Rest) -> Flow {
    let mut all = Flow::delete();
    if rest == Rest::Bridge {
        (all.cookie, all.cookie_mask) = (cookie::OTHER, cookie::MASK);
    }
    all
}

/// What there is before there is any port.
pub fn first(rest: Rest) -> Vec<Flow> {
    let mut groups = Match::new();
    groups.eth_dst = Some([1, 0, 0, 0, 0, 0]);
    groups.eth_dst_mask = Some([1, 0, 0, 0, 0, 0]);
    // Marks are between a switch and its ports.
    let mut flows = vec![flow(ENTRY, priority::MARK, Match::new().eth_type(ETHERTYPE))];
    match rest {
        Rest::Dropped => flows.extend([
            flow(ENTRY, priority::LEAST, Match::new()).cookie(cookie::SPOOFED),
            flow(ALL, priority::VID, groups).actions(ActionList::new().flood()),
            flow(ALL, priority::LEAST, Match::new()).cookie(cookie::UNKNOWN),
        ]),
        Rest::Bridge => {
            let normal = |table| {
                flow(table, priority::LEAST, Match::new()).actions(ActionList::new().normal())
            };
            flows.extend([normal(ALL), normal(HERE)]);
        }
    }
    flows
}

/// What `vid` sends at `port` goes on.
pub fn sends(vid: [u8; 6], port: u32) -> Flow {
    on(flow(ENTRY, priority::VID, Match::new().in_port(port).eth_src(vid)), ALL)
}

/// What else a guest at `port` sends does not.
pub fn spoofs(port: u32) -> Flow {
    flow(ENTRY, priority::SPOOFED, Match::new().in_port(port)).cookie(cookie::SPOOFED)
}

/// A network at `port` may send by every address.
pub fn lets_in(port: u32) -> Flow {
    on(flow(ENTRY, priority::UPLINK, Match::new().in_port(port)), ALL)
}

/// What comes from another host, at `port`.
pub fn arrives(port: u32) -> Flow {
    on(flow(ENTRY, priority::TUNNEL, Match::new().in_port(port)), HERE)
}

/// Frames for `vid` leave by `port`; what comes by a tunnel, too, only if that `is_here`.
pub fn receives(vid: [u8; 6], port: u32, is_here: bool) -> [Flow; 3] {
    let output = || ActionList::new().output(port);
    let here = if is_here { output() } else { ActionList::new() };
    let [entry, all, from_afar] = receiving(vid);
    [on(entry, ALL), all.actions(output()), from_afar.actions(here)]
}

/// What takes it away that frames for `vid` leave.
pub fn receives_not(vid: [u8; 6]) -> [Flow; 3] {
    receiving(vid).map(without)
}

fn receiving(vid: [u8; 6]) -> [Flow; 3] {
    let to = || Match::new().eth_dst(vid);
    [
        flow(ENTRY, priority::RECEIVES, to()),
        flow(ALL, priority::VID, to()),
        flow(HERE, priority::VID, to()),
    ]
}

/// Nothing that comes from `port` goes on.
pub fn mutes(port: u32) -> Flow {
    flow(ENTRY, priority::MUTED, Match::new().in_port(port))
}

/// Frames to unknown identifiers go everywhere.
pub fn floods() -> Flow {
    flow(ALL, priority::FLOOD, Match::new()).actions(ActionList::new().flood())
}
