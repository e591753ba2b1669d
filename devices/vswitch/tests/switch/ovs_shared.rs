//! A switch on a bridge of Open vSwitch that others use too, and the database in which its ports are entered.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

use vswitch::bridge::{links, netlink::Route};
use vswitch::ovs::database::{Database, Kind};
use vswitch::ovs::{OvsSwitch, Rest, Role};
use vswitch::{Port, Switch, sys};

use crate::ovs::daemons::{Daemons, Datapath};
use crate::rig::{Guest, PATIENCE, QUIET, TapGuest, frame, in_namespace, own, vid};

/// A bridge that others use, too, with three guests, each with an address of its own, of which a switch knows two.
struct Shared {
    daemons: Daemons,
    database: Database,
    switch: OvsSwitch,
    ports: Vec<Port>,
    guests: Vec<TapGuest>,
    names: Vec<String>,
}

impl Shared {
    fn new() -> Self {
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let daemons = Daemons::start(Datapath::User, "sw0", "fail_mode=standalone");
        let socket = daemons.path("sw0.mgmt");
        // Somebody else's flow, and what a bridge has by itself.
        daemons.flows("sw0", "add-flow", &["priority=1,actions=normal"]);
        let switch = OvsSwitch::open(Path::new(&socket), Rest::Bridge).unwrap();
        let database = Path::new(&daemons.path("db.sock")).to_owned();
        let mut database = Database::at(&database).unwrap();
        let mut route = Route::open().unwrap();
        let (mut ports, mut guests, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for guest in 0..3 {
            let (tap, name) = sys::tap("guest%d").unwrap();
            let index = links::named(&mut route, &name).unwrap().unwrap().index;
            links::up(&mut route, index).unwrap();
            let number = database.add("sw0", &name, Kind::Guest { isolated: false }).unwrap();
            if guest < 2 {
                let address = Some(own(guest).bytes());
                ports.push(switch.attach(&name, number, Role::Guest(None), address).unwrap());
            }
            guests.push(TapGuest(tap));
            names.push(name);
        }
        Self { daemons, database, switch, ports, guests, names }
    }

    /// Sends a frame until it is received, which it is not while the daemon learns.
    fn reaches(&mut self, from: usize, to: usize, frame: &[u8]) {
        let until = Instant::now() + PATIENCE;
        loop {
            self.guests[from].send(frame);
            if self.guests[to].receive(QUIET).is_some_and(|it| it[..14] == frame[..14]) {
                return;
            }
            assert!(Instant::now() < until, "{from} does not reach {to}");
        }
    }

    fn reaches_not(&mut self, from: usize, to: usize, frame: &[u8]) {
        while self.guests[to].receive(QUIET).is_some() {}
        self.guests[from].send(frame);
        assert_eq!(self.guests[to].receive(QUIET), None, "{from} reaches {to}");
    }
}

#[test]
fn identifiers_move_on_a_bridge_that_others_use() {
    in_namespace(|| {
        let mut shared = Shared::new();
        // Guests that have nothing to do with the switch, and those that have, by their own addresses.
        shared.reaches(2, 0, &frame(own(2), own(0), 1));
        shared.reaches(0, 2, &frame(own(0), own(2), 2));
        shared.reaches(0, 1, &frame(own(0), own(1), 3));
        // A guest of the switch sends as itself and as its identifiers only.
        shared.reaches_not(0, 1, &frame(own(2), own(1), 4));
        shared.reaches_not(0, 1, &frame(vid(7), own(1), 4));
        let spoofed = shared.switch.statistics().unwrap().spoofed.unwrap();
        assert!(spoofed >= 2, "{spoofed}");
        shared.switch.add(vid(7), shared.ports[0]).unwrap();
        shared.reaches(0, 1, &frame(vid(7), own(1), 5));
        // Whoever sends to it, it is where it is, whatever the bridge has learnt.
        for (turn, home) in [0, 1, 0].into_iter().enumerate() {
            if turn > 0 {
                shared.switch.update(vid(7), shared.ports[home]).unwrap();
            }
            shared.reaches(2, home, &frame(own(2), vid(7), 6));
            shared.reaches_not(2, 1 - home, &frame(own(2), vid(7), 7));
        }
        // Others' flows are still there; those of a switch that is not any more are not.
        let flows = |shared: &Shared| shared.daemons.flows("sw0", "dump-flows", &[]);
        assert!(flows(&shared).contains("priority=1 actions=NORMAL"), "{}", flows(&shared));
        assert!(flows(&shared).contains("dl_dst=0e:51"), "{}", flows(&shared));
        // A port that is given up is nothing any more, whoever gets its number.
        assert!(flows(&shared).contains("in_port=1,"), "{}", flows(&shared));
        shared.switch.detach(shared.ports[0]).unwrap();
        assert!(!flows(&shared).contains("in_port=1,"), "{}", flows(&shared));
        let socket = shared.daemons.path("sw0.mgmt");
        let _next = OvsSwitch::open(Path::new(&socket), Rest::Bridge).unwrap();
        assert!(flows(&shared).contains("priority=1 actions=NORMAL"), "{}", flows(&shared));
        assert!(!flows(&shared).contains("dl_dst=0e:51"), "{}", flows(&shared));
    });
}

#[test]
fn a_daemon_that_is_killed_gets_all_flows_again() {
    in_namespace(|| {
        let mut shared = Shared::new();
        shared.switch.add(vid(7), shared.ports[0]).unwrap();
        shared.reaches(2, 0, &frame(own(2), vid(7), 1));
        shared.daemons.kill_switch();
        assert!(shared.switch.look().is_err());
        assert!(shared.switch.update(vid(7), shared.ports[1]).is_err());
        shared.daemons.start_switch();
        let until = Instant::now() + PATIENCE;
        while let Err(error) = shared.switch.look() {
            assert!(Instant::now() < until, "{error}");
            thread::sleep(QUIET);
        }
        // All but what was refused.
        shared.reaches(2, 0, &frame(own(2), vid(7), 2));
        shared.reaches_not(0, 1, &frame(vid(9), own(1), 2));
        // Nobody looks: the next change finds it.
        shared.daemons.kill_switch();
        shared.daemons.start_switch();
        let until = Instant::now() + PATIENCE;
        while let Err(error) = shared.switch.add(vid(8), shared.ports[1]) {
            assert!(Instant::now() < until, "{error}");
            thread::sleep(QUIET);
        }
        shared.reaches(2, 0, &frame(own(2), vid(7), 3));
        shared.reaches(2, 1, &frame(own(2), vid(8), 3));
    });
}

#[test]
fn ports_are_entered_found_and_swept() {
    in_namespace(|| {
        let mut shared = Shared::new();
        let Shared { database, names, daemons, .. } = &mut shared;
        let all = database.ports("sw0").unwrap();
        assert!(names.iter().all(|name| all.contains(name)), "{all:?}");
        assert!(database.ports("sw1").unwrap_err().to_string().contains("sw1"));
        let guest = Kind::Guest { isolated: true };
        assert!(database.add("sw1", &names[0], guest).unwrap_err().to_string().contains("sw1"));
        // Entered once more, on another bridge: it is there, and there alone.
        daemons.control("add-br sw1 -- set bridge sw1 datapath_type=netdev");
        database.add("sw1", &names[0], guest).unwrap();
        assert!(!database.ports("sw0").unwrap().contains(&names[0]));
        assert!(database.ports("sw1").unwrap().contains(&names[0]));
        // What another has entered stays.
        daemons.control("add-port sw0 other0 -- set interface other0 type=internal");
        assert!(
            database.add("sw0", "other0", guest).unwrap_err().to_string().contains("another's")
        );
        assert!(database.remove("other0").is_err());
        let tunnel = Kind::Tunnel {
            local: [127, 0, 0, 1].into(),
            remote: [127, 0, 0, 2].into(),
            network: 7,
            port: 4790,
        };
        assert!(database.add("sw0", "vx0", tunnel).unwrap() > 0);
        // An interface that there is not: the daemon says so.
        assert!(database.add("sw0", "none0", guest).unwrap_err().to_string().contains("none0"));
        database.sweep(|name| name != names[1] && name != "none0").unwrap();
        let left = database.ports("sw0").unwrap();
        assert!(
            left.contains("other0") && left.contains("vx0") && left.contains(&names[2]),
            "{left:?}"
        );
        assert!(!left.contains(&names[1]) && !left.contains("none0"), "{left:?}");
        database.remove("vx0").unwrap();
        database.remove("vx0").unwrap();
        assert!(!database.ports("sw0").unwrap().contains("vx0"));
    });
}
